//! For each condition what meets it, and what does not, over HTTP/1.

use std::thread;

use crate::{
    endpoints::{Does, Endpoints, ask, routed},
    support::{SOON, SVC4, World, wait_until},
};

const fn answer(head: &'static str) -> Does {
    Does::Answers(head)
}

const E500: Does = answer("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
const E502: Does = answer("HTTP/1.1 502 Oh\r\nContent-Length: 0\r\n\r\n");
const E503: Does = answer("HTTP/1.1 503 Oh\r\nContent-Length: 4\r\n\r\nbusy");
const E504: Does = answer("HTTP/1.1 504 Oh\r\nContent-Length: 0\r\n\r\n");
const E409: Does = answer("HTTP/1.1 409 Oh\r\nContent-Length: 0\r\n\r\n");
const E418: Does = answer("HTTP/1.1 418 Oh\r\nContent-Length: 0\r\n\r\n");
const E429: Does = answer("HTTP/1.1 429 Oh\r\nContent-Length: 0\r\n\r\n");
const LIMITED: Does =
    answer("HTTP/1.1 503 Oh\r\nX-Envoy-RateLimited: true\r\nContent-Length: 0\r\n\r\n");
const FLAGGED: Does = answer("HTTP/1.1 200 OK\r\nX-Again: please\r\nContent-Length: 0\r\n\r\n");

const BACK_OFF: &str = "back_off: { base_interval: 1ms }";

#[test]
fn each_condition_is_met_by_what_envoy_says_and_by_nothing_else() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let policy = |on: &str| {
        format!(
            "retry: {{ on: [{on}], {BACK_OFF}, retriable_status_codes: [418], retriable_headers: [{{ name: x-again, exact: please }}] }}"
        )
    };
    let names = [
        "5xx",
        "gateway-error",
        "reset",
        "envoy-ratelimited",
        "retriable-4xx",
        "retriable-status-codes",
        "retriable-headers",
    ];
    let policies = names.map(policy);
    let hosts = names.map(|name| format!("{name}.test"));
    let routes: Vec<_> = (hosts.iter().zip(&policies))
        .map(|(host, policy)| (host.as_str(), policy.as_str()))
        .collect();
    // A connection that dies when it is used again is replaced without any policy.
    let config = format!(
        "pool: {{ max_idle_per_destination: 0 }}\n{}",
        routed(&routes, "")
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    for (name, met, not_met) in [
        (
            "5xx",
            &[E500, E502, E503, Does::Closes, Does::Resets][..],
            &[E409, E429, LIMITED, FLAGGED][..],
        ),
        (
            "gateway-error",
            &[E502, E503, E504, Does::Closes, Does::Resets],
            &[E500, E409],
        ),
        ("reset", &[Does::Closes, Does::Resets], &[E500, E503]),
        ("envoy-ratelimited", &[LIMITED], &[E503, E429]),
        ("retriable-4xx", &[E409], &[E418, E429, E503]),
        ("retriable-status-codes", &[E418], &[E409, E503]),
        ("retriable-headers", &[FLAGGED], &[E503]),
    ] {
        let host = format!("{name}.test");
        for (does, tries) in met
            .iter()
            .map(|m| (m, 2))
            .chain(not_met.iter().map(|n| (n, 1)))
        {
            endpoints.will([*does]);
            let (_, head, _) = ask(&world, &host, "GET", "");
            let seen = endpoints.seen();
            assert_eq!(seen.len(), tries, "{name} after {does:?}: {head}");
            if tries == 2 {
                assert!(
                    head.starts_with("HTTP/1.1 200"),
                    "{name} after {does:?}: {head}"
                );
                assert_ne!(
                    seen[0].port, seen[1].port,
                    "{name}: the same endpoint again"
                );
            }
        }
    }
    assert!(world.metric_sum("outrigger_cluster_retries_total", "cluster=\"service\"") >= 16.0);
}

#[test]
fn a_connection_that_is_refused_is_tried_again_until_somebody_listens() {
    let world = World::new();
    let config = format!(
        "workers: 1\nroutes: [{{ match: {{ port: 80 }}, cluster: service, retry: {{ on: [connect-failure], num_retries: 1000, back_off: {{ base_interval: 20ms, max_interval: 40ms }} }} }}]\n\
         clusters: [{{ name: service, endpoints: [{{ address: '{SVC4}:9001' }}] }}]\n"
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    thread::scope(|scope| {
        // Nothing was sent, so that a POST is as good as any.
        let asked = scope.spawn(|| ask(&world, "any", "POST", "body"));
        wait_until(SOON, "it has been tried again", || {
            world.metric_sum("outrigger_cluster_retries_total", "") >= 2.0
        });
        let endpoints = Endpoints::start(&world);
        let (status, head, _) = asked.join().expect("no panic");
        assert_eq!(status, 200, "{head}");
        let seen = endpoints.seen();
        assert_eq!((seen.len(), seen[0].body.as_str()), (1, "body"));
    });
}

#[test]
fn each_try_carries_its_number_if_asked_for() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let routes = [
        (
            "counted.test",
            "retry: { on: [5xx], num_retries: 2, attempt_count: true, back_off: { base_interval: 1ms } }",
        ),
        (
            "plain.test",
            "retry: { on: [5xx], back_off: { base_interval: 1ms } }",
        ),
    ];
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    endpoints.will([E500, E503]);
    let (status, ..) = ask(&world, "counted.test", "PUT", "abc");
    let numbers: Vec<_> = (endpoints.seen().iter())
        .map(|seen| {
            let lines = seen.head.lines();
            let number = lines.filter_map(|l| l.strip_prefix("x-envoy-attempt-count: "));
            (number.collect::<Vec<_>>().join(","), seen.body.clone())
        })
        .collect();
    let expected = ["1", "2", "3"].map(|n| (n.to_owned(), "abc".to_owned()));
    assert_eq!((status, numbers), (200, expected.to_vec()));
    endpoints.will([E500]);
    ask(&world, "plain.test", "GET", "");
    for seen in endpoints.seen() {
        assert!(!seen.head.contains("attempt"), "{}", seen.head);
    }
}

#[test]
fn an_answer_that_says_when_to_come_back_is_obeyed_up_to_a_limit() {
    let world = World::new();
    let endpoints = Endpoints::start(&world);
    let routes = [(
        "busy.test",
        "retry: { on: [5xx], back_off: { base_interval: 1ms } }",
    )];
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    endpoints.will([answer(
        "HTTP/1.1 503 Oh\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    )]);
    let begun = std::time::Instant::now();
    let (status, ..) = ask(&world, "busy.test", "GET", "");
    assert_eq!((status, endpoints.seen().len()), (200, 2));
    assert!(begun.elapsed().as_millis() >= 1000);
    endpoints.will([answer(
        "HTTP/1.1 503 Oh\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
    )]);
    let (status, head, _) = ask(&world, "busy.test", "GET", "");
    assert_eq!((status, endpoints.seen().len()), (503, 1));
    assert!(head.contains("Retry-After: 3600"), "{head}");
}
