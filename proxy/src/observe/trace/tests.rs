//! Spans as OpenTelemetry's own types read them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use outrigger_config::Tracing;
use proptest::prelude::*;
use prost::Message;

use super::{
    Ids, Incoming, Trace, export,
    queue::{Taken, Tracer},
};
use crate::{
    failure::Failure,
    observe::{Protocol, Record, RequestLine, test_record},
};

fn settings(keys: &str) -> Tracing {
    let text = format!("tracing: {{ endpoint: 'http://[::1]', {keys} }}");
    let settings = outrigger_config::parse(&text).expect("good settings");
    settings.tracing.expect("it is on")
}

type Headers<'a> = &'a [(&'a str, &'a str)];

/// A request's trace before its first attempt.
fn begin(settings: &Tracing, headers: Headers<'_>) -> Trace {
    let mut incoming = Incoming::default();
    for (name, value) in headers {
        incoming.visit(name.as_bytes(), value.as_bytes());
    }
    let ids = Ids::seeded(1, 2);
    Trace::begin(settings, None, &incoming, &ids, "1.1", Instant::now())
}

/// The spans that are exported of it, in a whole request to the collector.
fn exported(
    settings: &Tracing,
    trace: &Trace,
    record: &Record<'_>,
    headers: Headers<'_>,
) -> ExportTraceServiceRequest {
    let tracer = Tracer::new(1);
    tracer.follow(Some(settings));
    trace.finish(&tracer, 0, record, |visit| {
        for (name, value) in headers {
            visit(name.as_bytes(), value.as_bytes());
        }
    });
    let mut taken = Taken::default();
    tracer.take(&mut taken);
    let Some(batch) = taken.batch(usize::MAX, usize::MAX) else {
        return ExportTraceServiceRequest::default();
    };
    let bytes = export::tests::request(settings, batch.bytes);
    let request = ExportTraceServiceRequest::decode(bytes).expect("OTLP");
    let spans = &request.resource_spans[0].scope_spans[0].spans;
    assert_eq!(spans.len(), batch.spans, "as many as were counted");
    request
}

fn spans(
    settings: &Tracing,
    trace: &Trace,
    record: &Record<'_>,
    headers: Headers<'_>,
) -> Vec<Span> {
    let mut request = exported(settings, trace, record, headers);
    match request.resource_spans.pop() {
        Some(mut resource) => resource.scope_spans.remove(0).spans,
        None => Vec::new(),
    }
}

/// An attribute's value as text.
fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let mut found = attributes.iter().filter(|a| a.key == key);
    let value = found.next()?.value.clone()?.value?;
    assert!(found.next().is_none(), "{key} is there twice");
    match value {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

#[track_caller]
fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let found = attribute(&span.attributes, key);
        assert_eq!(found.as_deref(), Some(*value), "{key} of {}", span.name);
    }
}

fn peer() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 8080))
}

