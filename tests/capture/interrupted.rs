//! Removals and installs that are killed, at every system call by which they change something or
//! ask somebody else to. (Installs over netlink: `lifecycle`; what fails within the iptables
//! programs: `backends`.)

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use crate::{
    INSTALL, REMOVE, config,
    netns::Pair,
    proxyctl::{ctl, proxyctl, serve},
    wire::{Client, V4, V6, assert_captured, wire},
};

/// Making files and the lock; messages to the kernel and to the proxy; starting a program and waiting
/// for it. Whoever is killed at the next one has had the former obeyed.
const CHANGES: [&str; 9] = [
    "mkdir", "flock", "write", "sendto", "sendmsg", "clone", "clone3", "vfork", "wait4",
];
/// The long form adds what only asks and listens: between two changes nothing differs but the time.
const QUESTIONS: [&str; 4] = ["bind", "connect", "recvfrom", "recvmsg"];
/// Where a removal, which asks the proxy once, can be killed at least.
const LEAST: usize = 5;

#[test]
fn a_removal_that_is_killed_loses_no_connection_and_its_repetition_is_whole() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let killed = sweep(|inject| {
        ctl(&pair.app, INSTALL).expect("captured");
        let mut live = Client::connect(&pair.app, V4);
        let is_killed = kill(&pair, inject, "remove-rules");
        connect_to_both(&pair);
        live.check();
        ctl(&pair.app, REMOVE).expect_one_of(&["removed", "nothing to remove"]);
        assert!(!pair.app.ruleset().contains("redirect"), "{inject}");
        assert_captured(&pair, false);
        live.check();
        is_killed
    });
    assert!(killed >= LEAST, "only {killed} points");
    println!("\nfigure: remove-rules killed, nft: {killed} points, 0 connections lost");
}

#[test]
fn a_removal_of_either_iptables_that_is_killed_is_made_whole_by_its_repetition() {
    for variant in ["iptables-nft", "iptables-legacy"] {
        let pair = wire();
        let _proxy = serve(&pair.app, "--workers 1");
        let install = format!("{INSTALL} --backend {variant}");
        let killed = sweep(|inject| {
            ctl(&pair.app, &install).expect("captured");
            let mut live = Client::connect(&pair.app, V4);
            let is_killed = kill(&pair, inject, "remove-rules");
            connect_to_both(&pair);
            live.check();
            ctl(&pair.app, REMOVE).expect_one_of(&["removed", "nothing to remove"]);
            assert_captured(&pair, false);
            live.check();
            is_killed
        });
        assert!(killed >= LEAST, "only {killed} points");
        println!("\nfigure: remove-rules killed, {variant}: {killed} points, 0 connections lost");
    }
}

/// Regression: killed within its probes, an install left a jump that its repetition stumbled over.
#[test]
fn an_install_of_either_iptables_that_is_killed_is_made_whole_by_its_repetition() {
    for variant in ["iptables-nft", "iptables-legacy"] {
        let pair = wire();
        let _proxy = serve(&pair.app, "--workers 1");
        let changed = config("capture: { exclude: { ports: [23] } }");
        let install = format!("install-rules --backend {variant} --config {changed}");
        let killed = sweep(|inject| {
            ctl(&pair.app, &format!("{INSTALL} --backend {variant}")).expect("captured");
            let mut live = Client::connect(&pair.app, V4);
            let is_killed = kill(&pair, inject, &install);
            assert_captured(&pair, true);
            live.check();
            ctl(&pair.app, &format!("{install} --json"))
                .expect_one_of(&["captured", "already captured"]);
            assert_captured(&pair, true);
            ctl(&pair.app, REMOVE).expect("removed");
            assert_captured(&pair, false);
            live.check();
            is_killed
        });
        assert!(killed >= LEAST, "only {killed} points");
        println!("\nfigure: install-rules killed, {variant}: {killed} points, 0 connections lost");
    }
}

/// Whatever it broke off at, closed destinations are reached: through the proxy, or not closed yet.
#[test]
fn an_install_that_is_killed_leaves_nothing_closed_that_is_not_captured() {
    for backend in ["nft", "iptables-nft"] {
        let pair = wire();
        let _proxy = serve(&pair.app, "--workers 1");
        let file = config("capture: { fail_closed: ['10.77.0.2/32', 'fd77::2/128'] }");
        let install = format!("install-rules --backend {backend} --config {file}");
        let closed = || pair.app.ruleset().matches("_closed_g").count();
        let killed = sweep(|inject| {
            let is_killed = kill(&pair, inject, &install);
            connect_to_both(&pair);
            ctl(&pair.app, &format!("{install} --json"))
                .expect_one_of(&["captured", "already captured"]);
            assert_captured(&pair, true);
            assert_eq!(closed(), 1, "{backend}, {inject}");
            ctl(&pair.app, REMOVE).expect("removed");
            assert_eq!(closed(), 0, "{backend}, {inject}");
            assert_captured(&pair, false);
            is_killed
        });
        assert!(killed >= LEAST, "only {killed} points");
        println!(
            "\nfigure: install-rules with fail_closed killed, {backend}: {killed} points, 0 connections lost"
        );
    }
}

/// Lets `is_killed_at` try every call at each of its turns, until it is not made that often; tells
/// how many points there were.
fn sweep(mut is_killed_at: impl FnMut(&str) -> bool) -> usize {
    let is_long = std::env::var_os("OUTRIGGER_SOAK").is_some();
    let questions = QUESTIONS.into_iter().filter(|_| is_long);
    let killed = CHANGES.into_iter().chain(questions).map(|call| {
        (1..)
            .take_while(|turn| is_killed_at(&format!("inject={call}:signal=KILL:when={turn}")))
            .count()
    });
    killed.sum()
}

/// Whether `proxyctl` with `arguments` meets the fault; without it, it has to succeed.
fn kill(pair: &Pair, inject: &str, arguments: &str) -> bool {
    let status = pair.app.enter(|| {
        let mut command = Command::new("strace");
        command.args(["-qq", "-o", "/dev/null", "-e", inject]);
        command.arg(proxyctl()).args(arguments.split(' '));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
            .status()
            .expect("this test needs the program `strace`")
    });
    // Strace ends as the program did.
    let is_killed = status.signal() == Some(9);
    assert!(is_killed || status.success(), "{inject}: {status}");
    is_killed
}

/// Through the proxy or directly, but through.
fn connect_to_both(pair: &Pair) {
    for address in [V4, V6] {
        Client::connect(&pair.app, address).check();
    }
}
