//! One trace over two sidecars and an application between them that only copies headers, each in a
//! network namespace of its own.

use std::net::SocketAddr;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::{
    collector::{Collector, GRPC, attribute, hex},
    service::{copy_headers, header, request, show_heads},
    support::{BEYOND, SOON, SVC4, Speak, World, wait_for},
};

#[test]
fn one_trace_over_two_sidecars_and_an_application_that_only_copies_headers() {
    let world = World::new();
    let beyond = world.beyond();
    let collector = Collector::grpc(&world);
    // The middle application dials from where it runs, and so through its own sidecar.
    let next = SocketAddr::from((BEYOND, 80));
    let _middle = world
        .svc
        .within(|| world.peer(80, move |stream| copy_headers(stream, next)));
    let _last = world.peer_in(&beyond, 80, show_heads);
    let config = |name: &str| {
        format!("tracing: {{ endpoint: '{GRPC}', service_name: {name}, batch_delay: 50ms }}\n")
    };
    let first = world.serve(&config("first"));
    world.capture(&first);
    let second = world.serve_in(&world.svc, "second", &config("second"), &[], &[]);
    world.capture(&second);

    let mut client = world.app.connect((SVC4, 80));
    client
        .say(request("/", "baggage: user=me\r\ntracestate: v=1\r\n"))
        .expect("a connection");
    let (_, head) = client.hear_response().expect("an answer");

    let received = wait_for(SOON, "both sidecars' spans", || {
        let received = collector.received();
        (received.len() >= 4).then_some(received)
    });
    assert_eq!(received.len(), 4, "{received:#?}");
    let span = |service: &str, kind: SpanKind| {
        let found = received.iter().find(|received| {
            attribute(&received.resource, "service.name").as_deref() == Some(service)
                && received.span.kind == kind as i32
        });
        &found
            .unwrap_or_else(|| panic!("{service} {kind:?}: {received:#?}"))
            .span
    };
    let way = [
        span("first", SpanKind::Server),
        span("first", SpanKind::Client),
        span("second", SpanKind::Server),
        span("second", SpanKind::Client),
    ];
    assert!(way[0].parent_span_id.is_empty(), "it begins here");
    for pair in way.windows(2) {
        assert_eq!(pair[1].parent_span_id, pair[0].span_id);
        assert_eq!(pair[1].trace_id, pair[0].trace_id);
        assert!(pair[0].start_time_unix_nano <= pair[1].start_time_unix_nano);
    }
    // What reached the last server is the second sidecar's client span; the rest came along.
    let onward = format!("00-{}-{}-03", hex(&way[3].trace_id), hex(&way[3].span_id));
    assert_eq!(header(&head, "traceparent"), Some(&*onward));
    assert_eq!(header(&head, "baggage"), Some("user=me"));
    // It came without a traceparent, and so belonged to no trace.
    assert_eq!(header(&head, "tracestate"), None);
    assert_eq!(
        way[2].flags & 0x200,
        0x200,
        "its parent is of another process"
    );
}
