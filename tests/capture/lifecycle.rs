//! What capture does from install to its end.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{fs::chown, process::ExitStatusExt},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use crate::{
    INSTALL, REMOVE, config,
    netns::Pair,
    proxyctl::{self, ctl, ctl_as, serve, until},
    wire::{Client, V4, V6, assert_captured, serve_echo, wire},
};

#[test]
fn both_families_are_captured_and_direct_again_once_the_proxy_is_killed() {
    let pair = wire();
    let mut proxy = serve(&pair.app, "--workers 2");
    let installed = ctl(&pair.app, INSTALL).expect("captured");
    assert_eq!(installed.code, 0);
    assert_captured(&pair, true);
    proxy.kill();
    assert_eq!(pair.app.ruleset(), "", "a rule outlived the proxy");
    assert_captured(&pair, false);
}

#[test]
fn connections_that_live_at_install_are_not_disturbed() {
    let pair = wire();
    let mut clients: Vec<_> = [V4, V6]
        .into_iter()
        .cycle()
        .take(40)
        .map(|address| Client::connect(&pair.app, address))
        .collect();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    clients.iter_mut().for_each(Client::check);
}

#[test]
fn a_removal_lets_live_connections_flow_and_leaves_no_rule_once_they_end() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let mut clients: Vec<_> = [V4, V6]
        .into_iter()
        .cycle()
        .take(40)
        .map(|address| Client::connect(&pair.app, address))
        .collect();
    assert!(clients.iter().all(|client| client.is_captured));
    let removed = ctl(&pair.app, REMOVE).expect("removed");
    assert_eq!(removed.code, 0);
    assert_captured(&pair, false);
    clients.iter_mut().for_each(Client::check);
    assert!(!pair.app.ruleset().contains("redirect"));
    assert!(
        pair.app.ruleset().contains("anchor"),
        "live connections lost their anchor"
    );
    drop(clients);
    until("the anchor's end", || pair.app.ruleset().is_empty());

    assert_eq!(ctl(&pair.app, REMOVE).expect("nothing to remove").code, 0);
}

#[test]
fn a_graceful_stop_ends_capture_first_and_live_connections_last() {
    let pair = wire();
    let mut proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let mut client = Client::connect(&pair.app, V4);
    proxy.signal("TERM");
    until("the end of the redirect", || {
        !pair.app.ruleset().contains("redirect")
    });
    assert_captured(&pair, false);
    client.check();
    drop(client);
    assert!(proxy.wait().success());
    assert_eq!(pair.app.ruleset(), "");
}

/// The capture's descriptor closes before the listeners': no SYN meets a redirect to nobody. What
/// was under way ends at once.
#[test]
fn a_kill_under_load_refuses_no_connection() {
    let pair = wire();
    for round in 0..10 {
        let mut proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, INSTALL).expect("captured");
        let done = AtomicBool::new(false);
        let dialled = AtomicU32::new(0);
        thread::scope(|scope| {
            for address in [V4, V6, V4, V6] {
                let load = || {
                    while !done.load(Ordering::Relaxed) {
                        if let Err(error) = Client::try_connect(&pair.app, address) {
                            let kind = error.kind();
                            assert_ne!(kind, ErrorKind::ConnectionRefused, "round {round}");
                            assert_ne!(kind, ErrorKind::TimedOut, "round {round}");
                            assert_ne!(kind, ErrorKind::WouldBlock, "round {round}: hung");
                        }
                        dialled.fetch_add(1, Ordering::Relaxed);
                    }
                };
                scope.spawn(load);
            }
            until("load before the kill", || {
                dialled.load(Ordering::Relaxed) > 40
            });
            proxy.kill();
            let before = dialled.load(Ordering::Relaxed);
            until("load after the kill", || {
                dialled.load(Ordering::Relaxed) > before + 40
            });
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(pair.app.ruleset(), "");
        assert_captured(&pair, false);
    }
}

/// Writing a core would keep the dead proxy's descriptors, and so its capture, for seconds.
#[test]
fn a_crash_dumps_no_core_and_ends_the_capture() {
    let pair = wire();
    // As the proxy's user from the start, in a directory of its own: a process that changed its user
    // would dump none anyway, nor one that may not write.
    let directory =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("core-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    chown(&directory, Some(proxyctl::PROXY_UID), None).unwrap();
    let mut command = proxyctl::as_user(proxyctl::PROXY_UID, "sh".as_ref());
    let serve = format!(
        "ulimit -c unlimited; exec {} serve --admin off --log-level error",
        proxyctl::proxyctl().display()
    );
    command.args(["-c", &serve]).current_dir(&directory);
    let mut proxy = proxyctl::start(&pair.app, command);
    until("the proxy", || {
        ctl(&pair.app, INSTALL).json["result"] == "captured"
    });
    proxy.signal("ABRT");
    let status = proxy.wait();
    assert_eq!(status.signal(), Some(6), "{status}");
    assert!(!status.core_dumped(), "{status}");
    assert_eq!(pair.app.ruleset(), "");
    assert_captured(&pair, false);
}

#[test]
fn a_second_install_changes_nothing() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let before = pair.app.ruleset();
    let again = ctl(&pair.app, INSTALL).expect("already captured");
    assert_eq!((again.code, &again.json["generation"]), (0, &1.into()));
    assert_eq!(pair.app.ruleset(), before);
}

#[test]
fn a_changed_configuration_replaces_the_capture_without_a_gap() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let configs =
        [23, 24].map(|port| config(&format!("capture: {{ exclude: {{ ports: [{port}] }} }}")));
    let done = AtomicBool::new(false);
    let dialled = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut dialled = 0;
            while !done.load(Ordering::Relaxed) {
                assert_captured(&pair, true);
                dialled += 2;
            }
            dialled
        });
        for (swap, file) in (2..=20).zip(configs.iter().cycle()) {
            let installed = ctl(&pair.app, &format!("{INSTALL} --config {file}"));
            let installed = installed.expect("captured");
            assert_eq!(installed.json["generation"], swap);
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(
        dialled > 20,
        "only {dialled} connections while the rules were swapped"
    );
    let ruleset = pair.app.ruleset();
    assert_eq!(ruleset.matches("table inet").count(), 2, "{ruleset}");
    assert!(ruleset.contains("outrigger_15001_g20"), "{ruleset}");
}