fn error_of(span: &Span) -> Option<String> {
    let status = span.status.as_ref()?;
    assert_eq!(status.code, StatusCode::Error as i32);
    attribute(&span.attributes, "error.type")
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_request_has_a_server_and_a_client_span_of_the_senders_trace() {
    let settings = settings("service_name: shop");
    let headers = [
        ("traceparent", PARENT),
        ("tracestate", "a=1"),
        ("tracestate", "b=2"),
        ("user-agent", "curl/8"),
    ];
    let mut trace = begin(&settings, &headers);
    trace.reached(peer());
    trace.answered(200);
    let record = Record {
        request: Some(RequestLine {
            method: "GET",
            target: b"/pay?user=me&key=secret&flag",
            host: Some(b"shop.test:8080"),
        }),
        cluster: Some("payments"),
        ..test_record()
    };
    let request = exported(&settings, &trace, &record, &headers);
    let resource = request.resource_spans[0].resource.as_ref().expect("one");
    let name = attribute(&resource.attributes, "service.name");
    assert_eq!(name.as_deref(), Some("shop"));
    let scope_spans = &request.resource_spans[0].scope_spans[0];
    assert_eq!(scope_spans.scope.as_ref().expect("one").name, "outrigger");
    assert!(scope_spans.schema_url.ends_with("/1.45.0"));
    assert!(!format!("{request:?}").contains("secret"));

    let [server, client] = &scope_spans.spans[..] else {
        panic!("{:?}", scope_spans.spans);
    };
    for span in [server, client] {
        assert_eq!(
            span.trace_id,
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
        );
        assert_eq!(span.trace_state, "a=1,b=2");
        assert_eq!(span.name, "GET");
        assert_eq!(span.status, None);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert_attributes(
            span,
            &[
                ("http.request.method", "GET"),
                ("server.address", "shop.test"),
                ("server.port", "8080"),
                ("http.response.status_code", "200"),
                ("network.protocol.version", "1.1"),
                ("outrigger.cluster", "payments"),
                ("outrigger.original_destination", "203.0.113.7:80"),
            ],
        );
    }
    assert_eq!(server.kind, SpanKind::Server as i32);
    assert_eq!(
        server.parent_span_id,
        0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()
    );
    // Sampled, and a child of another process's span.
    assert_eq!(server.flags, 0x301);
    assert_attributes(
        server,
        &[
            ("url.scheme", "http"),
            ("url.path", "/pay"),
            ("url.query", "user=REDACTED&key=REDACTED&REDACTED"),
            ("user_agent.original", "curl/8"),
            ("client.address", "127.0.0.1"),
            ("network.peer.address", "127.0.0.1"),
            ("network.peer.port", "40000"),
        ],
    );
    assert_eq!(client.kind, SpanKind::Client as i32);
    assert_eq!(client.parent_span_id, server.span_id);
    assert_ne!(client.span_id, server.span_id);
    assert_eq!(client.flags, 0x101);
    assert_attributes(
        client,
        &[
            (
                "url.full",
                "http://shop.test:8080/pay?user=REDACTED&key=REDACTED&REDACTED",
            ),
            ("network.peer.address", "10.0.0.1"),
            ("network.peer.port", "8080"),
        ],
    );
}

#[test]
fn what_goes_on_is_the_client_span_of_the_attempt_under_way() {
    let settings = settings("inject: [tracecontext, b3, b3multi]");
    let mut trace = begin(&settings, &[]);
    let mut sent = Vec::new();
    let mut write = |trace: &mut Trace| {
        let mut values = Vec::new();
        trace.each_edit(&settings, |edit| {
            if let super::Edit::Add(_, value) | super::Edit::Replace(_, value) = edit {
                values.push(String::from_utf8(value.to_vec()).expect("ASCII"));
            }
        });
        sent.push(values);
    };
    write(&mut trace);
    trace.reached(peer());
    trace.failed(Failure::UpstreamClosed);
    trace.again(&Ids::seeded(3, 4), Instant::now());
    write(&mut trace);
    trace.reached(peer());
    trace.answered(404);
    let record = Record {
        status: Some(404),
        ..test_record()
    };
    let spans = spans(&settings, &trace, &record, &[]);
    let [server, first, second] = &spans[..] else {
        panic!("{spans:?}");
    };
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    for (values, attempt) in sent.iter().zip([first, second]) {
        assert_eq!(attempt.parent_span_id, server.span_id);
        for (at, value) in [(0, 3), (1, 0)].map(|(at, skip)| (at, &values[at][skip..])) {
            assert!(value.starts_with(&hex(&server.trace_id)), "{at}: {value}");
            assert!(value.contains(&hex(&attempt.span_id)), "{at}: {value}");
        }
        assert_eq!(values[3], hex(&attempt.span_id));
        assert_eq!(values[4], hex(&server.span_id));
    }
    assert_eq!(
        attribute(&first.attributes, "http.request.resend_count"),
        None
    );
    assert_attributes(second, &[("http.request.resend_count", "1")]);
    assert_eq!(error_of(first).as_deref(), Some("upstream_closed"));
    // A client's error, and no server's.
    assert_eq!(error_of(second).as_deref(), Some("404"));
    assert_eq!(server.status, None);
    assert_eq!(server.flags, 0x103, "a random trace id of our own");
}

#[test]
fn an_unsampled_request_is_exported_if_it_fails_and_its_flag_stays_as_it_was_decided() {
    let unsampled = settings("sampling: 0");
    let mut trace = begin(&unsampled, &[]);
    let mut flag = String::new();
    trace.each_edit(&unsampled, |edit| {
        if let super::Edit::Add(_, value) = edit {
            flag = String::from_utf8_lossy(&value[52..]).into();
        }
    });
    assert_eq!(flag, "-02");
    trace.reached(peer());
    let good = test_record();
    assert!(spans(&unsampled, &trace, &good, &[]).is_empty());
    assert!(!trace.ids(good.status, good.failure).is_exported);
    for record in [
        Record {
            status: Some(500),
            ..test_record()
        },
        Record {
            status: Some(502),
            failure: Some(Failure::ConnectRefused),
            ..test_record()
        },
        Record {
            failure: Some(Failure::ClientClosed),
            ..test_record()
        },
    ] {
        let spans = spans(&unsampled, &trace, &record, &[]);
        assert_eq!(spans.len(), 2);
        assert_eq!(spans[0].flags & 1, 0);
        let expected = record.failure.map_or("500", Failure::label);
        assert_eq!(error_of(&spans[0]).as_deref(), Some(expected));
        assert!(trace.ids(record.status, record.failure).is_exported);
        let silent = settings("sampling: 0, sample_errors: false");
        let trace = begin(&silent, &[]);
        assert!(self::spans(&silent, &trace, &record, &[]).is_empty());
    }
}

#[test]
fn a_request_that_went_nowhere_has_no_client_span() {
    let settings = settings("");
    let trace = begin(&settings, &[]);
    for (failure, count) in [
        (Failure::NoEndpoint, 1),
        (Failure::BreakerTripped, 1),
        (Failure::Overflow, 1),
        (Failure::ConnectTimeout, 2),
    ] {
        let record = Record {
            upstream: None,
            status: Some(failure.status()),
            failure: Some(failure),
            ..test_record()
        };
        let spans = spans(&settings, &trace, &record, &[]);
        assert_eq!(spans.len(), count, "{failure:?}");
        assert_eq!(error_of(&spans[0]).as_deref(), Some(failure.label()));
        let status = spans[0].status.as_ref().expect("an error");
        assert_eq!(status.message, failure.details());
    }
}

#[test]
fn a_grpc_call_is_told_by_the_conventions_for_rpc() {
    let settings = settings("sampling: 0");
    let grpc = [("content-type", "application/grpc")];
    for (code, name, is_exported, is_servers) in [
        ("0", "OK", false, false),
        ("5", "NOT_FOUND", false, false),
        ("14", "UNAVAILABLE", true, true),
    ] {
        let mut trace = begin(&settings, &grpc);
        trace.reached(peer());
        trace.answered(200);
        let trailers = [("grpc-status", code)]
            .map(|(n, v)| (n.parse().expect("a name"), v.parse().expect("a value")));
        trace.note_grpc_status(&trailers.into_iter().collect());
        let record = Record {
            protocol: Protocol::Http2,
            request: Some(RequestLine {
                method: "POST",
                target: b"/shop.Cart/Add",
                host: Some(b"cart"),
            }),
            ..test_record()
        };
        let spans = spans(&settings, &trace, &record, &grpc);
        assert_eq!(!spans.is_empty(), is_exported, "{name}");
        if let [server, client] = &spans[..] {
            for span in [server, client] {
                assert_eq!(span.name, "shop.Cart/Add");
                assert_attributes(
                    span,
                    &[
                        ("rpc.system.name", "grpc"),
                        ("rpc.method", "shop.Cart/Add"),
                        ("rpc.response.status_code", name),
                        ("server.port", "80"),
                    ],
                );
            }
            assert_eq!(server.status.is_some(), is_servers);
            assert_eq!(error_of(client).as_deref(), Some(name));
        }
    }
}

#[test]
fn a_connection_that_is_no_http_has_one_span() {
    let settings = settings("connections: true");
    let trace = Trace::connection(&settings, None, &Ids::seeded(1, 2), Instant::now());
    let record = Record {
        protocol: Protocol::Tls,
        request: None,
        status: None,
        sni: Some("db.test"),
        failure: Some(Failure::IdleTimeout),
        ..test_record()
    };
    let spans = spans(&settings, &trace, &record, &[]);
    let [span] = &spans[..] else {
        panic!("{spans:?}");
    };
    assert_eq!((span.kind, &*span.name), (SpanKind::Client as i32, "tls"));
    assert!(span.parent_span_id.is_empty());
    assert_eq!(error_of(span).as_deref(), Some("idle_timeout"));
    assert_attributes(
        span,
        &[
            ("network.transport", "tcp"),
            ("server.address", "db.test"),
            ("server.port", "80"),
            ("network.peer.address", "203.0.113.7"),
            ("outrigger.bytes_sent", "200"),
        ],
    );
}

#[test]
fn targets_and_methods_of_every_form_are_told() {
    let settings = settings("");
    for (method, target, host, expected) in [
        (
            "GET",
            &b"http://user:word@a.test:81/x?q"[..],
            Some(&b"other"[..]),
            &[
                ("url.path", "/x"),
                ("server.address", "a.test"),
                ("server.port", "81"),
            ][..],
        ),
        (
            "BREW",
            b"/\xff",
            Some(b"[2001:db8::1]"),
            &[
                ("http.request.method", "_OTHER"),
                ("http.request.method_original", "BREW"),
                ("url.path", "/\u{fffd}"),
                ("server.address", "2001:db8::1"),
                ("server.port", "80"),
            ],
        ),
        (
            "OPTIONS",
            b"*",
            None,
            &[
                ("url.path", "*"),
                ("server.address", "203.0.113.7"),
                ("server.port", "80"),
            ],
        ),
    ] {
        let record = Record {
            request: Some(RequestLine {
                method,
                target,
                host,
            }),
            ..test_record()
        };
        let mut trace = begin(&settings, &[]);
        trace.reached(peer());
        let spans = spans(&settings, &trace, &record, &[]);
        assert_attributes(&spans[0], expected);
        assert!(!format!("{spans:?}").contains("word"));
    }
}

#[test]
fn attempts_without_end_have_spans_with_one() {
    let settings = settings("");
    let ids = Ids::seeded(1, 2);
    let mut trace = begin(&settings, &[]);
    for _ in 0..1000 {
        trace.reached(peer());
        trace.answered(503);
        trace.again(&ids, Instant::now());
    }
    trace.reached(peer());
    let spans = spans(&settings, &trace, &test_record(), &[]);
    assert_eq!(spans.len(), 1 + 16);
}

proptest! {
    #[test]
    fn whatever_a_client_sends_the_official_types_read_and_it_is_bounded(
        method in "[A-Z!]{1,2000}",
        target in proptest::collection::vec(any::<u8>(), 0..3000),
        host in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..2000)),
        agent in "\\PC{0,2000}",
        status in proptest::option::of(100_u16..600),
        millis in 0_u64..100_000,
    ) {
        let settings = settings("");
        let headers = [("user-agent", &*agent), ("content-type", "application/grpc")];
        let mut trace = begin(&settings, &headers);
        trace.reached(peer());
        let record = Record {
            request: Some(RequestLine { method: &method, target: &target, host: host.as_deref() }),
            status,
            duration: Duration::from_millis(millis),
            ..test_record()
        };
        let spans = spans(&settings, &trace, &record, &headers);
        prop_assert_eq!(spans.len(), 2);
        for span in spans {
            prop_assert!(span.encoded_len() < 12 * 1024, "{}", span.encoded_len());
        }
    }
}
