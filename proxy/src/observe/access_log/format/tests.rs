use std::sync::Arc;

use outrigger_config::{OPERATORS, parse};

use super::*;
use crate::{
    failure::Failure,
    observe::{Captured, SpanId, TraceId, TraceIds, record::tests::record},
};

fn line_of(format: &str, record: &Record<'_>, captured: impl FnOnce(&mut Captured)) -> String {
    let settings = parse(&format!("access_log: {{ to: stdout, format: {format} }}"))
        .unwrap_or_else(|problems| panic!("{format}: {problems:?}"));
    let mut wanted = Wanted::default();
    let format = Format::of(&settings.access_log[0].format, &mut wanted);
    let mut kept = Captured::new(Arc::new(wanted));
    captured(&mut kept);
    let record = Record {
        captured: Some(&kept),
        ..*record
    };
    let here = Here {
        instance: "0123456789abcdef".into(),
        hostname: "node-1".into(),
    };
    let now = jiff::Timestamp::from_microsecond(1_767_225_600_123_456).expect("a time");
    let mut out = Vec::new();
    format.write(&mut out, &here, now, &record);
    String::from_utf8(out).expect("text")
}

fn line(format: &str, record: &Record<'_>) -> String {
    line_of(format, record, |_| {})
}

#[test]
fn each_operator_says_what_envoys_says() {
    let failed = Record {
        failure: Some(Failure::Overflow),
        status: Some(503),
        upstream: None,
        upstream_local: None,
        attempts: 0,
        trace: Some(TraceIds {
            trace: TraceId::new(0xab).expect("not zero"),
            span: SpanId::new(7).expect("not zero"),
            is_exported: true,
        }),
        sni: Some("sni.test"),
        answered: None,
        ..record()
    };
    let answered = Record {
        answered: Some(Duration::from_millis(1)),
        duration: Duration::from_millis(3),
        ..record()
    };
    for (operator, of_answered, of_failed) in [
        (
            "START_TIME",
            "2026-01-01T00:00:00.120Z",
            "2026-01-01T00:00:00.121Z",
        ),
        (
            "START_TIME(%d/%b/%Y:%H:%M:%S %z)",
            "01/Jan/2026:00:00:00 +0000",
            "01/Jan/2026:00:00:00 +0000",
        ),
        ("PROTOCOL", "HTTP/1.1", "HTTP/1.1"),
        ("METHOD", "GET", "GET"),
        ("PATH", "/", "/"),
        ("RESPONSE_CODE", "200", "503"),
        ("RESPONSE_CODE_DETAILS", "via_upstream", "overflow"),
        ("RESPONSE_FLAGS", "-", "UO"),
        ("RESPONSE_FLAGS_LONG", "-", "UpstreamOverflow"),
        ("BYTES_RECEIVED", "100", "100"),
        ("BYTES_SENT", "200", "200"),
        ("DURATION", "3", "1"),
        ("RESPONSE_DURATION", "1", "-"),
        ("RESPONSE_TX_DURATION", "2", "-"),
        ("UPSTREAM_HOST", "203.0.113.7:80", "-"),
        ("UPSTREAM_CLUSTER", "-", "-"),
        ("UPSTREAM_LOCAL_ADDRESS", "192.0.2.9:50000", "-"),
        ("UPSTREAM_CONNECTION_REUSED", "false", "-"),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "1", "0"),
        (
            "DOWNSTREAM_REMOTE_ADDRESS",
            "127.0.0.1:40000",
            "127.0.0.1:40000",
        ),
        (
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
            "127.0.0.1",
            "127.0.0.1",
        ),
        ("DOWNSTREAM_REMOTE_PORT", "40000", "40000"),
        (
            "DOWNSTREAM_LOCAL_ADDRESS",
            "203.0.113.7:80",
            "203.0.113.7:80",
        ),
        (
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
            "203.0.113.7",
            "203.0.113.7",
        ),
        ("DOWNSTREAM_LOCAL_PORT", "80", "80"),
        ("REQUESTED_SERVER_NAME", "-", "sni.test"),
        ("ROUTE_NAME", "-", "-"),
        ("TRACE_ID", "-", "000000000000000000000000000000ab"),
        ("CONNECTION_ID", "7", "7"),
        ("GRPC_STATUS", "-", "-"),
        ("GRPC_STATUS_NUMBER", "-", "-"),
        ("HOSTNAME", "node-1", "node-1"),
        ("INSTANCE", "0123456789abcdef", "0123456789abcdef"),
        ("REQ(:METHOD)", "GET", "GET"),
        ("REQ(:AUTHORITY):7", "example", "example"),
        ("REQ(X-NONE?:PATH)", "/", "/"),
        ("RESP(SERVER)", "-", "-"),
        ("TRAILER(X)", "-", "-"),
    ] {
        let format = format!("'a %{operator}% b'");
        assert_eq!(
            line(&format, &answered),
            format!("a {of_answered} b\n"),
            "{operator}"
        );
        assert_eq!(
            line(&format, &failed),
            format!("a {of_failed} b\n"),
            "{operator}"
        );
    }
}

