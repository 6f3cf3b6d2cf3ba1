//! `proxyctl run` end to end.

#[path = "../support/mod.rs"]
mod support;

mod client;
mod deaths;
mod places;

use std::process::Command;

use rustix::process::{Pid, Signal};
use support::{SOON, SVC4, World, wait_until};

fn run(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(world.proxyctl());
    command
        .arg("run")
        .args(["--scope", "netns"])
        .args(arguments);
    command
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
    proxies(world).first().copied()
}

/// And whatever program it was started by.
fn proxies(world: &World) -> Vec<Pid> {
    let mut found = world.app.processes();
    found.retain(|pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        line.is_ok_and(|line| String::from_utf8_lossy(&line).contains("serve\0--supervised"))
    });
    found
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

/// Regression: the table that refuses outlives every proxy, and outlived the run too.
#[test]
fn what_fails_closed_does_so_for_the_command_only() {
    let world = World::new();
    let _nginx = world.nginx();
    let closed = "capture: { fail_closed: [\"198.51.100.0/24\"] }\n";
    let config = world.write("closed.yaml", closed).display().to_string();
    let url = format!("http://{SVC4}/hello");
    for scope in ["cgroup", "netns"] {
        let mut command = Command::new(world.proxyctl());
        command.args(["run", "--scope", scope, "--config", &config]);
        command.args(["--", "curl", "-sSf", &url]);
        let output = world.app.output(&command);
        assert_eq!(output.status.code(), Some(0), "{scope}: {output:?}");
        assert_nothing_left(&world);
    }
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
