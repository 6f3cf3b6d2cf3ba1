//! A proxy that hangs without dying: stopped as a whole, or one worker that spins for ever.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::support::{Proxy, SVC, SVC4, Speak, World, figure, rounds, spin, wait_until};

/// The default of `capture.lease`.
const LEASE: Duration = Duration::from_secs(2);
/// What the promise adds to it.
const SLACK: Duration = Duration::from_millis(100);
/// An answer over this wire takes a millisecond.
const STUCK: Duration = Duration::from_millis(20);
const PORT: u16 = 9;

#[test]
fn a_stopped_proxy_keeps_new_connections_no_longer_than_its_lease() {
    measure("SIGSTOP", |proxy| proxy.signal(Signal::STOP));
}

/// No tracer, no signal: the event loop is left as it is left by a bug, and takes all the CPU it gets.
#[test]
fn a_worker_that_spins_keeps_new_connections_no_longer_than_the_lease() {
    measure("a worker that spins", |proxy| {
        let worker = thread_named(proxy.pid(), "worker-1");
        spin(worker).unwrap_or_else(|error| panic!("turn thread {worker} in a circle: {error}"));
    });
}

/// Dials from the fault on until connections of both families are answered without the proxy.
fn measure(fault: &str, hang: impl Fn(&Proxy<'_>)) {
    let mut worst = Duration::ZERO;
    let rounds = rounds(2, 20);
    for _ in 0..rounds {
        let world = World::new();
        // Directly, the server sees the application's own port.
        let _peer = world.peer(PORT, |mut stream| {
            let port = stream.peer_addr()?.port();
            stream.say(format!("{port}\n"))
        });
        let mut proxy = world.serve("workers: 2");
        world.capture(&proxy);
        assert!(!is_direct(&world, SVC4), "captured");
        hang(&proxy);
        let hung = Instant::now();
        wait_until(LEASE * 3, "connections go direct", || {
            SVC.iter().all(|svc| is_direct(&world, *svc))
        });
        // The attempts that decide began this much earlier, at least.
        worst = worst.max(hung.elapsed());
        // From here on every one does: none is left to the worker that hangs.
        for svc in SVC.iter().cycle().take(20) {
            assert!(is_direct(&world, *svc));
        }
        // Its worker spins: nothing that it should have met can be asked for.
        proxy.kill();
    }
    figure(
        &format!("new connections direct after {fault}"),
        format!("at most {worst:?} in {rounds} rounds"),
        "bar: lease 2 s + 100 ms",
    );
    assert!(worst <= LEASE + SLACK, "{worst:?}");
}

fn is_direct(world: &World, svc: std::net::IpAddr) -> bool {
    let Ok(mut stream) = world.app.try_connect((svc, PORT)) else {
        return false;
    };
    stream.set_read_timeout(Some(STUCK)).unwrap();
    let own = stream.local_addr().unwrap().port();
    stream
        .hear_until("\n")
        .is_ok_and(|seen| seen.trim() == own.to_string())
}

fn thread_named(process: Pid, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .find(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == name)
        .and_then(|task| Pid::from_raw(task.file_name()?.to_str()?.parse().ok()?))
        .unwrap_or_else(|| panic!("no thread {name}"))
}
