use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

use crate::server::{Server, wait_for};

#[test]
fn live_ready_metrics_and_a_listing_are_answered() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/live").body, "live\n");
    let ready = server.get("/ready");
    assert_eq!(ready.status, 200);
    assert_eq!(
        ready.json(),
        serde_json::json!({"ready": true, "workers": 2, "accepting": 2, "reasons": []})
    );
    let metrics = server.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("text/plain; version=0.0.4"));
    assert_eq!(metrics.metric("outrigger_workers_accepting", ""), 2.0);
    assert!(metrics.metric("process_resident_memory_bytes", "") > 1e6);
    assert!(metrics.metric("process_open_fds", "") > 5.0);
    for path in ["/", "/nothing"] {
        let listing = server.get(path).body;
        assert!(listing.contains("/ready"), "{listing}");
    }
    assert_eq!(server.get("/nothing").status, 404);
}

#[test]
fn open_metrics_is_spoken_to_who_asks_for_it() {
    let server = Server::start(&[]);
    let answer = server.ask(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n",
    );
    assert!(answer.head.contains("application/openmetrics-text"));
    assert!(answer.body.ends_with("# EOF\n"));
}

#[test]
fn only_get_and_head_are_allowed() {
    let server = Server::start(&[]);
    let refused = server.ask("POST /live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    assert_eq!(refused.status, 405);
    assert!(refused.head.contains("allow: get, head"), "{refused:?}");
    let head = server.ask("HEAD /metrics HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn a_web_page_cannot_read_it_through_a_name_of_its_own() {
    let server = Server::start(&[]);
    let refused = server.ask(
        "GET /metrics HTTP/1.1\r\nHost: rebound.attacker.example:15000\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(refused.status, 421);
    assert!(!refused.body.contains("outrigger_"), "{refused:?}");
}

#[test]
fn what_it_exposes_is_in_order_for_promtool() {
    let server = Server::start(&[]);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test runs `promtool`; install the Debian package `prometheus`");
    let text = server.get("/metrics").body;
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn scrapers_that_never_read_or_never_ask_keep_no_probe_out() {
    let server = Server::start(&[]);
    let stuck: Vec<_> = (0..200)
        .map(|n| {
            let mut stream = TcpStream::connect(server.admin).unwrap();
            let request = if n % 2 == 0 {
                "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            } else {
                "GET /met"
            };
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.get("/live").status, 200);
    let mut stranger = TcpStream::connect(server.listener).unwrap();
    let end = stranger.read(&mut [0]);
    assert!(end.is_err() || end.is_ok_and(|n| n == 0));
    assert!(server.get("/metrics").metric("process_open_fds", "") < 150.0);
    drop(stuck);
}

#[test]
fn connections_that_nobody_redirected_are_reset_and_counted() {
    let server = Server::start(&[]);
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.listener).unwrap();
        // Reset, so that no client takes it for an orderly end.
        assert!(stream.read(&mut [0]).is_err());
    }
    // The client may learn of the reset before the proxy is done with it.
    let metrics = wait_for("no live connection", || {
        let metrics = server.get("/metrics");
        (metrics.metric("outrigger_connections_live", "") == 0.0).then_some(metrics)
    });
    let accepted = metrics.metric("outrigger_connections_accepted_total", "");
    assert_eq!(accepted, 3.0);
    let refused = "outrigger_connections_refused_total";
    assert_eq!(metrics.metric(refused, "reason=\"not_redirected\""), 3.0);
}
