//! A proxy that hangs without dying: the lease ends its capture, and gives it back.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    INSTALL, REMOVE, STATUS,
    netns::{Namespace, Pair, run},
    proxyctl::{Running, ctl, proxyctl, start, until},
    wire::{Client, V4, assert_captured, until_captured, until_direct, wire},
};

/// The default of `capture.lease`.
const LEASE: Duration = Duration::from_secs(2);
/// What the kernel's clock and an ordinary scheduler may add to it.
const SLACK: Duration = Duration::from_millis(100);

#[test]
fn a_stopped_proxy_loses_new_connections_within_its_lease_and_has_them_again() {
    let pair = wire();
    let proxy = serve(&pair);
    ctl(&pair.app, INSTALL).expect("captured");
    let mut live = Client::connect(&pair.app, V4);
    assert!(live.is_captured);

    proxy.signal("STOP");
    let stopped = Instant::now();
    assert!(is_stuck(&pair.app, V4), "the lease was not in force");
    wait_until(stopped + LEASE + SLACK);
    assert_captured(&pair, false);

    proxy.signal("CONT");
    until_captured(&pair);
    live.check();
    let figures = metrics(&pair.app);
    assert_eq!(figures.of("outrigger_capture_active"), 1.0);
    assert_eq!(figures.of("outrigger_capture_lapses_total"), 1.0);
    assert!(figures.of("outrigger_capture_lapsed_seconds_total") > 0.0);
}

/// The other workers and the control thread go on; only one event loop no longer turns.
#[test]
fn a_worker_that_no_longer_turns_ends_the_capture_within_its_lease() {
    let pair = wire();
    let proxy = serve(&pair);
    ctl(&pair.app, INSTALL).expect("captured");
    let worker = thread_named(&proxy, "worker-1");
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-p", &worker.to_string()]);
    // Longer than this test: each system call of this one thread waits before it is made.
    strace.args(["-e", "inject=all:delay_enter=600s"]);
    let hanging = start(&pair.app, strace);
    until("strace's grip on the worker", || is_traced(&proxy, worker));
    let hung = Instant::now();
    // The worker may turn once more before its next system call, and a beat may follow that turn.
    wait_until(hung + LEASE / 4 + LEASE + SLACK);
    assert_captured(&pair, false);
    assert_lapsed(&pair, "worker 1 hangs");
    // It holds the rules still, but an install does not take that for a capture.
    let again = ctl(&pair.app, INSTALL).expect("refused");
    assert_eq!(again.text("check"), "canary");

    drop(hanging);
    until_captured(&pair);
}

/// Regression guard for the control datagram: EPERM alone would be taken for the rules' answer.
#[test]
fn a_foreign_drop_is_told_from_the_capture() {
    let pair = wire();
    let _proxy = serve(&pair);
    ctl(&pair.app, INSTALL).expect("captured");
    pair.app.enter(|| {
        run("nft add table inet foreign");
        run("nft add chain inet foreign out { type filter hook output priority -400 ; }");
        run("nft add rule inet foreign out oif lo meta l4proto udp drop");
    });
    until_lapsed(&pair);
    until_direct(&pair);
    assert_lapsed(&pair, "a foreign rule drops every datagram");

    pair.app.enter(|| run("nft delete table inet foreign"));
    until_captured(&pair);
}

/// In a zone of its own a connection has no original destination that the proxy could be told: it
/// would reset every one.
#[test]
fn a_conntrack_zone_ends_the_capture() {
    let pair = wire();
    let _proxy = serve(&pair);
    ctl(&pair.app, INSTALL).expect("captured");
    pair.app.enter(|| {
        run("nft add table inet foreign");
        run("nft add chain inet foreign out { type filter hook output priority -300 ; }");
        run("nft add rule inet foreign out ct zone set 7");
    });
    until_lapsed(&pair);
    until_direct(&pair);
    assert_lapsed(&pair, "did not come with its original destination");

    pair.app.enter(|| run("nft delete table inet foreign"));
    until_captured(&pair);
}

#[test]
fn a_capture_removed_on_purpose_is_no_lapse() {
    let pair = wire();
    let _proxy = serve(&pair);
    ctl(&pair.app, INSTALL).expect("captured");
    ctl(&pair.app, REMOVE).expect("removed");
    assert_captured(&pair, false);
    let removed = Instant::now();
    wait_until(removed + LEASE + SLACK);
    let figures = metrics(&pair.app);
    assert_eq!(figures.of("outrigger_capture_active"), 0.0);
    assert_eq!(figures.of("outrigger_capture_lapses_total"), 0.0);
}

/// With an admin listener, unlike other tests' proxies.
fn serve(pair: &Pair) -> Running {
    let mut command = Command::new(proxyctl());
    command.args(["serve", "--workers", "2"]);
    command.stderr(Stdio::null());
    let proxy = start(&pair.app, command);
    until("the proxy", || {
        pair.app
            .enter(|| TcpStream::connect(("127.0.0.1", 15000)).is_ok())
    });
    proxy
}

struct Metrics(String);

fn metrics(namespace: &Namespace) -> Metrics {
    let mut text = String::new();
    let mut stream = namespace.enter(|| TcpStream::connect(("127.0.0.1", 15000)).unwrap());
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    stream.read_to_string(&mut text).unwrap();
    Metrics(text)
}

impl Metrics {
    fn of(&self, name: &str) -> f64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap_or_else(|| panic!("no {name}: {}", self.0));
        value.trim().parse().unwrap()
    }
}

#[track_caller]
fn assert_lapsed(pair: &Pair, why: &str) {
    assert_eq!(metrics(&pair.app).of("outrigger_capture_active"), 0.0);
    let status = ctl(&pair.app, STATUS).expect("lapsed");
    assert_eq!((status.code, &status.json["lapses"]), (1, &1.into()));
    assert!(status.text("obstacle").contains(why), "{status:?}");
}

fn until_lapsed(pair: &Pair) {
    until("the end of the lease", || {
        metrics(&pair.app).of("outrigger_capture_active") == 0.0
    });
}

/// Whether a connection is taken and then left without a word.
fn is_stuck(namespace: &Namespace, address: &str) -> bool {
    let mut stream = namespace.enter(|| TcpStream::connect(address).unwrap());
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let read = stream.read(&mut [0]);
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn wait_until(instant: Instant) {
    thread::sleep(instant.saturating_duration_since(Instant::now()));
}

fn thread_named(proxy: &Running, name: &str) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .find(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == name)
        .and_then(|task| task.file_name()?.to_str()?.parse().ok())
        .unwrap_or_else(|| panic!("no thread {name}"))
}

fn is_traced(proxy: &Running, thread: u32) -> bool {
    let path = format!("/proc/{}/task/{thread}/status", proxy.pid());
    let status = fs::read_to_string(path).unwrap();
    !status.contains("TracerPid:\t0\n")
}
