//! HTTP/2: each stream of a client's connection goes its own way.

use crate::{
    backend::{Backend, HTTP2, three},
    support::{SOON, SVC4, World, wait_until},
};

fn clustered(backends: &[Backend], more: &str) -> String {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|b| format!("{{ address: '{SVC4}:{}' }}", b.port + HTTP2))
        .collect();
    format!(
        "workers: 1\nroutes: [{{ match: {{ port: 8080 }}, cluster: service }}]\nclusters:\n- name: service\n  \
         endpoints: [{}]\n  {more}\n",
        endpoints.join(", ")
    )
}

/// Who answered how many of `count` requests over one connection, and how many were no 200.
fn answers(world: &World, backends: &[Backend], count: usize) -> (Vec<usize>, usize) {
    let before: Vec<_> = backends.iter().map(Backend::served).collect();
    let told = world
        .app
        .sh(&format!("h2load -n {count} -c 1 -m 1 http://{SVC4}:8080/"));
    let succeeded: usize = told
        .lines()
        .find_map(|line| {
            line.strip_prefix("status codes: ")?
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("what h2load tells: {told}"));
    let each = backends.iter().zip(before).map(|(b, n)| b.served() - n);
    (each.collect(), count - succeeded)
}

/// One request on a connection of its own: the head and the body.
fn ask(world: &World, options: &str) -> String {
    world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge -i {options} http://{SVC4}:8080/"
    ))
}

#[test]
fn streams_of_one_client_are_spread_over_the_endpoints() {
    let world = World::new();
    let backends = three(&world);
    let proxy = world.serve(&clustered(&backends, ""));
    world.capture(&proxy);
    assert_eq!(answers(&world, &backends, 30), (vec![10, 10, 10], 0));
}

#[test]
fn a_dead_endpoint_costs_no_request() {
    let world = World::new();
    let mut backends = three(&world);
    let proxy = world.serve(&clustered(&backends, ""));
    world.capture(&proxy);
    assert_eq!(answers(&world, &backends, 9), (vec![3, 3, 3], 0));
    backends[0].kill();
    let (each, failed) = answers(&world, &backends, 30);
    assert_eq!((each[0], each[1] + each[2], failed), (0, 30, 0));
}

#[test]
fn an_outlier_is_ejected() {
    let world = World::new();
    let backends = three(&world);
    let proxy = world.serve(&clustered(
        &backends,
        "outlier_detection: { success_rate: null }",
    ));
    world.capture(&proxy);
    backends[1].fail();
    let (each, failed) = answers(&world, &backends, 60);
    assert_eq!((each[1], failed), (5, 5));
}

#[test]
fn a_cookie_is_set_when_missing_and_leads_back() {
    let world = World::new();
    let backends = three(&world);
    let more = "load_balancer: { maglev: { hash_on: { cookie: { name: who, ttl: 0s } } } }";
    let proxy = world.serve(&clustered(&backends, more));
    world.capture(&proxy);
    let jar = world.dir().join("jar");
    let jar = format!("-b {0} -c {0}", jar.display());
    let first = ask(&world, &jar);
    assert!(first.contains("set-cookie: who="), "{first}");
    for _ in 0..8 {
        let again = ask(&world, &jar);
        assert!(!again.contains("set-cookie"), "{again}");
        assert_eq!(again.lines().last(), first.lines().last());
    }
}

#[test]
fn when_nobody_answers_each_stream_is_told() {
    let world = World::new();
    let mut backends = three(&world);
    let proxy = world.serve(&clustered(&backends, ""));
    world.capture(&proxy);
    for backend in &mut backends {
        backend.kill();
    }
    let head = world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge -i http://{SVC4}:8080/"
    ));
    assert!(head.starts_with("HTTP/2 502"), "{head}");
    assert!(head.contains("error=connection_refused"), "{head}");
    backends[2].start_again(&world);
    wait_until(SOON, "c answers", || ask(&world, "").ends_with("c\n"));
}
