//! An operator, or a script gone wild, that captures and lets go again and again.

use std::thread;

use crate::support::{Load, SVC4, SVC6, World, figure, rounds};

#[test]
fn installs_and_removals_under_load_fail_no_request() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve("");
    let rounds = rounds(10, 100);
    let carried = thread::scope(|scope| {
        let loads = [SVC4, SVC6].map(|svc| Load::start(scope, &world, 2, (svc, 80)));
        for _ in 0..rounds {
            world.capture(&proxy);
            loads.iter().for_each(|load| load.flows(5));
            assert!(world.remove_rules().status.success());
            loads.iter().for_each(|load| load.flows(5));
        }
        let carried: usize = loads.iter().map(Load::succeeded).sum();
        let failed: Vec<_> = loads.into_iter().flat_map(Load::stop).collect();
        assert!(
            failed.is_empty(),
            "{} failed: {:?}",
            failed.len(),
            failed.first()
        );
        carried
    });
    let captured = world.metric_sum("outrigger_requests_total", "");
    assert!(captured >= (rounds * 10) as f64, "only {captured} captured");
    figure(
        "install and remove under load",
        format!("{rounds} times: 0 failed of {carried} requests, {captured} of them captured"),
        "bar: 0 failed",
    );
}
