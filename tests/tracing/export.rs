//! What is exported, and how.

use rustix::process::Signal;

use crate::{
    collector::{Collector, GRPC, HTTP, assert_attributes, attribute, hex},
    service::{connect, echo, header, reached, request},
    support::{SOON, SVC4, Speak, World, wait_until},
};

#[test]
fn spans_are_sent_over_http_too_with_resource_and_headers() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::http(&world);
    let config = format!(
        "tracing:\n  endpoint: {HTTP}\n  protocol: http_protobuf\n  headers: {{ x-api-key: swordfish }}\n  \
         resource: {{ team: payments }}\n"
    );
    let environment = [
        ("OTEL_SERVICE_NAME", "shop"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "team=other,deployment.environment.name=test%20bench",
        ),
    ];
    let proxy = world.serve_in(&world.app, "outrigger", &config, &[], &environment);
    world.capture(&proxy);
    reached(
        &mut connect(&world),
        "/pay?card=4711",
        "User-Agent: app/1\r\n",
    );
    let (server, client) = collector.pair();
    let resource = &collector.received()[0].resource;
    for (key, value) in [
        ("service.name", "shop"),
        ("team", "payments"),
        ("deployment.environment.name", "test bench"),
    ] {
        assert_eq!(attribute(resource, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(collector.headers()[0]["x-api-key"], "swordfish");
    assert_attributes(
        &server,
        &[
            ("http.request.method", "GET"),
            ("url.path", "/pay"),
            ("url.query", "card=REDACTED"),
            ("server.address", "svc.test"),
            ("user_agent.original", "app/1"),
            ("http.response.status_code", "200"),
        ],
    );
    assert_attributes(
        &client,
        &[
            ("url.full", "http://svc.test/pay?card=REDACTED"),
            ("network.peer.address", &SVC4.to_string()),
            ("network.peer.port", "80"),
        ],
    );
    assert!(!proxy.log().contains("swordfish"));
}

#[test]
fn the_access_log_and_exemplars_name_the_trace() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!(
        "tracing: {{ endpoint: '{GRPC}' }}\naccess_log: {{ to: stdout }}\n"
    ));
    world.capture(&proxy);
    let head = reached(&mut connect(&world), "/", "");
    let (server, _) = collector.pair();
    let (trace, span) = (hex(&server.trace_id), hex(&server.span_id));
    assert!(header(&head, "traceparent").is_some_and(|p| p.contains(&trace)));
    wait_until(SOON, "it is logged", || {
        proxy
            .log()
            .contains(&format!("\"trace_id\":\"{trace}\",\"span_id\":\"{span}\""))
    });
    let open = "Accept: application/openmetrics-text\r\n";
    let metrics = world.admin_with("/metrics", open).1;
    let exemplar = metrics
        .lines()
        .find(|line| line.contains(&format!(" # {{trace_id=\"{trace}\"")));
    assert!(
        exemplar.is_some_and(|l| l.starts_with("outrigger_request_duration_seconds_bucket{")),
        "{metrics}"
    );
    assert!(
        !world.metrics().contains(&trace),
        "none in the plain format"
    );
}

#[test]
fn a_request_that_was_not_sampled_is_exported_if_it_fails() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!(
        "tracing: {{ endpoint: '{GRPC}', sampling: 0, batch_delay: 10ms }}\n\
         routes:\n\
         - {{ match: {{ host: silent.test }}, cluster: original_destination, tracing: {{ sample_errors: false }} }}\n\
         - {{ match: {{ host: loud.test }}, cluster: original_destination, tracing: {{ sampling: 1 }} }}\n"
    ));
    world.capture(&proxy);
    let mut client = connect(&world);
    reached(&mut client, "/", "");
    client
        .say("GET /fail HTTP/1.1\r\nHost: silent.test\r\n\r\n")
        .expect("a connection");
    client.hear_response().expect("an answer");
    let head = reached(&mut client, "/fail", "");
    let parent = header(&head, "traceparent").expect("one");
    assert!(
        parent.ends_with("-02"),
        "the flag stays as it was decided: {parent}"
    );
    let (server, span) = collector.pair();
    assert_eq!(parent[36..52], hex(&span.span_id));
    for span in [&server, &span] {
        assert_attributes(
            span,
            &[("error.type", "500"), ("http.response.status_code", "500")],
        );
        assert_eq!(span.status.as_ref().map(|status| status.code), Some(2));
    }
    client
        .say("GET / HTTP/1.1\r\nHost: loud.test\r\n\r\n")
        .expect("a connection");
    client.hear_response().expect("an answer");
    let spans = collector.spans(4);
    assert_attributes(&spans[2], &[("server.address", "loud.test")]);
    assert_eq!(spans[2].flags & 1, 1);
}

