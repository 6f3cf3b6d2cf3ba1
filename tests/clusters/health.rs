//! Active health checks against real nginx: HTTP, TCP and gRPC, with their rise and fall.

use serde_json::Value;

use crate::{
    backend::{Backend, HTTP2, three},
    support::{SOON, SVC4, World, wait_until},
};

/// Many a check until an endpoint rises or falls.
const THRESHOLDS: &str =
    "interval: 50ms, timeout: 2s, healthy_threshold: 4, unhealthy_threshold: 3";

fn clustered(backends: &[Backend], shift: u16, check: &str) -> String {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|b| format!("{{ address: '{SVC4}:{}' }}", b.port + shift))
        .collect();
    format!(
        "routes: [{{ match: {{ port: 80 }}, cluster: service }}]\nclusters:\n- name: service\n  \
         endpoints: [{}]\n  health_check: {{ {check}, {THRESHOLDS} }}\n",
        endpoints.join(", ")
    )
}

/// The endpoints that checks find well, by number.
fn healthy(world: &World) -> Vec<usize> {
    let (status, body) = world.admin("/clusters");
    assert_eq!(status, 200, "{body}");
    let told: Value = serde_json::from_str(&body).expect("JSON");
    let endpoints = told["clusters"][0]["endpoints"].as_array().expect("a list");
    let is_well = |n: &usize| endpoints[*n]["is_healthy"] == true;
    (0..endpoints.len()).filter(is_well).collect()
}

/// Checks of `path` that nginx has answered with `status`.
fn checks(backend: &Backend, path: &str, status: u16) -> usize {
    let log = backend.log();
    let is_it = |l: &&str| l.contains(path) && l.contains(&format!("\" {status} "));
    log.lines().filter(is_it).count()
}

#[test]
fn http_checks_fall_and_rise_by_their_thresholds() {
    let world = World::new();
    let backends = three(&world);
    let _proxy = world.serve(&clustered(&backends, 0, "http: { path: /health }"));
    wait_until(SOON, "all to be well, each by one check", || {
        healthy(&world) == [0, 1, 2]
    });
    let one = &backends[1];
    one.fail();
    wait_until(SOON, "b to fall", || healthy(&world) == [0, 2]);
    let failed = checks(one, "/health", 503);
    assert!(failed >= 3, "it fell after {failed} checks");
    let before = checks(one, "/health", 200);
    one.recover();
    wait_until(SOON, "b to rise", || healthy(&world) == [0, 1, 2]);
    let succeeded = checks(one, "/health", 200) - before;
    assert!(succeeded >= 4, "it rose after {succeeded} checks");
}

#[test]
fn a_single_failed_check_is_no_fall() {
    let world = World::new();
    let backends = three(&world);
    let _proxy = world.serve(&clustered(&backends, 0, "http: { path: /health }"));
    wait_until(SOON, "all to be well", || healthy(&world) == [0, 1, 2]);
    let one = &backends[1];
    one.fail();
    wait_until(SOON, "one failed check", || checks(one, "/health", 503) > 0);
    one.recover();
    let failed = checks(one, "/health", 503);
    let well = checks(one, "/health", 200);
    wait_until(SOON, "more checks", || {
        checks(one, "/health", 200) > well + 4
    });
    // On a machine that was slow to recover it may have been three.
    assert!(
        failed >= 3 || healthy(&world) == [0, 1, 2],
        "{failed} failed"
    );
}

#[test]
fn tcp_checks_ask_for_a_connection_and_for_what_comes_back() {
    let world = World::new();
    let mut backends = three(&world);
    let banner = "tcp: { send: \"GET /health HTTP/1.0\\r\\n\\r\\n\", receive: \" 200 \" }";
    let _proxy = world.serve(&clustered(&backends, 0, banner));
    wait_until(SOON, "all to be well", || healthy(&world) == [0, 1, 2]);
    // One answers something else, another nothing.
    backends[0].fail();
    backends[2].kill();
    wait_until(SOON, "a and c to fall", || healthy(&world) == [1]);
    backends[0].recover();
    backends[2].start_again(&world);
    wait_until(SOON, "a and c to rise", || healthy(&world) == [0, 1, 2]);
}

#[test]
fn grpc_checks_ask_the_health_service() {
    let world = World::new();
    let backends = three(&world);
    let _proxy = world.serve(&clustered(&backends, HTTP2, "grpc: { service: orders }"));
    wait_until(SOON, "all to be well", || healthy(&world) == [0, 1, 2]);
    let one = &backends[2];
    one.serving(2);
    wait_until(SOON, "c, which is NOT_SERVING, to fall", || {
        healthy(&world) == [0, 1]
    });
    one.serving(1);
    wait_until(SOON, "c to rise", || healthy(&world) == [0, 1, 2]);
    assert!(checks(one, "/grpc.health.v1.Health/Check", 200) >= 3);
}
