//! HTTP/2: each stream of a client's connection goes its own way.

use std::collections::BTreeMap;

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

/// Who answered how many of `count` requests over one connection; what was no 200 is told by its
/// status.
fn answers(world: &World, count: usize, options: &str) -> BTreeMap<String, usize> {
    let out = world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge {options} -w '%{{http_code}}\\n' 'http://{SVC4}:8080/[1-{count}]'"
    ));
    let lines: Vec<_> = out.lines().collect();
    let mut answers = BTreeMap::new();
    for pair in lines.chunks(2) {
        let who = if pair.last() == Some(&"200") {
            pair[0]
        } else {
            "failed"
        };
        *answers.entry(who.to_owned()).or_default() += 1;
    }
    answers
}

#[test]
fn streams_of_one_client_are_spread_over_the_endpoints() {
    let world = World::new();
    let backends = three(&world);
    let proxy = world.serve(&clustered(&backends, ""));
    world.capture(&proxy);
    let answers = answers(&world, 30, "");
    assert_eq!(answers.len(), 3, "{answers:?}");
    assert!(answers.values().all(|n| *n == 10), "{answers:?}");
}

#[test]
fn a_dead_endpoint_costs_no_request() {
    let world = World::new();
    let mut backends = three(&world);
    let proxy = world.serve(&clustered(&backends, ""));
    world.capture(&proxy);
    assert_eq!(answers(&world, 9, "").len(), 3);
    backends[0].kill();
    let answers = answers(&world, 30, "");
    assert_eq!(
        answers.keys().collect::<Vec<_>>(),
        ["b", "c"],
        "{answers:?}"
    );
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
    let answers = answers(&world, 60, "");
    assert_eq!(answers.get("failed"), Some(&5), "{answers:?}");
}

#[test]
fn a_header_chooses_and_a_cookie_is_set() {
    let world = World::new();
    let backends = three(&world);
    let more = "load_balancer: { maglev: { hash_on: { cookie: { name: who, ttl: 0s } } } }";
    let proxy = world.serve(&clustered(&backends, more));
    world.capture(&proxy);
    let jar = world.dir().join("jar");
    let jar = format!("-b {0} -c {0}", jar.display());
    let first = answers(&world, 10, &jar);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(answers(&world, 10, &jar), first);
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
    wait_until(SOON, "c answers", || {
        answers(&world, 3, "").contains_key("c")
    });
}
