//! A pod, played: two containers, which share a network namespace and nothing else, with the users and
//! capabilities that the manifests give them.

use std::{fs, path::Path, process::Command};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Peer, Process, SOON, SVC, SVC4, Speak, World, wait_for, wait_until};

/// What `securityContext` of the container `outrigger` says.
const UNPRIVILEGED: &[&str] = &[
    "--reuid=1337",
    "--regid=1337",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
];

/// What that of the container `capture` says.
const ONLY_NET_ADMIN: &[&str] = &[
    "--clear-groups",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all",
    "--no-new-privs",
];

#[test]
fn a_proxy_without_privileges_is_captured_for_from_another_container() {
    let world = World::new();
    let _peer = service(&world);
    let mut proxy = container(&world, "proxy", UNPRIVILEGED, &["serve"]);
    proxy.until("listens", || world.app.listeners_on(15001) > 0);
    let mut capture = container(&world, "capture", ONLY_NET_ADMIN, &["install-rules"]);
    assert_eq!(capture.wait(SOON).code(), Some(0), "{}", capture.log());
    for svc in SVC {
        assert_eq!(ask(&world, svc), "hello");
    }
    world.until_counted("outrigger_requests_total", "", 2.0);

    let status =
        fs::read_to_string(format!("/proc/{}/status", first_process(&world, "serve"))).unwrap();
    for (key, value) in [
        ("Uid:", "1337 1337 1337 1337"),
        ("NSpid:", "1"),
        ("CapPrm:", "0000000000000000"),
        ("CapBnd:", "0000000000000000"),
    ] {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        // Of the numbers in each pid namespace, the last is the container's own.
        let said = if key == "NSpid:" {
            words[words.len() - 1].into()
        } else {
            words.join(" ")
        };
        assert_eq!(said, value, "{key}");
    }
}

#[test]
fn without_net_admin_it_says_what_is_missing() {
    let world = World::new();
    let mut proxy = container(&world, "proxy", UNPRIVILEGED, &["serve"]);
    proxy.until("listens", || world.app.listeners_on(15001) > 0);
    let root_alone = ["--bounding-set=-all", "--inh-caps=-all"];
    let mut capture = container(&world, "capture", &root_alone, &["install-rules"]);
    assert_eq!(capture.wait(SOON).code(), Some(1));
    assert!(
        capture.log().contains("failed check: privilege"),
        "{}",
        capture.log()
    );
}

#[test]
fn rules_that_come_first_wait_for_the_proxy() {
    let world = World::new();
    let arguments = ["install-rules", "--wait", "20s"];
    let mut capture = container(&world, "capture", ONLY_NET_ADMIN, &arguments);
    let mut proxy = container(&world, "proxy", UNPRIVILEGED, &["serve"]);
    proxy.until("listens", || world.app.listeners_on(15001) > 0);
    assert_eq!(capture.wait(2 * SOON).code(), Some(0), "{}", capture.log());
    assert!(is_captured(&world));
}

#[test]
fn rules_do_not_wait_for_longer_than_they_were_told() {
    let world = World::new();
    let arguments = ["install-rules", "--wait", "300ms"];
    let mut capture = container(&world, "capture", ONLY_NET_ADMIN, &arguments);
    assert_eq!(capture.wait(SOON).code(), Some(1));
    assert!(
        capture.log().contains("failed check: control"),
        "{}",
        capture.log()
    );
}

#[test]
fn a_container_that_keeps_the_rules_captures_for_each_next_proxy() {
    let world = World::new();
    let _peer = service(&world);
    let keep = ["install-rules", "--keep"];
    let mut capture = container(&world, "capture", ONLY_NET_ADMIN, &keep);
    for _ in 0..2 {
        let mut proxy = container(&world, "proxy", UNPRIVILEGED, &["serve"]);
        wait_until(2 * SOON, "connections are captured", || is_captured(&world));
        assert_eq!(ask(&world, SVC4), "hello");
        world.until_counted("outrigger_requests_total", "", 1.0);
        kill_process(
            Pid::from_raw(first_process(&world, "serve")).unwrap(),
            Signal::KILL,
        )
        .unwrap();
        proxy.wait(SOON);
        // Nobody is there to be asked, and nobody refuses.
        assert_eq!(ask(&world, SVC4), "hello");
        assert!(!is_captured(&world));
    }
    assert!(capture.exited().is_none(), "{}", capture.log());
    // As the kubelet does it: the container's first process gets the signal.
    let keeper = first_process(&world, "install-rules");
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::TERM).unwrap();
    assert_eq!(capture.wait(SOON).code(), Some(0), "{}", capture.log());
}

#[test]
fn at_the_pods_end_the_proxy_leaves_and_connections_go_direct() {
    let world = World::new();
    let _peer = service(&world);
    let mut proxy = container(&world, "proxy", UNPRIVILEGED, &["serve"]);
    proxy.until("listens", || world.app.listeners_on(15001) > 0);
    let mut capture = container(&world, "capture", ONLY_NET_ADMIN, &["install-rules"]);
    assert_eq!(capture.wait(SOON).code(), Some(0), "{}", capture.log());
    let serve = first_process(&world, "serve");
    kill_process(Pid::from_raw(serve).unwrap(), Signal::TERM).unwrap();
    while proxy.exited().is_none() {
        assert_eq!(ask(&world, SVC4), "hello");
    }
    assert_eq!(proxy.wait(SOON).code(), Some(0), "{}", proxy.log());
    assert_eq!(world.app.ruleset(), "");
}

/// `proxyctl` as the first process of a pid namespace, with mounts of its own.
fn container(world: &World, name: &str, identity: &[&str], arguments: &[&str]) -> Process {
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--mount-proc",
        "--mount",
        "--ipc",
        "--uts",
    ]);
    command
        .args(["--kill-child", "--", "setpriv"])
        .args(identity);
    command.arg("--").arg(world.proxyctl()).args(arguments);
    world.start(name, &command)
}

/// The number, here, of the `proxyctl` that was started with `subcommand`.
fn first_process(world: &World, subcommand: &str) -> i32 {
    wait_for(SOON, subcommand, || {
        let found = world.app.processes().into_iter().find(|pid| {
            let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
            let line = fs::read_to_string(Path::new(&path)).unwrap_or_default();
            let mut words = line.split('\0');
            words
                .next()
                .is_some_and(|program| program.ends_with("/proxyctl"))
                && words.next() == Some(subcommand)
        });
        found.map(|pid| pid.as_raw_nonzero().get())
    })
}

fn is_captured(world: &World) -> bool {
    let mut command = Command::new(world.proxyctl());
    world.app.output(command.arg("status")).status.success()
}

fn service(world: &World) -> Peer {
    world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        stream.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    })
}

/// The body of the service's answer.
fn ask(world: &World, svc: std::net::IpAddr) -> String {
    let mut stream = world.app.connect((svc, 80));
    stream
        .say("GET / HTTP/1.1\r\nHost: svc\r\nConnection: close\r\n\r\n")
        .unwrap();
    let answer = stream.hear_to_end().unwrap();
    String::from_utf8_lossy(&answer)
        .rsplit("\r\n\r\n")
        .next()
        .unwrap()
        .into()
}
