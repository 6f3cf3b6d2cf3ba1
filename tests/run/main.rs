//! `proxyctl run` end to end: the command's exit, and every way that its sidecar may die.

#[path = "../support/mod.rs"]
mod support;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Load, Process, SOON, SVC4, World, figure, rounds, wait_for, wait_until};

/// Many deaths are the point of some tests.
const PATIENT: &str = "supervisor: { max_deaths: 1000000 }\n";

fn run(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(world.proxyctl());
    command
        .arg("run")
        .args(["--scope", "netns"])
        .args(arguments);
    command
}

/// A supervisor of the whole namespace that captures.
fn supervised(world: &World, config: &str, arguments: &[&str]) -> Process {
    let file = world.write("run.yaml", config);
    let file = file.to_str().expect("a plain path");
    let mut all = vec!["--config", file];
    all.extend(arguments);
    let mut supervisor = world.start("run", &run(world, &all));
    supervisor.until("captures", || is_captured(world));
    supervisor
}

fn status(world: &World) -> String {
    let output = world
        .app
        .output(Command::new(world.proxyctl()).args(["status", "--json"]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_captured(world: &World) -> bool {
    status(world).contains("\"result\":\"captured\"")
}

/// The proxy that serves now, by the name that it has in the list of processes.
fn proxy(world: &World) -> Option<Pid> {
    world.app.processes().into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        line.is_ok_and(|line| String::from_utf8_lossy(&line).contains("serve\0--supervised"))
    })
}

fn assert_nothing_left(world: &World) {
    wait_until(SOON, "no process is left", || {
        world.app.processes().is_empty()
    });
    assert_eq!(world.app.ruleset(), "");
    assert_eq!(world.app.listeners_on(15001), 0);
}

#[test]
fn a_command_keeps_its_exit_code_and_leaves_nothing_behind() {
    let world = World::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        let output = world.app.output(&run(&world, &["--", "sh", "-c", script]));
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
        assert_nothing_left(&world);
    }
    let missing = world.app.output(&run(&world, &["--", "no-such-program"]));
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
    let daemon = world.app.output(&run(
        &world,
        &["--", "sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &"],
    ));
    assert_eq!(daemon.status.code(), Some(0), "{daemon:?}");
    assert_nothing_left(&world);
}

#[test]
fn a_signal_reaches_the_command() {
    let world = World::new();
    let script = "trap 'exit 9' TERM; echo begun; while :; do sleep 0.01; done";
    let mut supervisor = world.start("run", &run(&world, &["--", "sh", "-c", script]));
    supervisor.until("starts the command", || true);
    wait_until(SOON, "the command has begun", || {
        supervisor.log().contains("begun")
    });
    supervisor.signal(Signal::TERM);
    assert_eq!(
        supervisor.wait(SOON).code(),
        Some(9),
        "{}",
        supervisor.log()
    );
    assert_nothing_left(&world);
}

#[test]
fn a_port_that_is_taken_is_refused_by_name_and_a_default_one_replaced() {
    let world = World::new();
    let _holder = world.app.listen(15001);
    let asked = ["--listen", "127.0.0.1:15001", "--", "true"];
    let refused = world.app.output(&run(&world, &asked));
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("port 15001 is taken"), "{said}");
    let moved = world.app.output(&run(&world, &["--", "true"]));
    assert_eq!(moved.status.code(), Some(0), "{moved:?}");
}

#[test]
fn no_new_connection_fails_however_often_the_proxy_is_killed() {
    let world = World::new();
    let _nginx = world.nginx();
    let _supervisor = supervised(&world, PATIENT, &[]);
    let count = rounds(50, 1000);
    let mut kills = Vec::new();
    let failed = thread::scope(|scope| {
        let load = Load::start(scope, &world, 8, (SVC4, 80));
        let mut last = None;
        for _ in 0..count {
            let pid = wait_for(SOON, "another proxy", || {
                proxy(&world).filter(|pid| Some(*pid) != last)
            });
            wait_until(SOON, "captured again", || is_captured(&world));
            load.flows(20);
            kills.push(Instant::now());
            kill_process(pid, Signal::KILL).expect("it lives");
            last = Some(pid);
        }
        load.flows(20);
        load.stop()
    });
    // What a proxy had accepted goes with it, as with any process; everything else must live.
    let inexcusable: Vec<_> = failed
        .iter()
        .filter(|f| !kills.iter().any(|kill| (f.began..=f.ended).contains(kill)))
        .collect();
    figure(
        "failed new connections",
        format!("{} in {count} kills", inexcusable.len()),
        "bar 0",
    );
    figure(
        "connections that a killed proxy held",
        failed.len(),
        "no bar",
    );
    assert!(inexcusable.is_empty(), "{inexcusable:?}");
}

#[test]
fn a_proxy_that_hangs_is_replaced() {
    let world = World::new();
    let _nginx = world.nginx();
    let _supervisor = supervised(&world, "", &[]);
    let pid = proxy(&world).expect("a proxy");
    kill_process(pid, Signal::STOP).expect("it lives");
    let stopped = Instant::now();
    wait_until(SOON, "another proxy captures", || {
        proxy(&world).is_some_and(|other| other != pid) && is_captured(&world)
    });
    let again = stopped.elapsed();
    figure(
        "captured again after SIGSTOP, in ms",
        again.as_millis(),
        "lease 2000",
    );
    assert!(again < Duration::from_secs(5));
    world.app.sh(&format!("curl -sSf http://{SVC4}/hello"));
}

#[test]
fn a_proxy_that_crashes_for_ever_trips_the_breaker_and_the_command_goes_direct() {
    let world = World::new();
    let _nginx = world.nginx();
    let flag = world.dir().join("broken");
    let program = world.write(
        "program",
        format!(
            "#!/bin/sh\n[ ! -e {} ] || exit 3\nexec {} \"$@\"\n",
            flag.display(),
            world.proxyctl().display()
        ),
    );
    world.app.sh(&format!("chmod 755 {}", program.display()));
    let program = program.to_str().expect("a plain path");
    let supervisor = supervised(&world, "", &["--serve-with", program]);
    world.write("broken", "");
    kill_process(proxy(&world).expect("a proxy"), Signal::KILL).expect("it lives");
    wait_until(SOON, "the breaker trips", || {
        status(&world).contains("\"tripped\"")
    });
    world.app.sh(&format!("curl -sSf http://{SVC4}/hello"));
    assert!(
        supervisor.log().contains("died too often"),
        "{}",
        supervisor.log()
    );
    std::fs::remove_file(flag).expect("made above");
    wait_until(SOON * 3, "it captures again", || is_captured(&world));
}

#[test]
fn without_its_supervisor_the_proxy_leaves_and_connections_go_direct() {
    let world = World::new();
    let nginx = world.nginx();
    let mut supervisor = supervised(&world, "", &[]);
    supervisor.kill();
    world.app.sh(&format!("curl -sSf http://{SVC4}/hello"));
    assert_eq!(nginx.connections(), 1);
    assert_nothing_left(&world);
}
