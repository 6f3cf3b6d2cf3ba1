//! What the proxy will not do, each with a counted reason, and never a hang.

mod support;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

use support::{
    SOON, SVC, SVC4, Speak, World,
    proxy::{PORT, proxys_own},
    wait_until,
};

#[test]
fn a_connection_that_nobody_redirected_is_reset_and_counted() {
    let world = World::new();
    let _proxy = world.serve("");
    for listener in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, PORT)),
    ] {
        assert_reset(world.app.try_connect(listener));
    }
    world.until_counted("outrigger_connections_refused_total", "not_redirected", 2.0);
}

#[test]
fn a_connection_to_the_listener_itself_is_refused_even_when_it_was_redirected() {
    let world = World::new();
    let _proxy = world.captured();
    assert_reset(world.app.try_connect((Ipv4Addr::LOCALHOST, PORT)));
    world.until_refused("not_redirected");
}

#[test]
fn the_proxys_port_on_another_address_of_the_host_leads_to_no_loop() {
    let world = World::new();
    let proxy = world.serve("");
    // Local destinations are not excluded here, so that the proxy's own port is captured too.
    world.app.sh(&format!(
        "nft 'table inet by_hand {{ chain output {{ type nat hook output priority -150; {} return; tcp dport {PORT} redirect to :{PORT}; }}; }}'",
        proxys_own()
    ));
    for address in support::APP {
        assert_reset(world.app.try_connect((address, PORT)));
    }
    world.until_refused("not_redirected");
    assert!(
        proxy.descriptors() < 100,
        "no connections to itself pile up"
    );
}

/// With few ports to choose from, an application's connection soon gets the port that one of the
/// proxy's own has to another destination.
#[test]
fn a_port_that_the_proxy_uses_to_another_destination_is_no_loop() {
    const PORTS: [u16; 6] = [81, 82, 83, 84, 85, 86];
    let world = World::new();
    world
        .app
        .sh("echo 40000 40011 > /proc/sys/net/ipv4/ip_local_port_range");
    let _peers = PORTS.map(|port| {
        world.peer(port, |mut stream| {
            stream.say("hello")?;
            stream.hear_to_end().map(drop)
        })
    });
    let _proxy = world.captured();
    let _held: Vec<_> = PORTS
        .into_iter()
        .flat_map(|port| [port; 4])
        .map(|port| {
            let mut client = world.app.connect((SVC4, port));
            let heard = client.hear(5);
            assert_eq!(heard.expect("the greeting"), b"hello", "port {port}");
            client
        })
        .collect();
}

#[test]
fn the_proxys_own_connection_coming_back_is_a_loop_refused_and_counted() {
    let world = World::new();
    let proxy = world.serve("workers: 1");
    // Rules that forgot to leave the proxy alone.
    world.redirect_by_hand("meta skuid 4294967294");
    for svc in SVC {
        // What the client is told depends on who meets the loop first; that it ends does not.
        let ended = world.app.try_connect((svc, 80)).and_then(|mut client| {
            client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
            client.hear_to_end()
        });
        let hung = ended.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        assert!(!hung, "{svc}");
    }
    world.until_refused("loop");
    assert!(
        proxy.descriptors() < 100,
        "no connections to itself pile up"
    );
}

#[test]
fn more_connections_than_the_limit_are_reset_and_counted_and_the_rest_live_on() {
    let world = World::new();
    let _peer = world.peer(7, |stream| {
        io::copy(&mut stream.try_clone()?, &mut &stream).map(drop)
    });
    let proxy = world.serve("limits: { max_connections: 5 }");
    world.capture(&proxy);
    let mut live: Vec<TcpStream> = (0..5).map(|_| world.app.connect((SVC4, 7))).collect();
    for client in &mut live {
        client.say("\x01").unwrap();
        client.hear(1).unwrap();
    }
    for _ in 0..3 {
        assert_reset(world.app.try_connect((SVC4, 7)));
    }
    world.until_counted(
        "outrigger_connections_refused_total",
        "connection_limit",
        3.0,
    );
    for client in &mut live {
        client.say("\x01").unwrap();
        client.hear(1).unwrap();
    }
    live.pop();
    wait_until(SOON, "a place is free again", || {
        world
            .app
            .try_connect((SVC4, 7))
            .is_ok_and(|mut client| client.say("\x01").and_then(|()| client.hear(1)).is_ok())
    });
}

#[test]
fn a_proxy_out_of_descriptors_answers_or_resets_and_recovers() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    // Afterwards, since at its start the proxy fits its connection limit to what it may open.
    proxy.limit_descriptors(64);
    assert_overrun_is_survived(&world, &["out_of_resources"]);
}

#[test]
fn a_connection_limit_above_what_descriptors_carry_is_lowered_and_holds() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve_limited(
        "workers: 1\nlimits: { max_connections: 10000 }",
        &["--nofile=128"],
    );
    world.capture(&proxy);
    assert_overrun_is_survived(&world, &["connection_limit", "out_of_resources"]);
}