#[test]
fn an_operator_alone_in_json_keeps_its_type() {
    let format = "{ json: { code: '%RESPONSE_CODE%', text: 'code %RESPONSE_CODE%', none: '%UPSTREAM_CLUSTER%', reused: '%UPSTREAM_CONNECTION_REUSED%', within: { flags: '%RESPONSE_FLAGS%' } } }";
    assert_eq!(
        line(format, &record()),
        "{\"code\":200,\"text\":\"code 200\",\"none\":null,\"reused\":false,\"within\":{\"flags\":null}}\n"
    );
}

#[test]
fn the_decision_is_an_object_in_json_and_none_where_nothing_failed() {
    let failed = Record {
        failure: Some(Failure::ConnectTimeout),
        ..record()
    };
    let format = "{ json: { decision: '%DECISION%' } }";
    let told: serde_json::Value = serde_json::from_str(&line(format, &failed)).expect("JSON");
    assert_eq!(told["decision"]["failed"], "connect_timeout");
    assert_eq!(line(format, &record()), "{\"decision\":null}\n");
}

#[test]
fn headers_are_shown_escaped_and_cut() {
    let keep = |kept: &mut Captured| {
        kept.keep(HeaderOf::Response, |name, show| match name {
            "server" => show(b"evil\"\r\nHTTP \x1b[31m\xff"),
            "x-long" => show(&[b'a'; 5000]),
            _ => {}
        });
        kept.keep(HeaderOf::Trailer, |name, show| {
            if name == "grpc-status" {
                show(b"14");
            }
        });
    };
    let format = "'%RESP(Server)% %RESP(X-NONE?SERVER):4% %GRPC_STATUS% %GRPC_STATUS_NUMBER% %TRAILER(grpc-status)%'";
    assert_eq!(
        line_of(format, &record(), keep),
        "evil\\\"\\u000d\\u000aHTTP \\u001b[31m\u{fffd} evil Unavailable 14 14\n"
    );
    let long = line_of("'%RESP(X-LONG)%'", &record(), keep);
    assert_eq!(long.len(), MAX_VALUE + 1);
}

#[test]
fn the_documentation_lists_exactly_the_operators_there_are() {
    let page = include_str!("../../../../../docs/access-log.md");
    let mut documented: Vec<_> = page
        .lines()
        .filter_map(|row| row.strip_prefix("| `%")?.split(['%', '(']).next())
        .collect();
    let mut known = OPERATORS.to_vec();
    documented.sort_unstable();
    known.sort_unstable();
    assert_eq!(documented, known);
}

#[test]
fn the_documentation_lists_exactly_the_flags_there_are() {
    let page = include_str!("../../../../../docs/access-log.md");
    let documented: Vec<_> = (page.lines())
        .filter_map(|row| {
            let cells: Vec<_> = row.split('`').collect();
            let [start, flag, _, long, ..] = cells[..] else {
                return None;
            };
            (start == "| " && flag.bytes().all(|b| b.is_ascii_uppercase())).then_some((flag, long))
        })
        .collect();
    let known: Vec<_> = outrigger_config::ResponseFlag::ALL
        .map(|flag| (flag.label(), flag.long()))
        .into();
    assert_eq!(documented, known);
}
