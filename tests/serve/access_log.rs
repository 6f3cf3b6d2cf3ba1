//! The access log, written about connections that were really captured.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    netns::{Pair, run},
    server::{Answer, Directory, Server, serve, wait_for},
};

/// Where the application dials.
const DESTINATION: &str = "10.77.0.2:80";

/// A proxy that an application's connections are redirected to, in namespaces of its own.
pub(crate) struct Captured {
    pub(crate) server: Server,
    pub(crate) directory: Directory,
    upstream: TcpListener,
    pair: Pair,
}

impl Captured {
    /// With the given configuration, in which `DIR` stands for a directory that the proxy may
    /// write to.
    pub(crate) fn start(config: &str) -> Self {
        let directory = Directory::new("captured");
        let path = directory.file("").display().to_string();
        let config = directory.write("config.yaml", &config.replace("DIR/", &path));
        let pair = Pair::new();
        let command = serve(&["--config", &config]);
        let server = pair.app.enter(|| Server::spawn(command));
        let port = server.listener.port();
        let rules = directory.write(
            "redirect.nft",
            &format!(
                "table ip redirect_by_hand {{
                    chain output {{
                        type nat hook output priority -150
                        meta skuid 1337 return
                        ip daddr 10.77.0.2 tcp dport 80 redirect to :{port}
                    }}
                }}\n"
            ),
        );
        pair.app.enter(|| run(&format!("nft -f {rules}")));
        let upstream = pair.peer.enter(|| TcpListener::bind(DESTINATION).unwrap());
        Self {
            server,
            directory,
            upstream,
            pair,
        }
    }

    /// The answer of the admin listener, which is in the namespace too.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.pair.app.enter(|| self.server.get(path))
    }

    /// Sends one request through the proxy and has it answered.
    pub(crate) fn request(&self, request: &[u8]) -> String {
        let mut client = self.connect();
        client.write_all(request).unwrap();
        let mut upstream = self.accept();
        upstream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            .unwrap();
        drop(upstream);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A request that has reached its destination and is not answered: the client's and the
    /// destination's ends.
    pub(crate) fn request_under_way(&self) -> (TcpStream, TcpStream) {
        let mut client = self.connect();
        client
            .write_all(b"GET /slow HTTP/1.1\r\nHost: slow.test\r\n\r\n")
            .unwrap();
        (client, self.accept())
    }

    fn connect(&self) -> TcpStream {
        let client = self
            .pair
            .app
            .enter(|| TcpStream::connect(DESTINATION).unwrap());
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        client
    }

    /// The proxy's connection, once a request head has come over it.
    fn accept(&self) -> TcpStream {
        let (mut stream, _) = self.upstream.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "{head:?}");
            head.push(byte[0]);
        }
        stream
    }
}

fn lines(path: &Path, count: usize) -> Vec<Value> {
    let lines = wait_for(&format!("{count} lines in the access log"), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        (text.lines().count() >= count).then(|| text.lines().map(str::to_owned).collect())
    });
    let lines: Vec<String> = lines;
    let parse =
        |line: &String| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    lines.iter().map(parse).collect()
}

#[test]
fn a_request_is_told_in_log_and_metrics() {
    let captured = Captured::start("access_log:\n  to: DIR/access.log\n");
    let answer =
        captured.request(b"GET /orders?token=s3cret HTTP/1.1\r\nHost: shop.test\r\nAuthorization: Bearer s3cret\r\n\r\n");
    assert!(answer.ends_with("ok"), "{answer}");
    let path = captured.directory.file("access.log");
    let line = &lines(&path, 1)[0];
    for (key, value) in [
        ("protocol", "http1"),
        ("destination", DESTINATION),
        ("upstream", DESTINATION),
        ("method", "GET"),
        ("target", "/orders?token=*"),
        ("host", "shop.test"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!(line["status"], 200, "{line}");
    assert_eq!(line["instance"], captured.server.started["instance"]);
    let client: SocketAddr = line["client"].as_str().unwrap().parse().unwrap();
    assert_eq!(client.ip().to_string(), "10.77.0.1");
    assert!(!fs::read_to_string(&path).unwrap().contains("s3cret"));
    let metrics = captured.get("/metrics");
    let labels = "destination=\"10.77.0.2:80\",protocol=\"http1\",code=\"200\",reason=\"none\"";
    assert_eq!(metrics.metric("outrigger_requests_total", labels), 1.0);
    let count = "outrigger_request_duration_seconds_count";
    assert_eq!(metrics.metric(count, "10.77.0.2:80"), 1.0);
}

#[test]
fn a_client_cannot_forge_a_line() {
    let captured = Captured::start("access_log:\n  to: DIR/access.log\n");
    let path = captured.directory.file("access.log");
    captured.request(b"GET /\"}{\"status\":500,\"x\":\" HTTP/1.1\r\nHost: h\r\n\r\n");
    captured.request(b"GET /%0a{\"status\":500} HTTP/1.1\r\nHost: h\xc2\x9b31m\xff\r\n\r\n");
    let lines = lines(&path, 2);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line["status"] == 200), "{lines:?}");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains('\u{9b}'), "{text}");
}

#[test]
fn a_log_that_was_moved_away_is_begun_anew_at_sigusr1() {
    let mut captured = Captured::start("access_log:\n  to: DIR/access.log\n");
    let path = captured.directory.file("access.log");
    let moved = captured.directory.file("access.log.1");
    captured.request(b"GET /before HTTP/1.1\r\nHost: h\r\n\r\n");
    lines(&path, 1);
    fs::rename(&path, &moved).unwrap();
    captured.server.signal(Signal::USR1);
    captured.server.logged("log reopened");
    captured.request(b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(lines(&path, 1)[0]["target"], "/after");
    assert_eq!(lines(&moved, 1).len(), 1);
}

#[test]
fn what_has_gathered_is_written_before_the_end() {
    let mut captured = Captured::start("access_log:\n  to: DIR/access.log\n");
    captured.request(b"GET /last HTTP/1.1\r\nHost: h\r\n\r\n");
    captured.server.signal(Signal::TERM);
    assert_eq!(captured.server.ended().code(), Some(0));
    let text = fs::read_to_string(captured.directory.file("access.log")).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn a_full_disk_costs_lines_which_are_counted_and_no_request() {
    let captured = Captured::start("access_log:\n  to: /dev/full\n");
    for _ in 0..3 {
        let answer = captured.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(answer.ends_with("ok"), "{answer}");
    }
    wait_for("three dropped lines", || {
        let metrics = captured.get("/metrics");
        let dropped = metrics.metric("outrigger_access_log_dropped_total", "");
        (dropped == 3.0).then_some(())
    });
}

#[test]
fn an_idle_upstream_connection_is_told_until_it_is_used_or_closed() {
    let captured = Captured::start("pool:\n  idle: 60s\n");
    let (mut client, mut upstream) = captured.request_under_way();
    let state = |state: &str| {
        let labels = format!("state=\"{state}\"");
        captured
            .get("/metrics")
            .metric("outrigger_upstream_connections", &labels)
    };
    assert_eq!((state("active"), state("idle")), (1.0, 0.0));
    upstream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .unwrap();
    let mut answer = [0; 38 + 2];
    client.read_exact(&mut answer).unwrap();
    wait_for("an idle connection", || {
        ((state("active"), state("idle")) == (0.0, 1.0)).then_some(())
    });
    drop(upstream);
    wait_for("no connection", || {
        ((state("active"), state("idle")) == (0.0, 0.0)).then_some(())
    });
}
