//! How a captured proxy ends, well or badly, and what the application notices.

mod support;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{Load, Namespace, SOON, SVC, SVC4, Speak, World, rounds, wait_until};

#[test]
fn a_terminated_proxy_fails_no_request_and_leaves_no_rule() {
    let world = World::new();
    let _nginx = world.nginx();
    for _ in 0..rounds(2, 20) {
        let mut proxy = world.captured();
        thread::scope(|scope| {
            let load = Load::start(scope, &world, 4, (SVC4, 80));
            load.flows(200);
            proxy.signal(Signal::TERM);
            assert!(proxy.wait(SOON).success(), "it exits with 0");
            load.flows(200);
            let failed = load.stop();
            assert!(
                failed.is_empty(),
                "{} failed: {:?}",
                failed.len(),
                failed.first()
            );
        });
        assert_no_rule(&world.app);
    }
}

#[test]
fn a_request_under_way_is_finished_before_the_proxy_ends() {
    let world = World::new();
    let (asked, is_asked) = std::sync::mpsc::channel();
    let (answer, may_answer) = std::sync::mpsc::channel::<()>();
    let may_answer = std::sync::Mutex::new(may_answer);
    let _peer = world.peer(80, move |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        asked.send(()).map_err(io::Error::other)?;
        let _ = may_answer.lock().expect("one request").recv_timeout(SOON);
        stream.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
    });
    let mut proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client.say("GET / HTTP/1.1\r\nHost: svc\r\n\r\n").unwrap();
    is_asked.recv_timeout(SOON).unwrap();
    proxy.signal(Signal::TERM);
    wait_until(SOON, "the listeners are closed", || {
        world.app.listeners_on(15001) == 0
    });
    assert!(proxy.exited().is_none(), "it waits for the request");
    answer.send(()).unwrap();
    let (_, body) = client.hear_response().unwrap();
    assert_eq!(body, "late");
    assert!(proxy.wait(SOON).success());
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let world = World::new();
    let _nginx = world.nginx();
    let mut proxy = world.captured();
    let mut clients: Vec<_> = (0..20).map(|_| world.app.connect((SVC4, 80))).collect();
    for client in &mut clients {
        client
            .say("GET /hello HTTP/1.1\r\nHost: svc\r\n\r\n")
            .unwrap();
        client.hear_response().unwrap();
    }
    proxy.signal(Signal::TERM);
    assert!(
        proxy.wait(SOON).success(),
        "the deadline is 30 s, and nothing needs it"
    );
    for mut client in clients {
        assert_eq!(
            client.hear_to_end().unwrap(),
            b"",
            "an orderly end, not a reset"
        );
    }
}

#[test]
fn a_tunnel_that_never_ends_is_cut_at_the_deadline() {
    let world = World::new();
    let _peer = world.peer(7, |stream| {
        io::copy(&mut stream.try_clone()?, &mut &stream).map(drop)
    });
    let mut proxy = world.serve("timeouts: { drain: 500ms }");
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 7));
    client.say("\x01").unwrap();
    client.hear(1).unwrap();
    let told = Instant::now();
    proxy.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(100));
    client.say("\x01").unwrap();
    client.hear(1).expect("until then it flows");
    assert!(proxy.wait(SOON).success());
    assert!(told.elapsed() >= Duration::from_millis(500));
    let ended = client.hear(1).map_err(|error| error.kind());
    assert_ne!(ended, Err(io::ErrorKind::WouldBlock));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let world = World::new();
    let _peer = world.peer(7, |stream| {
        io::copy(&mut stream.try_clone()?, &mut &stream).map(drop)
    });
    let mut proxy = world.captured();
    let mut client = world.app.connect((SVC4, 7));
    client.say("\x01").unwrap();
    client.hear(1).unwrap();
    proxy.signal(Signal::TERM);
    wait_until(SOON, "it drains", || world.app.listeners_on(15001) == 0);
    proxy.signal(Signal::TERM);
    assert!(proxy.wait(SOON).success());
}

#[test]
fn a_proxy_killed_at_rest_leaves_no_rule_and_the_next_connection_goes_direct() {
    let world = World::new();
    let _peer = world.peer(7, |mut stream| stream.say("hello"));
    for _ in 0..rounds(5, 200) {
        let mut proxy = world.captured();
        assert!(
            world.app.ruleset().contains("redirect"),
            "{}",
            world.app.ruleset()
        );
        proxy.kill();
        wait_until(SOON, "a connection goes direct", || {
            SVC.iter().all(|svc| {
                world
                    .app
                    .try_connect((*svc, 7))
                    .and_then(|mut client| client.hear_to_end())
                    .is_ok_and(|heard| heard == b"hello")
            })
        });
        assert_no_rule(&world.app);
    }
}