#[test]
fn two_installs_at_once_make_one_capture() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    let mut results = thread::scope(|scope| {
        let racing: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| ctl(&pair.app, INSTALL)))
            .collect();
        racing
            .into_iter()
            .map(|install| install.join().unwrap().text("result").to_owned())
            .collect::<Vec<_>>()
    });
    results.sort_unstable();
    let already = "already captured";
    assert_eq!(results, [already, already, already, "captured"]);
    assert_eq!(pair.app.ruleset().matches("jump capture").count(), 1);
}

/// Killed at whatever message it sends, an install leaves the capture whole or not there at all,
/// and the next one puts things right. Regression: killed just before its end, it left an anchor of
/// an older generation that no repetition removed.
#[test]
fn an_install_that_is_killed_leaves_nothing_half_done() {
    sweep("signal=KILL", |_, _| {});
}

/// Failing at whatever message it sends, an install takes back what it did. Regression: failing
/// after the older generation was gone, it took back the new one too.
#[test]
fn an_install_that_fails_late_leaves_the_rules_as_they_were() {
    sweep("error=ENOBUFS", |before, after| assert_eq!(before, after));
}

/// Lets `fault` happen to an install at each message that it sends to the kernel (`sendto`) and to
/// the proxy (`sendmsg`), with an older generation in force or only its anchor. `check` gets the rules before and after an install that failed.
fn sweep(fault: &str, check: impl Fn(&str, &str)) {
    let pair = wire();
    // The probes of one worker are counted; several workers are dialled until each was met, which
    // would number the messages differently each time.
    let _proxy = serve(&pair.app, "--workers 1");
    for (call, older_in_force) in [("sendto", true), ("sendmsg", true), ("sendmsg", false)] {
        let (mut failures, mut harmless) = (0, 0);
        // Three harmless ones in a row: the install makes no more such calls.
        for point in 1.. {
            let inject = format!("inject={call}:{fault}:when={point}");
            if fails_at(&pair, older_in_force, &inject, &check) {
                (failures, harmless) = (failures + 1, 0);
            } else {
                harmless += 1;
            }
            if harmless == 3 {
                break;
            }
        }
        assert!(failures > 5, "only {failures} calls of {call} mattered");
    }
}

