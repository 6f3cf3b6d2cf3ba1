use std::{fs, time::Duration};

use outrigger_config::parse;
use proptest::prelude::*;

use super::*;
use crate::observe::{Protocol, RequestLine, record::tests::record};

/// What each log of `config` says of `record`, a file each.
fn lines(config: &str, records: &[Record<'_>]) -> Vec<String> {
    let directory = std::env::temp_dir().join(format!(
        "outrigger-access-log-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::create_dir_all(&directory).expect("a directory");
    let config = config.replace("DIR", &directory.display().to_string());
    let settings = parse(&config).expect("a configuration");
    let sinks = Sinks::new(1);
    let logs = AccessLogs::open(&settings.access_log, &sinks, "0123456789abcdef");
    let logs = logs.expect("files").expect("logs");
    let rng = crate::cluster::Rng::new(1);
    for record in records {
        logs.write(0, record, &rng);
    }
    sinks.close(Duration::from_secs(20));
    let mut files: Vec<_> = (fs::read_dir(&directory).expect("it").flatten())
        .map(|file| file.path())
        .collect();
    files.sort();
    let texts = files.iter().map(|f| fs::read_to_string(f).expect("a log"));
    let texts = texts.collect();
    fs::remove_dir_all(&directory).expect("it goes");
    texts
}

fn failed() -> Record<'static> {
    Record {
        failure: Some(Failure::UpstreamClosed),
        status: Some(502),
        duration: Duration::from_secs(2),
        ..record()
    }
}

#[test]
fn an_answered_request_in_json() {
    let line = &lines("access_log: { to: DIR/log }", &[record()])[0];
    let (time, rest) = line.split_once(',').expect("a time first");
    assert!(time.starts_with(r#"{"time":"2"#), "{line}");
    assert_eq!(
        rest,
        concat!(
            r#""protocol":"http1","connection":7,"client":"127.0.0.1:40000","#,
            r#""destination":"203.0.113.7:80","upstream":"203.0.113.7:80","upstream_reused":false,"#,
            r#""method":"GET","target":"/","host":"example.test","status":200,"#,
            r#""bytes_received":100,"bytes_sent":200,"duration_us":1500,"instance":"0123456789abcdef"}"#,
            "\n"
        )
    );
}

#[test]
fn a_failed_connection_in_text_says_whose_fault_it_was_and_what_to_do() {
    let failed = Record {
        protocol: Protocol::Opaque,
        upstream: None,
        request: None,
        status: None,
        failure: Some(Failure::ConnectRefused),
        ..record()
    };
    let line = &lines("access_log: { to: DIR/log, format: text }", &[failed])[0];
    for words in [
        " protocol=opaque connection=7 client=127.0.0.1:40000 destination=203.0.113.7:80 ",
        " flags=UF reason=connect_refused fault=upstream ",
        " details=\"destination refused the connection\" ",
        r#"\"do\":\"check that the destination runs and listens on this port\""#,
        " bytes_received=100 bytes_sent=200 duration_us=1500 instance=0123456789abcdef\n",
    ] {
        assert!(line.contains(words), "{words} not in {line}");
    }
}

#[test]
fn passwords_and_query_values_are_never_logged() {
    for (target, shown) in [
        (&b"/plain"[..], "/plain"),
        (
            b"http://user:secret@host/a@b?token=secret",
            "http://host/a@b?token=*",
        ),
        (b"user:secret@host:443", "host:443"),
        (b"/a?x=secret&y=secret&secret", "/a?x=*&y=*&*"),
        (b"/a?", "/a?"),
        (b"*", "*"),
    ] {
        let request = RequestLine {
            method: "GET",
            target,
            host: Some(b"user:secret@host"),
        };
        let record = Record {
            request: Some(request),
            ..record()
        };
        let texts = lines(
            "access_log:\n- { to: DIR/a }\n- { to: DIR/b, format: '%REQ(:PATH)% %PATH% %REQ(:AUTHORITY)%' }\n",
            &[record],
        );
        let line: serde_json::Value = serde_json::from_str(&texts[0]).expect("JSON");
        assert_eq!(line["target"], shown);
        assert_eq!(texts[1], format!("{shown} {shown} host\n"));
    }
}

#[test]
fn filters_choose_by_status_duration_and_flag_in_any_combination() {
    let slow = Record {
        duration: Duration::from_millis(700),
        ..record()
    };
    let not_found = Record {
        status: Some(404),
        ..record()
    };
    let tunnel = Record {
        protocol: Protocol::Opaque,
        status: None,
        ..record()
    };
    let records = [record(), slow, not_found, tunnel, failed()];
    for (filter, passed) in [
        ("{ status: { min: 400 } }", "2 4"),
        ("{ status: { min: 404, max: 404 } }", "2"),
        ("{ duration: { min: 700ms } }", "1 4"),
        ("{ duration: { max: 700ms } }", "0 1 2 3"),
        ("{ flags: [UC] }", "4"),
        ("{ flags: [] }", "4"),
        ("{ flags: [UF] }", ""),
        (
            "{ or: [{ status: { min: 400, max: 499 } }, { duration: { min: 500ms } }] }",
            "1 2 4",
        ),
        (
            "{ and: [{ status: { min: 400 } }, { duration: { min: 500ms } }] }",
            "4",
        ),
        ("{ not: { status: { max: 399 } } }", "2 3 4"),
        ("{ duration: { min: 500ms }, not: { flags: [] } }", "1"),
    ] {
        let chosen: Vec<_> = (0..records.len())
            .filter(|&n| {
                let text = format!("access_log: {{ to: /x, filter: {filter} }}");
                let settings = parse(&text).expect("a filter");
                passes(
                    settings.access_log[0].filter.as_ref().expect("one"),
                    &records[n],
                )
            })
            .map(|n| n.to_string())
            .collect();
        assert_eq!(chosen.join(" "), passed, "{filter}");
    }
}

#[test]
fn a_sample_is_about_the_share_that_was_asked_for() {
    let records = [record(); 2000];
    let texts = lines(
        "access_log:\n- { to: DIR/a, sample: 25 }\n- { to: DIR/b, sample: 0 }\n",
        &records,
    );
    let count = texts[0].lines().count();
    assert!((400..600).contains(&count), "{count}");
    assert_eq!(texts[1], "");
}

#[test]
fn logs_with_the_same_file_share_it_and_a_gone_one_is_closed() {
    let path = std::env::temp_dir().join(format!("outrigger-shared-log-{}", std::process::id()));
    let text = format!("access_log: {{ to: {} }}", path.display());
    let settings = parse(&text).expect("a configuration");
    let sinks = Sinks::new(1);
    let open = || {
        let logs = AccessLogs::open(&settings.access_log, &sinks, "i").expect("a file");
        logs.expect("a log")
    };
    let (one, two) = (open(), open());
    assert!(Arc::ptr_eq(&one.logs[0].sink, &two.logs[0].sink));
    assert_eq!(sinks.reopen(), 1);
    drop(one);
    assert_eq!(sinks.reopen(), 1);
    drop(two);
    assert_eq!(sinks.reopen(), 0);
    fs::remove_file(path).expect("it was made");
}

#[test]
fn a_log_without_headers_wants_nothing_kept() {
    for (format, is_wanted) in [
        ("json", false),
        ("'%RESPONSE_CODE% %REQ(:PATH)% %DURATION%'", false),
        ("'%RESP(server)%'", true),
        ("'%RESPONSE_DURATION%'", true),
        ("{ json: { s: { t: '%GRPC_STATUS%' } } }", true),
    ] {
        let settings = parse(&format!("access_log: {{ to: stdout, format: {format} }}"));
        let settings = settings.expect("a format");
        let logs = AccessLogs::open(&settings.access_log, &Sinks::new(1), "i");
        let logs = logs.expect("stdout").expect("a log");
        assert_eq!(logs.wanted().is_some(), is_wanted, "{format}");
    }
}

proptest! {
    #[test]
    fn no_bytes_can_forge_a_line_in_any_format(value: Vec<u8>) {
        let request = RequestLine { method: "GET", target: &value, host: Some(&value) };
        let record = Record { request: Some(request), ..record() };
        let texts = lines(
            "access_log:\n- { to: DIR/a }\n- { to: DIR/b, format: text }\n- { to: DIR/c, format: '\"%REQ(:AUTHORITY)%\" %PATH%' }\n- { to: DIR/d, format: { json: { a: '%REQ(:AUTHORITY)%', b: 'x %PATH%' } } }\n",
            &[record],
        );
        for text in &texts {
            prop_assert_eq!(text.lines().count(), 1, "{}", text);
        }
        for json in [&texts[0], &texts[3]] {
            prop_assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{}", json);
        }
    }
}
