//! Connections that live while capture begins, ends, or the proxy stops.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use rustix::process::Signal;

use crate::{
    crowd::{Crowd, Fate, echo},
    support::{Peer, SOON, SVC, Speak, World, figure, wait_until},
};

/// As many connections as the promise is made for, in the short form too: it takes a second.
const COUNT: usize = 1000;

#[test]
fn a_capture_that_begins_and_ends_leaves_every_live_connection_alone() {
    let world = World::new();
    let _echo = echo(&world);
    let mut clients = Crowd::open(&world, COUNT);
    let mut proxy = world.serve("");
    let ((), fate) = clients.survives(|| world.capture(&proxy));
    fate.assert_all_alive(COUNT);
    figure(
        "live connections as a capture begins",
        format!("{COUNT}: {fate:?}"),
        "bar: 0 reset",
    );
    // Regression guards: their entries and the hooks that keep them change each time.
    let (removed, fate) = clients.survives(|| world.remove_rules());
    assert!(removed.status.success());
    fate.assert_all_alive(COUNT);
    let ((), fate) = clients.survives(|| world.capture(&proxy));
    fate.assert_all_alive(COUNT);
    Crowd::open(&world, 1);
    let ((), fate) = clients.survives(|| proxy.kill());
    fate.assert_all_alive(COUNT);
}

#[test]
fn a_removal_leaves_every_captured_connection_alone() {
    let world = World::new();
    let _echo = echo(&world);
    let _proxy = world.captured();
    let mut clients = Crowd::open(&world, COUNT);
    assert_eq!(world.metric("outrigger_connections_live"), COUNT as f64);
    let (removed, fate) = clients.survives(|| world.remove_rules());
    assert!(removed.status.success());
    assert!(!world.app.ruleset().contains("redirect"));
    fate.assert_all_alive(COUNT);
    figure(
        "captured connections as the rules are removed",
        format!("{COUNT}: {fate:?}"),
        "bar: 0 reset, 0 hung",
    );
}

/// A quarter of them idle between two requests, a quarter waiting for an answer, a quarter asking
/// without a pause, a quarter opaque. Regression: a request that met the close of its idle
/// connection was reset.
#[test]
fn a_graceful_stop_resets_and_hangs_no_live_connection() {
    let world = World::new();
    let _echo = echo(&world);
    let web = Web::start(&world);
    let mut proxy = world.captured();
    let share = COUNT / 4;
    let open = || {
        SVC.iter()
            .cycle()
            .take(share)
            .map(|svc| keep_alive(&world, *svc))
    };
    let mut idle: Vec<_> = open().collect();
    let mut waiting: Vec<_> = open().collect();
    let busy: Vec<_> = open().collect();
    let mut opaque = Crowd::open(&world, share);
    for stream in &mut waiting {
        stream.say(request("/late")).unwrap();
    }
    wait_until(SOON, "the late ones wait", || web.waiting() == share);

    let mut fate = Fate::default();
    let asked = AtomicUsize::new(0);
    thread::scope(|scope| {
        let hands: Vec<_> = in_shares(busy, 4)
            .into_iter()
            .map(|streams| scope.spawn(|| ask_until_closed(streams, &asked)))
            .collect();
        wait_until(SOON, "requests", || asked.load(Ordering::Relaxed) > COUNT);
        proxy.signal(Signal::TERM);
        wait_until(SOON, "the drain", || world.app.listeners_on(15001) == 0);
        assert!(!world.app.ruleset().contains("redirect"));
        for hand in hands {
            for outcome in hand.join().expect("a hand does not panic") {
                fate.count(outcome);
            }
        }
    });
    for stream in &mut idle {
        fate.count(expect_end(stream));
    }
    opaque.fate().assert_all_alive(share);
    assert!(proxy.exited().is_none(), "it waits for what is under way");
    web.answer();
    for stream in &mut waiting {
        fate.count(stream.hear_response().and_then(|_| expect_end(stream)));
    }
    opaque.fate().assert_all_alive(share);
    drop(opaque);
    assert!(proxy.wait(SOON).success());
    assert_eq!(world.app.ruleset().trim(), "");
    figure(
        "live connections at a graceful stop",
        format!("{COUNT}: {fate:?}, and {share} opaque ones alive until they ended themselves"),
        "bar: 0 reset, 0 hung",
    );
    fate.assert_all_alive(3 * share);
}

/// A web server that keeps its connections, and answers `/late` when it is told to.
struct Web {
    waiting: Arc<AtomicUsize>,
    answer: mpsc::Sender<()>,
    _peer: Peer,
}

impl Web {
    fn start(world: &World) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        let (answer, may_answer) = mpsc::channel();
        let may_answer = Arc::new(std::sync::Mutex::new(may_answer));
        let count = waiting.clone();
        let peer = world.peer(80, move |mut stream| {
            while let Ok(head) = stream.hear_until("\r\n\r\n") {
                if head.starts_with("GET /late") {
                    count.fetch_add(1, Ordering::Relaxed);
                    // Told once each time that the sender lets one pass, and at its end.
                    let _ = may_answer.lock().expect("no panic").recv_timeout(SOON * 2);
                }
                stream.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
            Ok(())
        });
        Self {
            waiting,
            answer,
            _peer: peer,
        }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn answer(&self) {
        for _ in 0..self.waiting() {
            let _ = self.answer.send(());
        }
    }
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: svc\r\n\r\n")
}

/// A connection that has had one answer.
fn keep_alive(world: &World, svc: IpAddr) -> TcpStream {
    let mut stream = world.app.connect((svc, 80));
    stream.say(request("/")).unwrap();
    stream.hear_response().unwrap();
    stream
}

fn in_shares(mut streams: Vec<TcpStream>, shares: usize) -> Vec<Vec<TcpStream>> {
    let size = streams.len().div_ceil(shares);
    let mut parts = Vec::new();
    while !streams.is_empty() {
        let rest = streams.split_off(size.min(streams.len()));
        parts.push(std::mem::replace(&mut streams, rest));
    }
    parts
}

/// Each asks again and again until the other side closes between two requests.
fn ask_until_closed(streams: Vec<TcpStream>, asked: &AtomicUsize) -> Vec<io::Result<()>> {
    let mut outcomes = Vec::new();
    let mut open = streams;
    while !open.is_empty() {
        open.retain_mut(|stream| match ask(stream) {
            Ok(Asked::Again) => {
                asked.fetch_add(1, Ordering::Relaxed);
                true
            }
            Ok(Asked::Closed) => {
                outcomes.push(Ok(()));
                false
            }
            Err(error) => {
                outcomes.push(Err(error));
                false
            }
        });
    }
    outcomes
}

enum Asked {
    Again,
    Closed,
}

fn ask(stream: &mut TcpStream) -> io::Result<Asked> {
    // Whether it has been closed meanwhile is what the answer, or its absence, tells.
    match stream.say(request("/")) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let mut first = [0];
    match io::Read::read(stream, &mut first)? {
        0 => Ok(Asked::Closed),
        _ => {
            let (head, _) = stream.hear_response()?;
            if head.to_ascii_lowercase().contains("connection: close") {
                expect_end(stream)?;
                return Ok(Asked::Closed);
            }
            Ok(Asked::Again)
        }
    }
}

fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.hear_to_end()?.len() {
        0 => Ok(()),
        more => Err(io::Error::other(format!("{more} bytes more"))),
    }
}
