//! Endpoints that do not do their part, and limits that are reached.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::{clustered, three},
    client::{ask, ask_once, ask_whole, connect, service, spread, status},
    support::{Load, SOON, Speak, World, figure, wait_until},
};

#[test]
fn a_refused_connection_is_tried_at_another_endpoint() {
    let world = World::new();
    let mut backends = three(&world);
    let proxy = world.serve(&clustered(&backends, ""));
    world.capture(&proxy);
    backends[1].kill();
    let answers = spread(&world, 30);
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn when_nobody_answers_the_client_is_told_and_so_is_the_log() {
    let world = World::new();
    let mut backends = three(&world);
    let config = format!(
        "access_log: {{ to: {} }}\n{}",
        world.dir().join("requests.log").display(),
        clustered(&backends, "")
    );
    world.write("requests.log", "");
    world.svc.sh(&format!(
        "chmod 666 {}",
        world.dir().join("requests.log").display()
    ));
    let proxy = world.serve(&config);
    world.capture(&proxy);
    for backend in &mut backends {
        backend.kill();
    }
    let (head, _) = ask_whole(&mut connect(&world), "GET", "").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(head.contains("error=connection_refused"), "{head}");
    wait_until(SOON, "the log names the cluster", || {
        let log = std::fs::read_to_string(world.dir().join("requests.log")).unwrap_or_default();
        log.contains("cluster=service") || log.contains("\"cluster\":\"service\"")
    });
}

#[test]
fn health_checks_take_an_endpoint_out_and_back() {
    let world = World::new();
    let backends = three(&world);
    let more = "health_check: { http: { path: /health }, interval: 50ms, timeout: 50ms, healthy_threshold: 1, unhealthy_threshold: 1 }";
    let proxy = world.serve(&clustered(&backends, more));
    world.capture(&proxy);
    wait_until(SOON, "all endpoints are healthy", || {
        ask_once(&world, "").is_ok_and(|(status, _)| status == 200)
            && backends.iter().all(|b| b.served() > 0)
    });
    backends[2].fail();
    wait_until(SOON, "c is out", || {
        let mut client = connect(&world);
        (0..9).all(|_| ask(&mut client, "").is_ok_and(|(s, b)| s == 200 && b.trim() != "c"))
    });
    assert_eq!(spread(&world, 30).len(), 2);
    backends[2].recover();
    wait_until(SOON, "c is back", || spread(&world, 6).len() == 3);
}

#[test]
fn an_outlier_is_ejected_after_five_answers_of_5xx() {
    let world = World::new();
    let backends = three(&world);
    let more = "outlier_detection: { base_ejection_time: 1s, interval: 100ms, success_rate: null }";
    let proxy = world.serve(&format!("workers: 2\n{}", clustered(&backends, more)));
    world.capture(&proxy);
    backends[0].fail();
    let mut failed = 0;
    let mut client = connect(&world);
    for _ in 0..60 {
        let (status, _) = ask(&mut client, "").expect("an answer");
        failed += usize::from(status != 200);
    }
    assert_eq!(failed, 5);
    backends[0].recover();
    wait_until(SOON, "a is back", || spread(&world, 6).len() == 3);
}

#[test]
fn a_tripped_breaker_keeps_requests_off_its_endpoint_until_a_probe_succeeds() {
    let world = World::new();
    let backends = three(&world);
    let more = "endpoint_breaker: { consecutive_failures: 3, trip_duration: 300ms }";
    let proxy = world.serve(&clustered(&backends, more));
    world.capture(&proxy);
    for backend in &backends {
        backend.fail();
    }
    let mut client = connect(&world);
    let mut heads = Vec::new();
    for _ in 0..10 {
        match ask_whole(&mut client, "GET", "") {
            Ok((head, _)) => heads.push(head),
            // The proxy's own answer ends its connection.
            Err(_) => client = connect(&world),
        }
    }
    let ours: Vec<_> = heads
        .iter()
        .filter(|h| h.contains("Proxy-Status"))
        .collect();
    assert!(!ours.is_empty(), "{heads:?}");
    assert!(
        ours[0].contains("error=destination_unavailable"),
        "{ours:?}"
    );
    for backend in &backends {
        backend.recover();
    }
    wait_until(SOON, "all admit again", || {
        let mut client = connect(&world);
        (0..6).all(|_| ask(&mut client, "").is_ok_and(|(s, _)| s == 200))
    });
}

#[test]
fn requests_beyond_the_limit_get_a_503_that_says_so() {
    let world = World::new();
    let slow = world.peer(9001, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        thread::sleep(Duration::from_millis(400));
        stream.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    });
    let config = |limits: &str| {
        format!(
            "workers: 2\nroutes: [{{ match: {{ port: 80 }}, cluster: service }}]\nclusters:\n- name: service\n  \
             endpoints: [{{ address: '198.51.100.2:9001' }}]\n  circuit_breaker: {{ {limits} }}\n"
        )
    };
    let proxy = world.serve(&config("max_requests: 1"));
    world.capture(&proxy);
    let heads = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    ask_whole(&mut connect(&world), "GET", "")
                        .expect("an answer")
                        .0
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|c| c.join().expect("no panic"))
            .collect::<Vec<_>>()
    });
    let ok = heads.iter().filter(|h| status(h) == 200).count();
    assert!(ok >= 1 && heads.len() - ok >= 1, "{heads:?}");
    for head in heads.iter().filter(|h| status(h) != 200) {
        assert_eq!(status(head), 503);
        assert!(head.contains("error=connection_limit_reached"), "{head}");
    }
    drop(slow);
}

