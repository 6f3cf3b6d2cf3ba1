//! Hot upgrade: another proxy in the place of the one that serves, under load and with live streams; and
//! the ones that are refused.

mod streams;

#[path = "../support/mod.rs"]
mod support;

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use support::{Load, Process, SOON, SVC4, World, figure, rounds, wait_for, wait_until};

#[test]
fn nothing_fails_however_often_the_proxy_is_upgraded() {
    let world = World::new();
    let _nginx = world.nginx();
    let _echo = streams::echo(&world);
    let _supervisor = supervised(&world, "timeouts: { drain: 10m }\n");
    let mut tunnel = streams::Tunnel::open(&world);
    let mut stream = streams::Grpc::open(&world);
    let count = rounds(5, 100);
    let failed = thread::scope(|scope| {
        let load = Load::start(scope, &world, 8, (SVC4, 80));
        for round in 0..count {
            load.flows(20);
            let before = newest_proxy(&world);
            let upgraded = upgrade(&world, &[]);
            assert!(upgraded.status.success(), "round {round}: {upgraded:?}");
            assert_ne!(newest_proxy(&world), before, "round {round}");
            assert!(is_captured(&world), "round {round}");
            tunnel.echoes();
            stream.echoes();
        }
        load.flows(20);
        load.stop()
    });
    figure(
        "failed requests",
        format!("{} in {count} upgrades", failed.len()),
        "bar 0",
    );
    assert!(failed.is_empty(), "{failed:?}");
    // The first proxy has the streams, the last one the new connections, and none else is left.
    wait_until(SOON, "two proxies are left", || proxies(&world).len() == 2);
    drop((tunnel, stream));
    wait_until(SOON, "one proxy is left", || proxies(&world).len() == 1);
}

#[test]
fn streams_of_the_old_proxy_end_at_their_drain_deadline_and_not_before() {
    const DRAIN: Duration = Duration::from_secs(2);
    let world = World::new();
    let _echo = streams::echo(&world);
    let _supervisor = supervised(&world, "timeouts: { drain: 2s }\n");
    let mut tunnel = streams::Tunnel::open(&world);
    let began = Instant::now();
    assert!(upgrade(&world, &[]).status.success());
    let upgraded = Instant::now();
    while tunnel.try_echo().is_ok() {
        assert!(upgraded.elapsed() < DRAIN + SOON, "the tunnel does not end");
    }
    assert!(began.elapsed() >= DRAIN, "{:?}", began.elapsed());
    wait_until(SOON, "one proxy is left", || proxies(&world).len() == 1);
}

#[test]
fn sigusr2_upgrades_to_the_configuration_as_it_is_now() {
    let world = World::new();
    let _nginx = world.nginx();
    let supervisor = supervised(&world, "timeouts: { drain: 1s }\n");
    let before = newest_proxy(&world);
    world.write("run.yaml", "timeouts: { drain: 3s }\n");
    supervisor.signal(Signal::USR2);
    wait_until(SOON, "another proxy serves", || {
        proxies(&world).iter().all(|pid| *pid != before) && is_captured(&world)
    });
    let world = &world;
    thread::scope(|scope| Load::start(scope, world, 1, (SVC4, 80)).flows(3));
}

#[test]
fn what_does_not_pass_is_refused_and_the_old_proxy_goes_on() {
    let world = World::new();
    let _nginx = world.nginx();
    let _supervisor = supervised(&world, "");
    let before = newest_proxy(&world);
    // Serves, until it is let at the sockets: half a second later it is gone.
    let crashing = program(
        &world,
        "crashing",
        &format!(
            "(sleep 0.2; kill -9 $$) & exec {} \"$@\"",
            world.proxyctl().display()
        ),
    );
    let silent = program(&world, "silent", "head -c 1 >/dev/null; exit 3");
    let problem = world.write("problem.yaml", "timeouts: { drain: soon }\n");
    let moved = world.write("moved.yaml", "listen: [\"127.0.0.1:15009\"]\n");
    let cases: [(&[&str], &str); 5] = [
        (&["--binary", "/bin/false"], "ended with exit code 1"),
        (&["--binary", "/no/such/program"], "cannot be started"),
        (&["--config", problem.to_str().unwrap()], "no duration"),
        (&["--config", moved.to_str().unwrap()], "cannot change"),
        (&["--binary", silent.to_str().unwrap()], "before it served"),
    ];
    let failed = thread::scope(|scope| {
        let load = Load::start(scope, &world, 4, (SVC4, 80));
        for (arguments, reason) in cases {
            let refused = upgrade(&world, arguments);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                !refused.status.success() && said.contains(reason),
                "{arguments:?}: {said}"
            );
            load.flows(20);
            assert_eq!(newest_proxy(&world), before, "{arguments:?}");
            assert!(is_captured(&world), "{arguments:?}");
        }
        load.stop()
    });
    assert!(failed.is_empty(), "{failed:?}");

    // One that dies after it has passed takes what it had accepted along; then the old program is back.
    let _ = upgrade(&world, &["--binary", crashing.to_str().unwrap()]);
    wait_until(SOON, "the old program serves again", || {
        let newest = newest_proxy(&world);
        let command = std::fs::read(format!("/proc/{}/exe", newest.as_raw_nonzero()));
        command.is_ok() && proxies(&world).len() == 1 && is_captured(&world)
    });
    thread::scope(|scope| Load::start(scope, &world, 1, (SVC4, 80)).flows(3));
}