#[test]
fn a_proxy_killed_under_load_costs_what_was_under_way_and_nothing_after() {
    let world = World::new();
    let _nginx = world.nginx();
    for _ in 0..rounds(5, 200) {
        let mut proxy = world.captured();
        thread::scope(|scope| {
            let load = Load::start(scope, &world, 4, (SVC4, 80));
            load.flows(100);
            proxy.kill();
            let killed = Instant::now();
            load.flows(100);
            for failed in load.stop() {
                assert!(
                    failed.began <= killed + Duration::from_millis(100),
                    "began {:?} after the kill: {}",
                    failed.began - killed,
                    failed.error
                );
                assert!(
                    failed.ended <= killed + Duration::from_secs(1),
                    "hung for {:?} after the kill",
                    failed.ended - killed
                );
            }
        });
        assert_no_rule(&world.app);
    }
}

#[test]
fn live_connections_of_a_killed_proxy_end_at_once() {
    let world = World::new();
    let _peer = world.peer(7, |stream| {
        io::copy(&mut stream.try_clone()?, &mut &stream).map(drop)
    });
    let mut proxy = world.captured();
    let mut clients: Vec<_> = SVC
        .iter()
        .cycle()
        .take(100)
        .map(|svc| world.app.connect((*svc, 7)))
        .collect();
    for client in &mut clients {
        client.say("\x01").unwrap();
        client.hear(1).unwrap();
    }
    proxy.kill();
    let killed = Instant::now();
    for mut client in clients {
        let ended = client.hear_to_end().map_err(|error| error.kind());
        assert!(
            matches!(&ended, Ok(_) | Err(io::ErrorKind::ConnectionReset)),
            "{ended:?}"
        );
    }
    assert!(
        killed.elapsed() < Duration::from_secs(2),
        "{:?}",
        killed.elapsed()
    );
}

#[test]
fn connections_that_lived_before_the_capture_live_through_it_and_after_it() {
    let world = World::new();
    let _peer = world.peer(7, |stream| {
        io::copy(&mut stream.try_clone()?, &mut &stream).map(drop)
    });
    let mut clients: Vec<_> = SVC
        .iter()
        .cycle()
        .take(100)
        .map(|svc| world.app.connect((*svc, 7)))
        .collect();
    let mut all_answer = |when: &str| {
        for client in &mut clients {
            client
                .say("\x01")
                .unwrap_or_else(|error| panic!("{when}: {error}"));
            client
                .hear(1)
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    };
    all_answer("before");
    let mut proxy = world.captured();
    all_answer("while captured");
    assert!(world.remove_rules().status.success());
    all_answer("after the capture");
    world.capture(&proxy);
    all_answer("captured again");
    proxy.kill();
    wait_until(SOON, "the rules are gone", || {
        !world.app.ruleset().contains("redirect")
    });
    all_answer("after the proxy");
}

#[test]
fn removing_the_rules_lets_captured_connections_flow_on() {
    let world = World::new();
    let _peer = world.peer(7, |stream| {
        io::copy(&mut stream.try_clone()?, &mut &stream).map(drop)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 7));
    client.say("\x01").unwrap();
    client.hear(1).unwrap();
    assert!(world.remove_rules().status.success());
    assert!(
        !world.app.ruleset().contains("redirect"),
        "{}",
        world.app.ruleset()
    );
    for _ in 0..10 {
        client.say("\x01").unwrap();
        client.hear(1).expect("it still flows through the proxy");
    }
}

#[test]
fn a_hangup_does_not_end_it() {
    let world = World::new();
    let _nginx = world.nginx();
    let mut proxy = world.captured();
    proxy.signal(Signal::HUP);
    for _ in 0..5 {
        assert_eq!(
            world.app.sh("curl -sS http://198.51.100.2/hello"),
            "hello\n"
        );
    }
    assert!(proxy.exited().is_none());
}

#[track_caller]
fn assert_no_rule(app: &Namespace) {
    wait_until(SOON, "no rule is left", || app.ruleset().trim().is_empty());
}
