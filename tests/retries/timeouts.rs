//! Every time limit, and how the client and the endpoint learn that it has passed.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use crate::{
    endpoints::{Does, Endpoints, ask, routed, service},
    support::{SOON, SVC4, Speak, World, wait_until},
};

#[test]
fn each_limit_ends_its_request_with_a_504_that_names_it() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let routes = [
        ("request.test", "timeout: 200ms"),
        ("idle.test", "idle_timeout: 200ms"),
        ("stream.test", "max_stream_duration: 200ms"),
        (
            "try.test",
            "retry: { on: [retriable-4xx], per_try_timeout: 200ms }",
        ),
        (
            "tryidle.test",
            "retry: { on: [retriable-4xx], per_try_idle_timeout: 200ms }",
        ),
    ];
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    for (host, error) in [
        ("request.test", "http_response_timeout"),
        ("idle.test", "connection_read_timeout"),
        ("stream.test", "http_response_timeout"),
        ("try.test", "http_response_timeout"),
        ("tryidle.test", "http_response_timeout"),
    ] {
        endpoints.will([Does::Hangs]);
        let begun = Instant::now();
        let (status, head, _) = ask(&world, host, "GET", "");
        assert_eq!(status, 504, "{host}: {head}");
        assert!(
            head.contains(&format!("Proxy-Status: outrigger; error={error}")),
            "{head}"
        );
        assert!(begun.elapsed() >= Duration::from_millis(200), "{host}");
        assert_eq!(endpoints.seen().len(), 1, "{host}");
    }
    for of in ["request", "try"] {
        let counted = world.metric_sum("outrigger_cluster_timeouts_total", of);
        assert!(counted >= 1.0, "{of}: {counted}");
    }
}

#[test]
fn a_try_that_takes_too_long_is_made_again_elsewhere() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = "timeout: 10s, retry: { on: [reset], per_try_timeout: 100ms, back_off: { base_interval: 1ms } }";
    let proxy = world.serve(&routed(&[("try.test", policy)], ""));
    world.capture(&proxy);
    endpoints.will([Does::Hangs]);
    let (status, ..) = ask(&world, "try.test", "GET", "");
    let seen = endpoints.seen();
    assert_eq!((status, seen.len()), (200, 2));
    assert_ne!(seen[0].port, seen[1].port);
    // What is not to be repeated is not, however long it takes.
    endpoints.will([Does::Hangs]);
    let (status, ..) = ask(&world, "try.test", "POST", "once");
    assert_eq!((status, endpoints.seen().len()), (504, 1));
}

#[test]
fn a_requests_time_is_for_all_of_its_tries() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = "timeout: 350ms, retry: { on: [reset], num_retries: 100, per_try_timeout: 100ms, back_off: { base_interval: 1ms } }";
    let proxy = world.serve(&routed(&[("get.test", policy)], ""));
    world.capture(&proxy);
    endpoints.will([Does::Hangs; 100]);
    let (status, head, _) = ask(&world, "get.test", "GET", "");
    assert_eq!(status, 504, "{head}");
    let tries = endpoints.seen().len();
    assert!((2..=4).contains(&tries), "{tries}");
}

#[test]
fn an_answer_that_has_begun_is_cut_off_with_a_reset() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let proxy = world.serve(&routed(&[("get.test", "timeout: 200ms")], ""));
    world.capture(&proxy);
    endpoints.will([Does::Begins(
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    )]);
    let mut client = world.app.connect(service());
    client
        .say("GET / HTTP/1.1\r\nHost: get.test\r\n\r\n")
        .expect("taken");
    client.hear_until("half").expect("what there was");
    let error = client.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_slow_upload_is_the_clients_own_affair() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let proxy = world.serve(&routed(&[("put.test", "timeout: 200ms")], ""));
    world.capture(&proxy);
    endpoints.will([]);
    let mut client = world.app.connect(service());
    client
        .say("PUT / HTTP/1.1\r\nHost: put.test\r\nContent-Length: 4\r\n\r\n")
        .expect("taken");
    std::thread::sleep(Duration::from_millis(500));
    client.say("body").expect("taken");
    let (head, _) = client.hear_response().expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[test]
fn bytes_that_move_keep_an_idle_timeout_away_though_they_are_spliced() {
    let world = World::new();
    // A long body in the kernel's own hands, slower than any limit as a whole.
    let _slow = world.peer(9001, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        stream.say("HTTP/1.1 200 OK\r\nContent-Length: 800000\r\n\r\n")?;
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(150));
            stream.say(vec![b'x'; 100_000])?;
        }
        Ok(())
    });
    let config = format!(
        "workers: 1\nroutes: [{{ match: {{ port: 80 }}, cluster: service, idle_timeout: 800ms }}]\n\
         clusters: [{{ name: service, endpoints: [{{ address: '{SVC4}:9001' }}] }}]\n"
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    let (status, _, body) = ask(&world, "any", "GET", "");
    assert_eq!((status, body.len()), (200, 800_000));
}

#[test]
fn opaque_connections_and_tunnels_end_when_idle_and_tunnels_when_old() {
    let world = World::new();
    let _echo = world.peer(9001, |mut stream| {
        let upgrade = stream.peek(&mut [0; 3])?;
        if upgrade == 3 {
            stream.hear_until("\r\n\r\n")?;
            stream.say(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n",
            )?;
        }
        let mut bytes = [0; 1024];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                n => stream.say(&bytes[..n])?,
            }
        }
    });
    let config = format!(
        "workers: 1\nroutes:\n\
         - {{ match: {{ host: old.test }}, cluster: service, max_stream_duration: 400ms }}\n\
         - {{ match: {{ port: 80 }}, cluster: service, tunnel_idle_timeout: 300ms }}\n\
         clusters: [{{ name: service, endpoints: [{{ address: '{SVC4}:9001' }}] }}]\n"
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    let upgraded = |host: &str| {
        let mut client = world.app.connect(service());
        client
            .say(format!(
                "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"
            ))
            .expect("taken");
        client.hear_until("\r\n\r\n").expect("an upgrade");
        client
    };
    let mut idle = upgraded("idle.test");
    idle.say("ping").expect("taken");
    assert_eq!(idle.hear(4).expect("an echo"), b"ping");
    let begun = Instant::now();
    idle.read(&mut [0]).expect_err("a reset");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    let mut old = upgraded("old.test");
    let begun = Instant::now();
    while old.say("ping").is_ok() && old.hear(4).is_ok() {
        assert!(begun.elapsed() < SOON, "it is never too old");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begun.elapsed() >= Duration::from_millis(350));
    wait_until(SOON, "it is told", || {
        world.metric_sum("outrigger_requests_total", "max_stream_duration") >= 1.0
    });
}

#[test]
fn what_no_route_matches_has_no_limits() {
    let world = World::new();
    let _slow = world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        std::thread::sleep(Duration::from_millis(600));
        stream.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    });
    let config = routed(
        &[(
            "other.test",
            "timeout: 100ms, idle_timeout: 100ms, max_stream_duration: 100ms",
        )],
        "",
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    let (status, ..) = ask(&world, "any.test", "GET", "");
    assert_eq!(status, 200);
}

#[test]
fn defaults_hold_for_what_no_route_sends_to_a_cluster() {
    let world = World::new();
    let _slow = world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        let _ = stream.read(&mut [0]);
        Ok(())
    });
    let proxy = world.serve("workers: 1\ndefaults: { timeout: 200ms }");
    world.capture(&proxy);
    let (status, head, _) = ask(&world, "any.test", "GET", "");
    assert_eq!(status, 504, "{head}");
}