/// Whether an install with a fault fails; afterwards traffic flows and a repetition is whole.
fn fails_at(pair: &Pair, older_in_force: bool, inject: &str, check: impl Fn(&str, &str)) -> bool {
    ctl(&pair.app, INSTALL).expect("captured");
    // Must outlive everything; it also keeps the older anchor from going by itself.
    let mut live = Client::connect(&pair.app, V4);
    if !older_in_force {
        ctl(&pair.app, REMOVE).expect("removed");
    }
    let before = pair.app.ruleset();
    let changed = config("capture: { exclude: { ports: [23] } }");
    let status = pair.app.enter(|| {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", inject]);
        command.arg(proxyctl::proxyctl());
        command.args(["install-rules", "--config", &changed]);
        let output = command.stdout(Stdio::null()).stderr(Stdio::null());
        output
            .status()
            .expect("this test needs the program `strace`")
    });
    if !status.success() {
        check(&before, &pair.app.ruleset());
    }
    if older_in_force {
        assert_captured(pair, true);
    } else {
        // Through the proxy or directly, but through.
        for address in [V4, V6] {
            Client::connect(&pair.app, address).check();
        }
    }
    let again = ctl(&pair.app, &format!("{INSTALL} --config {changed}"));
    assert_eq!(again.code, 0, "{inject}: {again:?}");
    let ruleset = pair.app.ruleset();
    assert_eq!(
        ruleset.matches("table inet").count(),
        2,
        "{inject}: {ruleset}"
    );
    ctl(&pair.app, REMOVE).expect("removed");
    live.check();
    !status.success()
}

#[test]
fn exclusions_go_direct() {
    let pair = wire();
    serve_echo(&pair.peer, "10.77.0.2:9000");
    serve_echo(&pair.peer, "10.77.0.2:9001");
    let _proxy = serve(&pair.app, "--workers 2");
    for (exclusion, address) in [
        ("ports: ['9000-9000']", "10.77.0.2:9000"),
        ("cidrs: ['10.77.0.2/32']", V4),
        ("cidrs: ['fd77::/64']", V6),
        ("uids: [0]", V4),
        ("gids: [0]", V6),
    ] {
        let file = config(&format!("capture: {{ exclude: {{ {exclusion} }} }}"));
        ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
        assert!(
            !Client::connect(&pair.app, address).is_captured,
            "{exclusion}"
        );
    }
    let file = config("capture: { include: { ports: [9001], cidrs: ['10.77.0.0/16'] } }");
    ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
    assert!(Client::connect(&pair.app, "10.77.0.2:9001").is_captured);
    assert!(!Client::connect(&pair.app, "10.77.0.2:9000").is_captured);
    assert!(!Client::connect(&pair.app, V6).is_captured);
}

#[test]
fn destinations_on_this_host_are_left_alone() {
    let pair = wire();
    for address in ["127.0.0.1:8081", "10.77.0.1:8081", "[::1]:8081"] {
        serve_echo(&pair.app, address);
    }
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    for address in ["127.0.0.1:8081", "10.77.0.1:8081", "[::1]:8081"] {
        assert!(
            !Client::connect(&pair.app, address).is_captured,
            "{address}"
        );
    }
}

#[test]
fn without_ipv6_on_loopback_only_ipv4_is_captured_and_said() {
    let pair = wire();
    pair.app.enter(|| {
        fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
    });
    let _proxy = serve(&pair.app, "--workers 2");
    let installed = ctl(&pair.app, INSTALL).expect("captured");
    assert_eq!(installed.json["families"], serde_json::json!(["IPv4"]));
    assert!(
        installed.json["notes"][0]
            .as_str()
            .unwrap()
            .contains("IPv6 is not captured")
    );
    assert!(Client::connect(&pair.app, V4).is_captured);
    assert!(!Client::connect(&pair.app, V6).is_captured);
}

#[test]
fn a_proxy_of_the_only_user_is_told_by_its_mark() {
    let file = config("capture: { proxy_mark: 7 }");
    let script = format!(
        "ip link set lo up
        {ctl} serve --config {file} --admin off & proxy=$!
        until ss -ltn | grep -q 127.0.0.1:15001; do kill -0 $proxy || exit 1; sleep 0.01; done
        {ctl} install-rules --json; echo
        {ctl} install-rules --json --config {file}; echo
        nft list ruleset
        kill -9 $proxy; wait $proxy
        nft list ruleset | grep -c redirect",
        ctl = proxyctl::proxyctl().display(),
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines[0].contains("proxy_mark"), "{text}");
    assert!(lines[1].contains("\"captured\""), "{text}");
    assert!(text.contains("meta mark 0x00000007 return"), "{text}");
    assert!(!text.contains("skuid"), "{text}");
    assert_eq!(*lines.last().unwrap(), "0", "{text}");
}

#[test]
fn a_dry_run_needs_no_privilege_and_no_proxy_and_changes_nothing() {
    let pair = wire();
    let outcome = ctl_as(&pair.app, 1000, "install-rules --dry-run");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("redirect to :15001"), "{outcome:?}");
    assert_eq!(pair.app.ruleset(), "");
}