/// Their chains belong to the port and not to a proxy: they are replaced, and no lease of the old one counts.
#[test]
fn a_capture_by_iptables_changes_hands() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        let world = World::new();
        let _nginx = world.nginx();
        let config = world.write("run.yaml", "");
        let mut supervisor = world.start(
            "run",
            Command::new(world.proxyctl())
                .args(["run", "--scope", "netns", "--backend", backend, "--config"])
                .arg(&config),
        );
        supervisor.until("captures", || is_captured(&world));
        let rules = || world.app.sh(&format!("{backend}-save -t nat"));
        let failed = thread::scope(|scope| {
            let load = Load::start(scope, &world, 4, (SVC4, 80));
            for port in [8081, 8082] {
                load.flows(20);
                let before = newest_proxy(&world);
                let exclude = format!("capture: {{ exclude: {{ ports: [{port}] }} }}");
                world.write("run.yaml", exclude);
                let upgraded = upgrade(&world, &[]);
                assert!(upgraded.status.success(), "{backend}: {upgraded:?}");
                assert_ne!(newest_proxy(&world), before, "{backend}");
                assert!(is_captured(&world), "{backend}");
                let rules = rules();
                assert!(
                    rules.contains(&format!("--dport {port} -j RETURN")),
                    "{rules}"
                );
                assert_eq!(rules.matches("-A OUTPUT").count(), 1, "{rules}");
            }
            // One that does not pass leaves the rules as they were.
            world.write("run.yaml", "capture: { exclude: { ports: [8083] } }");
            let refused = upgrade(&world, &["--binary", "/bin/false"]);
            assert!(!refused.status.success(), "{backend}: {refused:?}");
            assert!(rules().contains("--dport 8082 -j RETURN"), "{}", rules());
            load.flows(20);
            load.stop()
        });
        assert!(failed.is_empty(), "{backend}: {failed:?}");
        supervisor.signal(Signal::TERM);
        supervisor.wait(SOON);
        assert!(!rules().contains("OUTRIGGER"), "{}", rules());
    }
}

/// What must not go direct is refused all along: by the old table until the new one is in force, and what only
/// the old one named may go direct then.
#[test]
fn what_fails_closed_changes_hands_with_the_capture() {
    let world = World::new();
    let _nginx = world.nginx();
    let closed = |to: &str| format!("capture: {{ fail_closed: [\"{to}\"] }}\n");
    let mut supervisor = supervised(&world, &closed("198.51.100.2/32"));
    let tables = || {
        let tables = world.app.sh("nft list tables");
        let tables = tables.lines().filter(|table| table.contains("_closed_g"));
        tables.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = tables();
    assert_eq!(before.len(), 1, "{before:?}");
    for to in ["198.51.100.0/24", "203.0.113.0/24"] {
        world.write("run.yaml", closed(to));
        let failed = thread::scope(|scope| {
            let load = Load::start(scope, &world, 4, (SVC4, 80));
            load.flows(20);
            let upgraded = upgrade(&world, &[]);
            assert!(upgraded.status.success(), "{upgraded:?}");
            load.flows(20);
            load.stop()
        });
        assert!(failed.is_empty(), "{failed:?}");
        let now = tables();
        assert_eq!(now.len(), 1, "{now:?}");
        assert_ne!(now, before);
        assert!(world.app.ruleset().contains(to), "{}", world.app.ruleset());
    }
    supervisor.signal(Signal::TERM);
    supervisor.wait(SOON);
    assert_eq!(tables(), Vec::<String>::new(), "{}", supervisor.log());
}

#[test]
fn without_a_supervisor_it_says_so() {
    let world = World::new();
    let refused = upgrade(&world, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no `proxyctl run` answers"), "{said}");
}

fn supervised(world: &World, config: &str) -> Process {
    let file = world.write("run.yaml", config);
    let mut command = Command::new(world.proxyctl());
    command
        .args(["run", "--scope", "netns", "--config"])
        .arg(file);
    let mut supervisor = world.start("run", &command);
    supervisor.until("captures", || is_captured(world));
    supervisor
}

fn upgrade(world: &World, arguments: &[&str]) -> Output {
    let mut command = Command::new(world.proxyctl());
    world.app.output(command.arg("upgrade").args(arguments))
}

fn is_captured(world: &World) -> bool {
    let mut command = Command::new(world.proxyctl());
    world.app.output(command.arg("status")).status.success()
}

fn proxies(world: &World) -> Vec<Pid> {
    let mut found: Vec<_> = world.app.processes();
    found.retain(|pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        line.is_ok_and(|line| String::from_utf8_lossy(&line).contains("serve\0--supervised"))
    });
    found
}

/// By the time of its start.
fn newest_proxy(world: &World) -> Pid {
    let started = |pid: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let stat = stat.unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let time = after_name.split_whitespace().nth(19).map(str::to_owned);
        time.and_then(|time| time.parse::<u64>().ok()).unwrap_or(0)
    };
    wait_for(SOON, "a proxy", || {
        proxies(world)
            .into_iter()
            .max_by_key(|pid| (started(pid), pid.as_raw_nonzero()))
    })
}

fn program(world: &World, name: &str, script: &str) -> std::path::PathBuf {
    let path = world.write(name, format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    assert!(Path::new(&path).is_absolute());
    path
}
