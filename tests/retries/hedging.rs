//! Tries beside each other: who wins, and what is never tried twice.

use std::time::{Duration, Instant};

use crate::{
    endpoints::{Does, Endpoints, OK, ask, routed},
    http2_endpoints::{self, Caller, Http2Endpoints, in_runtime},
    support::World,
};

const E503: Does = Does::Answers("HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n");
const LATE: Does = Does::AnswersLate(
    Duration::from_millis(400),
    "HTTP/1.1 201 Late\r\nContent-Length: 5\r\n\r\nlate\n",
);

const HEDGED: &str = "retry: { on: [5xx, reset], num_retries: 2, attempt_count: true, back_off: { base_interval: 1ms }, hedge: { delay: 100ms } }";

#[test]
fn a_slow_try_is_overtaken_by_one_elsewhere() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let by_timeout =
        "retry: { on: [5xx], per_try_timeout: 100ms, hedge: { on_per_try_timeout: true } }";
    let routes = [("delay.test", HEDGED), ("timeout.test", by_timeout)];
    let proxy = world.serve(&routed(&routes, "circuit_breaker: { max_retries: 100 }"));
    world.capture(&proxy);
    for host in ["delay.test", "timeout.test"] {
        for (method, body) in [("GET", ""), ("PUT", "some body")] {
            endpoints.will([Does::Hangs]);
            let begun = Instant::now();
            let (status, head, answer) = ask(&world, host, method, body);
            assert_eq!((status, answer.as_str()), (200, "ok\n"), "{host}: {head}");
            assert!(begun.elapsed() >= Duration::from_millis(100), "{host}");
            let seen = endpoints.seen();
            assert_eq!(seen.len(), 2, "{host} {method}");
            assert_ne!(seen[0].port, seen[1].port, "{host}");
            assert!(seen.iter().all(|s| s.body == body), "{seen:?}");
        }
    }
    // Each try has its own number, and the connections are fit for what follows.
    endpoints.will([Does::Hangs, OK, OK]);
    ask(&world, "delay.test", "PUT", "123");
    let seen = endpoints.seen();
    for (number, seen) in seen.iter().enumerate() {
        let line = format!("x-envoy-attempt-count: {}\r\n\r\n", number + 1);
        assert!(seen.head.ends_with(&line), "{}", seen.head);
    }
}

#[test]
fn the_first_try_wins_if_it_answers_first_and_the_last_one_if_the_others_fail() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let routes = [("hedge.test", HEDGED)];
    // A try over an idle connection that turns out dead is repeated over a fresh one, whatever the policy.
    let proxy = world.serve(&format!(
        "pool: {{ max_idle_per_destination: 0 }}\n{}",
        routed(&routes, "circuit_breaker: { max_retries: 100 }")
    ));
    world.capture(&proxy);
    // A quick answer: nobody else is asked.
    endpoints.will([OK]);
    ask(&world, "hedge.test", "GET", "");
    assert_eq!(endpoints.seen().len(), 1);
    // The hedge fails while the first is under way, which then answers.
    endpoints.will([LATE, E503, E503]);
    let (status, _, body) = ask(&world, "hedge.test", "GET", "");
    assert_eq!((status, body.as_str()), (201, "late\n"));
    // A failure without company is retried as ever.
    endpoints.will([E503]);
    let (status, ..) = ask(&world, "hedge.test", "GET", "");
    assert_eq!((status, endpoints.seen().len()), (200, 2));
    // Nobody answers, and no more than the policy allows are asked.
    endpoints.will([Does::Closes; 10]);
    let (status, ..) = ask(&world, "hedge.test", "GET", "");
    assert_eq!((status, endpoints.seen().len()), (502, 3));
}

#[test]
fn what_is_not_to_be_repeated_is_not_hedged() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let small = "retry: { on: [5xx], max_body_bytes: 4, hedge: { delay: 50ms } }";
    let routes = [("hedge.test", HEDGED), ("small.test", small)];
    let proxy = world.serve(&routed(&routes, "circuit_breaker: { max_retries: 100 }"));
    world.capture(&proxy);
    for (host, method, body) in [
        ("hedge.test", "POST", "once"),
        ("small.test", "PUT", &"x".repeat(50_000)),
    ] {
        endpoints.will([LATE]);
        let (status, ..) = ask(&world, host, method, body);
        let seen = endpoints.seen();
        assert_eq!((status, seen.len()), (201, 1), "{host}");
        assert_eq!(seen[0].body, body);
    }
}

#[test]
fn hedges_take_from_the_clusters_retries() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let routes = [("hedge.test", HEDGED)];
    let proxy = world.serve(&routed(&routes, "circuit_breaker: { max_retries: 0 }"));
    world.capture(&proxy);
    endpoints.will([LATE]);
    let (status, ..) = ask(&world, "hedge.test", "GET", "");
    assert_eq!((status, endpoints.seen().len()), (201, 1));
}

#[test]
fn a_call_is_hedged_with_its_body() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let policy = "timeout: 20s, retry: { on: [unavailable], num_retries: 2, non_idempotent: true, attempt_count: true, back_off: { base_interval: 1ms }, hedge: { delay: 100ms } }";
    let safe = "retry: { on: [unavailable], hedge: { delay: 100ms } }";
    let routes = [("svc.test", policy), ("safe.test", safe)];
    let proxy = world.serve(&routed(&routes, "circuit_breaker: { max_retries: 100 }"));
    world.capture(&proxy);
    in_runtime(async {
        use http2_endpoints::Does;
        let mut caller = Caller::connect(&world).await;
        for body in [&b"ping"[..], &[b'x'; 60_000], b""] {
            endpoints.will([Does::Hangs]);
            let answer = caller.call("svc.test", &[], body).await.expect("an answer");
            assert_eq!(answer.grpc_status(), Some("0"));
            let seen = endpoints.seen();
            assert_eq!(seen.len(), 2);
            assert!(seen.iter().all(|s| s.body == body));
            let numbers: Vec<_> = (seen.iter())
                .map(|s| s.headers["x-envoy-attempt-count"].clone())
                .collect();
            assert_eq!(numbers, ["1", "2"]);
        }
        // Alone and failing, it is retried.
        endpoints.will([Does::Grpc("14")]);
        let answer = caller
            .call("svc.test", &[], b"ping")
            .await
            .expect("an answer");
        assert_eq!(
            (answer.grpc_status(), endpoints.seen().len()),
            (Some("0"), 2)
        );
        // Longer than what is kept: relayed as ever.
        let long = vec![b'x'; 300_000];
        endpoints.will([]);
        let answer = caller
            .call("svc.test", &[], &long)
            .await
            .expect("an answer");
        assert_eq!((answer.body.len(), endpoints.seen().len()), (300_000, 1));
        // Not to be repeated.
        endpoints.will([Does::Grpc("14")]);
        let answer = caller
            .call("safe.test", &[], b"ping")
            .await
            .expect("an answer");
        assert_eq!(
            (answer.grpc_status(), endpoints.seen().len()),
            (Some("14"), 1)
        );
    });
}
