//! Which endpoint answers.

use std::collections::BTreeSet;

use crate::{
    backend::{clustered, three},
    client::{ask, ask_once, ask_whole, connect, spread},
    support::{SOON, World, wait_until},
};

#[test]
fn round_robin_gives_each_its_turn_within_one_client_connection() {
    let world = World::new();
    let backends = three(&world);
    let proxy = world.serve(&format!("workers: 1\n{}", clustered(&backends, "")));
    world.capture(&proxy);
    let answers = spread(&world, 30);
    assert!(answers.values().all(|n| *n == 10), "{answers:?}");
}

#[test]
fn every_policy_uses_all_endpoints_that_it_should() {
    for policy in ["least_request", "peak_ewma", "random"] {
        let world = World::new();
        let backends = three(&world);
        let more = format!("load_balancer: {policy}");
        let proxy = world.serve(&clustered(&backends, &more));
        world.capture(&proxy);
        let answers = spread(&world, 90);
        // An endpoint that has not answered counts as slower than any of these is.
        let least = if policy == "peak_ewma" { 2 } else { 3 };
        assert!(answers.len() >= least, "{policy}: {answers:?}");
    }
}

#[test]
fn a_header_chooses_the_endpoint_and_keeps_to_it_from_any_worker() {
    for policy in ["ring_hash", "maglev"] {
        let world = World::new();
        let backends = three(&world);
        let more = format!("load_balancer: {{ {policy}: {{ hash_on: {{ header: x-user }} }} }}");
        let proxy = world.serve(&format!("workers: 3\n{}", clustered(&backends, &more)));
        world.capture(&proxy);
        let mut all = BTreeSet::new();
        for user in 0..20 {
            let header = format!("X-User: {user}\r\n");
            let answers: BTreeSet<_> = (0..6)
                .map(|_| ask_once(&world, &header).expect("an answer").1)
                .collect();
            assert_eq!(answers.len(), 1, "{policy}, user {user}: {answers:?}");
            all.extend(answers);
        }
        assert_eq!(all.len(), 3, "{policy}: {all:?}");
    }
}

#[test]
fn a_source_keeps_to_one_endpoint() {
    let world = World::new();
    let backends = three(&world);
    let proxy = world.serve(&clustered(&backends, "load_balancer: maglev"));
    world.capture(&proxy);
    assert_eq!(spread(&world, 20).len(), 1);
}

#[test]
fn a_cookie_is_set_when_missing_and_leads_back_to_the_endpoint_that_answered() {
    let world = World::new();
    let backends = three(&world);
    let more = "load_balancer: { ring_hash: { hash_on: { cookie: { name: who, ttl: 1h } } } }";
    let proxy = world.serve(&clustered(&backends, more));
    world.capture(&proxy);
    let mut client = connect(&world);
    let mut all = BTreeSet::new();
    for _ in 0..20 {
        let (head, first) = ask_whole(&mut client, "GET", "").expect("an answer");
        let cookie = head
            .lines()
            .find_map(|l| l.strip_prefix("Set-Cookie: "))
            .unwrap_or_else(|| panic!("no cookie in {head}"));
        assert!(
            cookie.ends_with("; Path=/; Max-Age=3600; HttpOnly"),
            "{cookie}"
        );
        let pair = cookie.split(';').next().expect("a first part");
        let header = format!("Cookie: other=1; {pair}\r\n");
        let (head, again) = ask_whole(&mut client, "GET", &header).expect("an answer");
        assert!(!head.contains("Set-Cookie"), "{head}");
        assert_eq!(first, again);
        all.insert(first);
    }
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn posts_of_one_client_go_over_the_connections_that_it_has_used() {
    let world = World::new();
    let backends = three(&world);
    let proxy = world.serve(&format!("workers: 1\n{}", clustered(&backends, "")));
    world.capture(&proxy);
    let mut client = connect(&world);
    for _ in 0..30 {
        let (head, _) = ask_whole(&mut client, "POST", "").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    let fresh = world.metric_sum("outrigger_upstream_requests_total", "\"new\"");
    assert!(
        (1.0..=3.0).contains(&fresh),
        "{fresh} connections\n{}",
        world.metrics()
    );
}

#[test]
fn an_endpoint_of_the_next_priority_takes_over_and_hands_back() {
    let world = World::new();
    let mut backends = three(&world);
    let config = format!(
        "routes: [{{ match: {{}}, cluster: service }}]\nclusters:\n- name: service\n  \
         health_check: {{ tcp: {{}}, interval: 50ms, timeout: 50ms, healthy_threshold: 1, unhealthy_threshold: 1 }}\n  \
         panic_threshold: 0\n  endpoints: [{{ address: '{}' }}, {{ address: '{}', priority: 1 }}]\n",
        backends[0].address(),
        backends[1].address()
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    let answers = |name: &str| {
        wait_until(SOON, &format!("{name} answers"), || {
            ask_once(&world, "").is_ok_and(|(_, body)| body.trim() == name)
        });
        let mut client = connect(&world);
        assert_eq!(ask(&mut client, "").expect("an answer").1.trim(), name);
    };
    answers("a");
    backends[0].kill();
    answers("b");
    backends[0].start_again(&world);
    answers("a");
}