/// Regression: only an HTTP/1 dial made room; a connection that could not be accepted was reset
/// while idle ones were kept.
#[test]
fn out_of_descriptors_idle_connections_make_room_for_new_ones() {
    let world = World::new();
    let _nginx = world.nginx();
    const IDLE: usize = 30;
    let all_are_here = std::sync::Barrier::new(IDLE);
    let _peer = world.peer(81, move |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        all_are_here.wait();
        stream.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        stream.hear_to_end().map(drop)
    });
    let proxy = world.serve("workers: 1\npool: { idle: 60s, max_idle: 60s }");
    world.capture(&proxy);
    // All at once, so that each takes a connection of its own.
    let mut clients: Vec<_> = (0..IDLE).map(|_| world.app.connect((SVC4, 81))).collect();
    for client in &mut clients {
        client.say("GET / HTTP/1.1\r\nHost: svc\r\n\r\n").unwrap();
    }
    for client in &mut clients {
        client.hear_response().unwrap();
    }
    drop(clients);
    wait_until(SOON, "idle connections", || {
        world.metric("outrigger_upstream_connections{state=\"idle\"}") == IDLE as f64
            && world.metric("outrigger_connections_live") == 0.0
    });
    let left = proxy.descriptors();
    proxy.limit_descriptors(left);
    for url in [
        "http://198.51.100.2:8080/hello",
        "http://[2001:db8::2]:8080/hello",
    ] {
        let page = world
            .app
            .sh(&format!("curl -sS -g --http2-prior-knowledge {url}"));
        assert_eq!(page, "hello\n");
    }
    assert_eq!(
        world.metric_sum("outrigger_connections_refused_total", ""),
        0.0
    );
}

/// Opens more connections than the proxy can carry: each is served or refused, none hangs, and the
/// refusals are counted under one of `reasons`.
#[track_caller]
fn assert_overrun_is_survived(world: &World, reasons: &[&str]) {
    let request = "GET /hello HTTP/1.1\r\nHost: svc\r\n\r\n";
    let mut held = Vec::new();
    let mut refused = 0;
    for n in 0..100 {
        let outcome = world.app.try_connect((SVC4, 80)).and_then(|mut client| {
            client.say(request)?;
            let answer = client.hear_response();
            held.push(client);
            answer
        });
        match outcome {
            Ok((head, _)) if head.starts_with("HTTP/1.1 200 ") => {}
            Ok((head, _)) => {
                assert!(head.starts_with("HTTP/1.1 503 "), "connection {n}: {head}");
                assert!(
                    head.to_ascii_lowercase().contains("proxy-status:"),
                    "{head}"
                );
                refused += 1;
            }
            Err(error) => {
                assert_ne!(
                    error.kind(),
                    io::ErrorKind::WouldBlock,
                    "connection {n} hung"
                );
                refused += 1;
            }
        }
    }
    assert!(
        refused > 30,
        "so few descriptors cannot carry 100 connections; refused: {refused}"
    );
    drop(held);
    wait_until(SOON, "requests succeed again", || {
        world
            .app
            .try_sh("curl -sS -f --max-time 5 http://198.51.100.2/hello")
            .status
            .success()
    });
    wait_until(SOON, "a refusal is counted", || {
        // At accept, or at the dial.
        [
            "outrigger_connections_refused_total",
            "outrigger_requests_total",
        ]
        .iter()
        .any(|name| {
            let counted = |reason: &&str| world.metric_sum(name, reason) >= 1.0;
            reasons.iter().any(counted)
        })
    });
}

#[test]
fn a_destination_that_never_answers_is_given_up_when_the_configuration_says_so() {
    let world = World::new();
    world.svc.sh("nft 'table inet hole { chain input { type filter hook input priority 0; tcp dport 81 drop; }; }'");
    let proxy = world.serve("timeouts: { connect: 300ms }");
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 81));
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let (head, _) = client.hear_response().unwrap();
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    assert!(head.contains("error=connection_timeout"), "{head}");

    let mut opaque = world.app.connect((SVC4, 81));
    opaque.say("\x01\x02").unwrap();
    let ended = opaque.hear(1).expect_err("nobody answers");
    assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn an_unreachable_destination_is_told_as_such() {
    let world = World::new();
    let _proxy = world.captured();
    world.app.sh("ip route add 203.0.113.0/24 via 198.51.100.2");
    world
        .svc
        .sh("ip route add unreachable 203.0.113.0/24; echo 1 > /proc/sys/net/ipv4/ip_forward");
    let mut client = world.app.connect(([203, 0, 113, 9], 80));
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let (head, _) = client.hear_response().unwrap();
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert!(head.contains("error=destination_ip_unroutable"), "{head}");
}

#[track_caller]
fn assert_reset(connected: io::Result<TcpStream>) {
    let ended = connected.and_then(|mut client| {
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        client.hear_to_end()
    });
    let error = ended.expect_err("a refused connection says nothing and ends with a reset");
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
}
