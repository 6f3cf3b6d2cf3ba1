//! What becomes of a request's headers.

use crate::{
    collector::{Collector, GRPC, hex},
    service::{connect, echo, header, reached, request},
    support::World,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Header lines of every kind that tracing knows, in odd forms too.
const ALL_KINDS: &str = "TraceParent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
    tracestate:  a=1 , b=2\t\r\n\
    TRACESTATE: broken\r\n\
    Baggage: user=me,%00\r\n\
    b3: 0\r\n\
    X-B3-TraceId: nonsense\r\n\
    X-B3-Flags: 1\r\n\
    traceparent: twice\r\n";

#[test]
fn without_tracing_no_byte_of_a_head_changes() {
    let world = World::new();
    let _service = echo(&world, 80);
    let _proxy = world.captured();
    let mut client = connect(&world);
    for headers in ["", ALL_KINDS] {
        assert_eq!(
            reached(&mut client, "/", headers),
            request("/", headers),
            "{headers}"
        );
    }
}

#[test]
fn where_nothing_is_injected_no_byte_of_a_head_changes_either() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!("tracing: {{ endpoint: '{GRPC}', inject: [] }}"));
    world.capture(&proxy);
    let headers = format!("traceparent: {PARENT}\r\nb3: 0\r\n");
    let head = reached(&mut connect(&world), "/", &headers);
    assert_eq!(head, request("/", &headers));
    let (server, _) = collector.pair();
    assert_eq!(hex(&server.trace_id), TRACE);
}

#[test]
fn a_trace_goes_on_and_all_else_stays() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!("tracing: {{ endpoint: '{GRPC}' }}"));
    world.capture(&proxy);
    let rest = "X-First: 1\r\ntracestate: a=1,b=2\r\nBaggage: user=me;x=y,k=%20v\r\nX-Last: 2\r\n";
    let sent = format!("Traceparent: {PARENT}\r\n{rest}");
    let head = reached(&mut connect(&world), "/a?b", &sent);
    let (server, client) = collector.pair();
    let onward = format!("00-{TRACE}-{}-01", hex(&client.span_id));
    assert_eq!(
        head,
        request("/a?b", &format!("Traceparent: {onward}\r\n{rest}"))
    );
    assert_eq!(hex(&server.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(server.trace_state, "a=1,b=2");
}

#[test]
fn a_trace_begins_where_there_is_none_or_none_that_is_good() {
    let world = World::new();
    let _service = echo(&world, 80);
    let proxy = world.serve(&format!("tracing: {{ endpoint: '{GRPC}', sampling: 0 }}"));
    world.capture(&proxy);
    let mut client = connect(&world);
    let plain = reached(&mut client, "/", "");
    let own = header(&plain, "traceparent").expect("one");
    // Not sampled, and its id is random.
    assert!(own.starts_with("00-") && own.ends_with("-02"), "{own}");
    let expected = request("/", &format!("traceparent: {own}\r\n"));
    assert_eq!(plain, expected);
    for broken in [
        "traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n",
        "traceparent: ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
    ] {
        let head = reached(&mut client, "/", broken);
        let parents = head.to_ascii_lowercase().matches("traceparent: ").count();
        assert_eq!(parents, 1, "{head}");
        assert!(!head.contains(TRACE), "{head}");
        assert!(!head.contains("tracestate"), "{head}");
    }
}

#[test]
fn an_invalid_tracestate_does_not_go_on_with_a_good_parent() {
    let world = World::new();
    let _service = echo(&world, 80);
    let proxy = world.serve(&format!("tracing: {{ endpoint: '{GRPC}' }}"));
    world.capture(&proxy);
    let many = vec!["a=1"; 33].join(",");
    for state in ["a", "A=1", &many] {
        let headers =
            format!("traceparent: {PARENT}\r\ntracestate: x=1\r\ntracestate: {state}\r\n");
        let head = reached(&mut connect(&world), "/", &headers);
        assert!(!head.contains("tracestate"), "{head}");
        assert!(head.contains(TRACE), "{head}");
    }
}

#[test]
fn b3_is_read_and_written_in_both_forms() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!(
        "tracing: {{ endpoint: '{GRPC}', inject: [b3, b3multi, tracecontext] }}"
    ));
    world.capture(&proxy);
    let mut client = connect(&world);
    for (at, headers) in [
        format!("b3: {TRACE}-00f067aa0ba902b7-1-00f067aa0ba902b8\r\n"),
        format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: 00f067aa0ba902b7\r\nX-B3-Sampled: 1\r\n"),
    ]
    .iter()
    .enumerate()
    {
        let head = reached(&mut client, "/", headers);
        let spans = collector.spans(2 * (at + 1));
        let (server, client) = (&spans[2 * at], &spans[2 * at + 1]);
        assert_eq!(hex(&server.parent_span_id), "00f067aa0ba902b7");
        let (server, client) = (hex(&server.span_id), hex(&client.span_id));
        let said = |name| header(&head, name).unwrap_or_default();
        assert_eq!(said("b3"), format!("{TRACE}-{client}-1-{server}"));
        assert_eq!(said("x-b3-traceid"), TRACE);
        assert_eq!(said("x-b3-spanid"), client);
        assert_eq!(said("x-b3-parentspanid"), server);
        assert_eq!(said("x-b3-sampled"), "1");
        assert_eq!(said("traceparent"), format!("00-{TRACE}-{client}-01"));
    }
}

#[test]
fn http2_headers_carry_the_trace_too() {
    let world = World::new();
    let nginx = world.nginx();
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!("tracing: {{ endpoint: '{GRPC}' }}"));
    world.capture(&proxy);
    let page = world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge -A agent/1 -H 'traceparent: {PARENT}' -H 'tracestate: a=1' http://198.51.100.2:8080/hello"
    ));
    assert_eq!(page, "hello\n");
    assert_eq!(nginx.requests().len(), 1);
    let (server, client) = collector.pair();
    assert_eq!(hex(&server.trace_id), TRACE);
    assert_eq!(server.trace_state, "a=1");
    for span in [&server, &client] {
        crate::collector::assert_attributes(
            span,
            &[
                ("network.protocol.version", "2"),
                ("http.response.status_code", "200"),
                ("server.port", "8080"),
            ],
        );
    }
    crate::collector::assert_attributes(&server, &[("user_agent.original", "agent/1")]);
}