#[test]
fn connections_beyond_the_limit_are_waited_for_across_workers() {
    let world = World::new();
    let peer = world.peer(9001, |mut stream| {
        loop {
            stream.hear_until("\r\n\r\n")?;
            stream.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
    });
    let proxy = world.serve(
        "workers: 4\nroutes: [{ match: { port: 80 }, cluster: service }]\nclusters:\n- name: service\n  \
         endpoints: [{ address: '198.51.100.2:9001' }]\n  circuit_breaker: { max_connections: 2 }\n",
    );
    world.capture(&proxy);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let (head, _) = ask_whole(&mut connect(&world), "GET", "").expect("an answer");
                    assert_eq!(status(&head), 200, "{head}");
                }
            });
        }
    });
    drop(peer);
}

#[test]
fn an_endpoint_that_is_our_own_listener_is_a_loop_and_said_so() {
    let world = World::new();
    let proxy = world.serve(
        "routes: [{ match: {}, cluster: self }]\nclusters:\n- name: self\n  endpoints: [{ address: '127.0.0.1:15001' }]\n",
    );
    world.capture(&proxy);
    let (head, _) = ask_whole(&mut connect(&world), "GET", "").expect("an answer");
    assert!(head.contains("error=proxy_loop_detected"), "{head}");
}

/// What the application sees of an endpoint that dies, then of one that goes silent.
#[test]
fn an_endpoint_killed_and_one_black_holed_under_load() {
    let world = World::new();
    let mut backends = three(&world);
    let more = "connect_timeout: 250ms\n  outlier_detection: { max_ejection_percent: 50, success_rate: null }";
    let proxy = world.serve(&format!("workers: 2\n{}", clustered(&backends, more)));
    world.capture(&proxy);
    let killed = thread::scope(|scope| {
        let load = Load::start(scope, &world, 8, service());
        load.flows(200);
        backends[0].kill();
        load.flows(500);
        backends[0].start_again(&world);
        load.flows(100);
        load.stop()
    });
    figure(
        "an endpoint killed under load, failed requests",
        killed.len(),
        "0",
    );
    for failed in &killed {
        eprintln!("after {:?}: {}", failed.ended - failed.began, failed.error);
    }
    assert!(killed.len() <= 1, "{killed:?}");

    // Without a request timeout, what is under way there ends with its client's patience, and so does
    // every request that goes over an idle connection; it is the next dial that tells.
    let begun = Instant::now();
    let (holed, well) = thread::scope(|scope| {
        let load = Load::start(scope, &world, 8, service());
        load.flows(200);
        world.svc.sh(
            "nft add table inet hole; nft add chain inet hole input '{ type filter hook input priority 0; }'; \
             nft add rule inet hole input tcp dport 9002 drop",
        );
        let goal = load.succeeded() + 500;
        wait_until(Duration::from_secs(60), "requests succeed again", || {
            load.succeeded() >= goal
        });
        (load.stop(), begun.elapsed())
    });
    figure(
        "an endpoint black-holed under load, failed requests",
        holed.len(),
        "one for each idle connection to it",
    );
    figure(
        "until 500 more had succeeded, s",
        well.as_secs(),
        "one patience of a client",
    );
    assert!(holed.len() <= 16, "{holed:?}");
}
