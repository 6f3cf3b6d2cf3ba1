//! Each kind of request that must not be sent again.

use crate::{
    endpoints::{Does, Endpoints, ask, routed, service, status},
    support::{Speak, World},
};

const E503: Does = Does::Answers("HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n");

const EVERYTHING: &str =
    "on: [5xx, reset, connect-failure, retriable-4xx], back_off: { base_interval: 1ms }";

#[test]
fn what_may_have_been_seen_is_not_repeated_unless_that_is_harmless_or_asked_for() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let safe = format!("retry: {{ {EVERYTHING} }}");
    let asked = format!("retry: {{ {EVERYTHING}, non_idempotent: true }}");
    let routes = [("safe.test", safe.as_str()), ("asked.test", &asked)];
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    for does in [E503, Does::Closes, Does::Resets] {
        for (method, host, tries) in [
            ("POST", "safe.test", 1),
            ("PATCH", "safe.test", 1),
            ("UNKNOWN", "safe.test", 1),
            ("PUT", "safe.test", 2),
            ("DELETE", "safe.test", 2),
            ("POST", "asked.test", 2),
        ] {
            endpoints.will([does]);
            let (status, head, _) = ask(&world, host, method, "some body");
            let seen = endpoints.seen();
            assert_eq!(seen.len(), tries, "{method} {host} {does:?}: {head}");
            assert_eq!(status == 200, tries == 2, "{head}");
            assert!(seen.iter().all(|s| s.body == "some body"), "{seen:?}");
        }
    }
}

#[test]
fn a_body_beyond_the_cap_is_relayed_and_not_repeated() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = format!("retry: {{ {EVERYTHING}, max_body_bytes: 100000 }}");
    let proxy = world.serve(&routed(&[("put.test", &policy)], ""));
    world.capture(&proxy);
    for (length, tries) in [(90_000, 2), (100_000, 2), (100_001, 1), (300_000, 1)] {
        let body = "x".repeat(length);
        endpoints.will([E503]);
        let (status, ..) = ask(&world, "put.test", "PUT", &body);
        let seen = endpoints.seen();
        assert_eq!((seen.len(), status == 200), (tries, tries == 2), "{length}");
        assert!(seen.iter().all(|s| s.body == body), "{length}");
    }
}

#[test]
fn a_chunked_body_is_repeated_chunk_for_chunk() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = format!("retry: {{ {EVERYTHING} }}");
    let proxy = world.serve(&routed(&[("put.test", &policy)], ""));
    world.capture(&proxy);
    endpoints.will([E503]);
    let mut client = world.app.connect(service());
    client
        .say("PUT / HTTP/1.1\r\nHost: put.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        .expect("taken");
    let body = format!("{}0\r\n\r\n", "3;x=y\r\nabc\r\n".repeat(3_000));
    client.say(&body).expect("taken");
    let (head, _) = client.hear_response().expect("an answer");
    let seen = endpoints.seen();
    assert_eq!((status(&head), seen.len()), (200, 2));
    assert!(seen.iter().all(|s| s.body == body));
}

#[test]
fn an_answer_that_has_begun_is_not_replaced() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = format!("timeout: 300ms, retry: {{ {EVERYTHING} }}");
    let proxy = world.serve(&routed(&[("get.test", &policy)], ""));
    world.capture(&proxy);
    endpoints.will([Does::Begins(
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    )]);
    let mut client = world.app.connect(service());
    client
        .say("GET / HTTP/1.1\r\nHost: get.test\r\n\r\n")
        .expect("taken");
    client.hear_response().expect_err("cut off");
    assert_eq!(endpoints.seen().len(), 1);
}

#[test]
fn num_retries_is_all_there_is_and_then_the_client_gets_the_last_answer() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = format!("retry: {{ {EVERYTHING}, num_retries: 3 }}");
    let proxy = world.serve(&routed(&[("get.test", &policy)], ""));
    world.capture(&proxy);
    endpoints.will([E503; 10]);
    let (status, ..) = ask(&world, "get.test", "GET", "");
    assert_eq!((status, endpoints.seen().len()), (503, 4));
    let exhausted = world.metric_sum("outrigger_cluster_retry_results_total", "exhausted");
    assert!((exhausted - 1.0).abs() < 0.1, "{exhausted}");
}

#[test]
fn nothing_is_repeated_beyond_what_the_cluster_allows() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = format!("retry: {{ {EVERYTHING}, num_retries: 3 }}");
    let cluster = "circuit_breaker: { max_retries: 0 }";
    let proxy = world.serve(&routed(&[("get.test", &policy)], cluster));
    world.capture(&proxy);
    endpoints.will([E503; 10]);
    let (status, ..) = ask(&world, "get.test", "GET", "");
    assert_eq!((status, endpoints.seen().len()), (503, 1));
}

#[test]
fn without_a_policy_nothing_is_repeated_and_nothing_added() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let config = routed(&[("get.test", "subset: {}")], "");
    let proxy = world.serve(&config);
    world.capture(&proxy);
    for does in [E503, Does::Closes] {
        endpoints.will([does]);
        ask(&world, "get.test", "GET", "");
        let seen = endpoints.seen();
        assert_eq!(seen.len(), 1, "{does:?}");
        assert_eq!(seen[0].head, "GET / HTTP/1.1\r\nHost: get.test\r\n\r\n");
    }
}

#[test]
fn a_client_that_waits_to_be_told_to_continue_is_told_once() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = format!("retry: {{ {EVERYTHING} }}");
    let proxy = world.serve(&routed(&[("put.test", &policy)], ""));
    world.capture(&proxy);
    endpoints.will([E503]);
    let mut client = world.app.connect(service());
    client
        .say(
            "PUT / HTTP/1.1\r\nHost: put.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
        )
        .expect("taken");
    let interim = client.hear_until("\r\n\r\n").expect("an interim answer");
    assert!(interim.starts_with("HTTP/1.1 100"), "{interim}");
    client.say("body").expect("taken");
    let (head, body) = client.hear_response().expect("an answer");
    assert_eq!((status(&head), body.as_str()), (200, "ok\n"), "{head}");
    let bodies: Vec<_> = endpoints.seen().into_iter().map(|s| s.body).collect();
    assert_eq!(bodies, ["body", "body"]);
}