#[test]
fn each_attempt_has_a_client_span_of_its_own() {
    let world = World::new();
    let _service = echo(&world, 9001);
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!(
        "tracing: {{ endpoint: '{GRPC}' }}\n\
         routes: [{{ match: {{ port: 80 }}, cluster: a, retry: {{ on: [5xx], num_retries: 2, back_off: {{ base_interval: 1ms, max_interval: 2ms }} }} }}]\n\
         clusters: [{{ name: a, endpoints: [{{ address: '198.51.100.2:9001' }}] }}]\n"
    ));
    world.capture(&proxy);
    let head = reached(&mut connect(&world), "/fail", "");
    let spans = collector.spans(4);
    let (server, attempts) = spans.split_first().expect("four");
    for (resends, attempt) in attempts.iter().enumerate() {
        assert_eq!(attempt.parent_span_id, server.span_id);
        let expected = (resends > 0).then(|| resends.to_string());
        let found = attribute(&attempt.attributes, "http.request.resend_count");
        assert_eq!(found, expected);
        assert_attributes(
            attempt,
            &[("error.type", "500"), ("outrigger.cluster", "a")],
        );
    }
    let last = header(&head, "traceparent").expect("one");
    assert_eq!(last[36..52], hex(&attempts[2].span_id));
}

#[test]
fn a_failure_to_connect_is_told() {
    let world = World::new();
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&format!("tracing: {{ endpoint: '{GRPC}' }}"));
    world.capture(&proxy);
    let mut client = connect(&world);
    client.say(request("/", "")).expect("a connection");
    assert!(
        client
            .hear_response()
            .expect("an answer")
            .0
            .contains(" 502 ")
    );
    let (server, client) = collector.pair();
    for span in [&server, &client] {
        assert_attributes(span, &[("error.type", "connect_refused")]);
    }
    assert_attributes(&server, &[("http.response.status_code", "502")]);
    let status = attribute(&client.attributes, "http.response.status_code");
    assert_eq!(status, None, "no upstream said that");
}

#[test]
fn a_grpc_call_has_the_code_of_its_trailers() {
    let world = World::new();
    let collector = Collector::grpc(&world);
    // A gRPC server like any other.
    let called = Collector::grpc_at(&world, 50051);
    let proxy = world.serve(&format!("tracing: {{ endpoint: '{GRPC}' }}"));
    world.capture(&proxy);
    let call = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    world.write("frame", [0, 0, 0, 0, 0]);
    world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' --data-binary @{}/frame http://198.51.100.2:50051{call}",
        world.dir().display()
    ));
    assert_eq!(called.headers().len(), 1);
    assert!(called.headers()[0].contains_key("traceparent"));
    let (server, client) = collector.pair();
    for span in [&server, &client] {
        assert_eq!(span.name, call[1..]);
        assert_attributes(
            span,
            &[
                ("rpc.system.name", "grpc"),
                ("rpc.method", &call[1..]),
                ("rpc.response.status_code", "OK"),
            ],
        );
    }
}

#[test]
fn connections_that_are_no_http_have_a_span_if_asked_for() {
    let world = World::new();
    let collector = Collector::grpc(&world);
    let _greeter = world.peer(25, |mut stream| {
        stream.say("220 ready\r\n")?;
        stream.hear_until("\r\n").map(drop)
    });
    let proxy = world.serve(&format!(
        "tracing: {{ endpoint: '{GRPC}', connections: true }}"
    ));
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 25));
    client.hear_until("\r\n").expect("a greeting");
    client.say("QUIT\r\n").expect("a connection");
    client.hear_to_end().expect("the end");
    drop(client);
    let span = &collector.spans(1)[0];
    assert_eq!(span.name, "opaque");
    assert_attributes(
        span,
        &[
            ("server.port", "25"),
            ("outrigger.bytes_sent", "11"),
            ("outrigger.bytes_received", "6"),
        ],
    );
}

#[test]
fn a_graceful_stop_sends_what_waits() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let mut proxy = world.serve(&format!(
        "tracing: {{ endpoint: '{GRPC}', batch_delay: 1h }}"
    ));
    world.capture(&proxy);
    reached(&mut connect(&world), "/", "");
    wait_until(SOON, "two spans wait", || {
        world.metric("outrigger_trace_spans_waiting") == 2.0
    });
    assert!(collector.received().is_empty());
    proxy.signal(Signal::TERM);
    assert!(proxy.wait(SOON).success());
    collector.pair();
}

#[test]
fn a_reload_turns_tracing_on_and_off() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let proxy = world.serve("workers: 1\n");
    world.capture(&proxy);
    let mut client = connect(&world);
    assert_eq!(reached(&mut client, "/", ""), request("/", ""));
    let apply = |text: &str| {
        let applied = || world.metric_sum("outrigger_config_reloads_total", "applied");
        let before = applied();
        let new = world.write("new.yaml", text);
        std::fs::rename(new, world.dir().join("outrigger.yaml")).expect("the test's directory");
        wait_until(SOON, "a reload", || applied() > before);
    };
    apply(&format!("workers: 1\ntracing: {{ endpoint: '{GRPC}' }}\n"));
    assert!(reached(&mut client, "/", "").contains("traceparent: "));
    collector.pair();
    apply("workers: 1\n");
    assert_eq!(reached(&mut client, "/", ""), request("/", ""));
    assert!(!world.metrics().contains("outrigger_trace_"));
}
