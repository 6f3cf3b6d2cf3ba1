//! Where not all can be seen: it says what it could not see, and tells what it could.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    incident::iptables,
    netns::{Namespace, Pair, run},
    proxyctl::{Outcome, ctl, finish, proxyctl},
};

#[test]
fn none_of_the_tools_need_be_there() {
    let pair = Pair::new();
    pair.app.enter(|| {
        iptables("iptables-legacy")
            .iter()
            .for_each(|rule| drop(run(rule)))
    });
    let mut command = Command::new(proxyctl());
    command.env("PATH", "/nonexistent");
    let found = finish(&pair.app, command, "doctor --json");
    assert_eq!(
        found.json["findings"][0]["kind"], "nobody_listens",
        "{found:?}"
    );
}

#[test]
fn processes_that_are_hidden_leave_the_rule_named() {
    let pair = Pair::new();
    let _listener = pair
        .app
        .enter(|| std::net::TcpListener::bind("127.0.0.1:80").unwrap());
    pair.app.enter(|| {
        iptables("iptables-legacy")
            .iter()
            .for_each(|rule| drop(run(rule)))
    });
    let found = half_blind(&pair.app, "doctor --json");
    assert_eq!(
        found.json["findings"][0]["kind"], "listener_hidden",
        "{found:?}"
    );
    assert!(
        found.json["findings"][0]["evidence"]
            .to_string()
            .contains("SIDECAR_OUTBOUND")
    );
    // The rules need no /proc: where it ends is as certain as ever.
    pair.app.enter(|| run("ip route add default via 10.77.0.2"));
    let told = half_blind(&pair.app, "explain 123.56.223.52:80");
    let first = told.stdout.lines().next().unwrap_or_default();
    assert!(first.contains("never leaves this host"), "{told:?}");
    assert!(first.contains("127.0.0.1:80"), "{told:?}");
    assert_eq!(told.code, 0, "{told:?}");
}

/// As a user with the capabilities to read rules and without those that show what other users' processes
/// hold, in a /proc that hides them.
fn half_blind(namespace: &Namespace, arguments: &str) -> Outcome {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    let line = format!(
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid=1234 --clear-groups --inh-caps=+net_admin,+net_raw --ambient-caps=+net_admin,+net_raw {} {arguments}",
        proxyctl().display()
    );
    command.arg(line).stdin(Stdio::null());
    finish(namespace, command, "")
}

#[test]
fn rules_that_change_meanwhile_are_read_whole_or_said_to_be_mixed() {
    let pair = Pair::new();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pair.app.enter(|| {
                while !is_over.load(Ordering::Relaxed) {
                    run("nft add table ip restless");
                    run("nft add chain ip restless out { type nat hook output priority -100 ; }");
                    run("nft delete table ip restless");
                }
            });
        });
        for _ in 0..10 {
            let told = ctl(&pair.app, "explain 10.77.0.2:80 --json");
            assert!([0, 2].contains(&told.code), "{told:?}");
            let is_mixed = told.json["unseen"]
                .to_string()
                .contains("changed at every attempt");
            assert_eq!(is_mixed, told.code == 2, "{told:?}");
            assert_eq!(told.json["ways"][0]["end"]["end"], "leaves", "{told:?}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_namespace_that_is_not_there_is_an_error_of_use() {
    let pair = Pair::new();
    for command in [
        "doctor --netns /run/netns/none",
        "explain 10.77.0.2 --netns 999999999",
    ] {
        let told = ctl(&pair.app, command);
        assert_eq!(told.code, 2, "{told:?}");
        assert!(told.stderr.contains("cannot enter"), "{told:?}");
    }
}
