//! SIGKILL of a `serve` that was captured by `install-rules`.

use std::{
    io::{ErrorKind, Read},
    thread,
    time::{Duration, Instant},
};

use crate::{
    crowd::{Crowd, echo},
    support::{Load, SVC4, SVC6, World, figure, rounds},
};

/// Connections that are live and idle at each kill.
const LIVE: usize = 20;
/// The kernel ends them with the process; the rest is this test's own scheduling.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn a_killed_proxy_refuses_no_connection_hangs_none_and_leaves_no_rule() {
    let world = World::new();
    let _nginx = world.nginx();
    let _echo = echo(&world);
    let (mut in_flight, mut carried, mut slowest_end, mut slowest_failure) =
        (0, 0, Duration::ZERO, Duration::ZERO);
    let rounds = rounds(20, 200);
    for round in 0..rounds {
        let mut proxy = world.captured();
        let live = Crowd::open(&world, LIVE);
        let killed = thread::scope(|scope| {
            let loads = [SVC4, SVC6].map(|svc| Load::start(scope, &world, 2, (svc, 80)));
            loads.iter().for_each(|load| load.flows(20));
            proxy.kill();
            let killed = Instant::now();
            loads.iter().for_each(|load| load.flows(20));
            for load in loads {
                carried += load.succeeded();
                for failed in load.stop() {
                    let kind = failed.error.kind();
                    assert_ne!(kind, ErrorKind::ConnectionRefused, "round {round}");
                    assert!(
                        failed.began <= killed,
                        "round {round}: began {:?} after the end: {}",
                        failed.began - killed,
                        failed.error
                    );
                    let late = failed.ended.saturating_duration_since(killed);
                    assert!(late <= AT_ONCE, "round {round}: hung for {late:?}");
                    slowest_failure = slowest_failure.max(late);
                    in_flight += 1;
                }
            }
            killed
        });
        for mut stream in live.streams() {
            let ended = stream.read(&mut [0]).map_err(|error| error.kind());
            assert!(
                matches!(ended, Ok(0) | Err(ErrorKind::ConnectionReset)),
                "round {round}: {ended:?}"
            );
        }
        slowest_end = slowest_end.max(killed.elapsed());
        assert_eq!(world.app.ruleset().trim(), "", "round {round}");
    }
    figure(
        "SIGKILL under load",
        format!(
            "{rounds} rounds: 0 rules left, 0 SYNs refused, 0 hung; {in_flight} requests in flight lost of {carried} others carried, each within {slowest_failure:?}; {} live connections ended, the last known of {slowest_end:?} after the kill, load included",
            rounds * LIVE
        ),
        "bar: 0 rules, 0 refused, 0 hung",
    );
}
