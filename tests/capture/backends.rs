//! Capture by the iptables programs, in both variants and both families.

use std::{
    fmt::Write,
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    INSTALL, REMOVE, config,
    netns::{Namespace, Pair, run},
    proxyctl::{self, Outcome, PROXY_UID, ctl, ctl_as, proxy, serve, until},
    wire::{Client, V4, V6, assert_captured, serve_echo, wire},
};

const VARIANTS: [&str; 2] = ["iptables-nft", "iptables-legacy"];
/// The default.
const LEASE: Duration = Duration::from_secs(2);

fn install(backend: &str) -> String {
    format!("{INSTALL} --backend {backend}")
}

/// What both variants and families hold, without the counters; a built-in table that holds nothing
/// is as good as none, and a legacy one never goes again.
fn saved(namespace: &Namespace) -> String {
    let mut all = String::new();
    for variant in ["nft", "legacy"] {
        for command in ["iptables", "ip6tables"] {
            let program = format!("{command}-{variant}-save");
            let listing = namespace.enter(|| run(&program));
            for table in listing.split_inclusive("COMMIT\n") {
                let lines = table.lines().filter(|line| !line.starts_with('#'));
                let is_builtin = |line: &str| {
                    line.starts_with('*') || line == "COMMIT" || line.contains(" ACCEPT [")
                };
                if lines.clone().all(is_builtin) {
                    continue;
                }
                writeln!(all, "{program}").unwrap();
                for line in lines {
                    let line = line.split(" [").next().unwrap();
                    writeln!(all, "{line}").unwrap();
                }
            }
        }
    }
    all
}

/// Rules of other people, in every table that ours go to, before and after them, and a chain whose
/// name begins like ours.
fn load_foreign(namespace: &Namespace, variant: &str) {
    for (command, host) in [
        ("iptables", "192.0.2.1/32"),
        ("ip6tables", "2001:db8::1/128"),
    ] {
        let program = variant.replacen("iptables", command, 1);
        namespace.enter(|| {
            for rule in [
                "-t nat -N OUTRIGGER_150010".to_owned(),
                format!("-t nat -A OUTPUT -d {host} -p tcp -j OUTRIGGER_150010"),
                format!(
                    "-t nat -A OUTPUT -d {host} -m comment --comment OUTRIGGER_15001 -j ACCEPT"
                ),
                "-t nat -A OUTRIGGER_150010 -p tcp -j REDIRECT --to-ports 9".to_owned(),
                format!("-t mangle -A OUTPUT -d {host} -j MARK --set-mark 0x1"),
                format!("-t filter -A OUTPUT -d {host} -j DROP"),
            ] {
                run(&format!("{program} {rule}"));
            }
        });
    }
}

#[track_caller]
fn assert_refused(
    namespace: &Namespace,
    outcome: Outcome,
    check: &str,
    words: &[&str],
    before: &str,
) {
    let outcome = outcome.expect("refused");
    assert_eq!(
        (outcome.code, outcome.text("check")),
        (1, check),
        "{outcome:?}"
    );
    let said = format!("{} {}", outcome.text("message"), outcome.text("advice"));
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
    assert_eq!(saved(namespace), before);
}

#[test]
fn each_variant_captures_both_families_and_a_removal_leaves_what_others_loaded() {
    for variant in VARIANTS {
        let pair = wire();
        VARIANTS.iter().for_each(|of| load_foreign(&pair.app, of));
        let before = saved(&pair.app);
        let _proxy = serve(&pair.app, "--workers 2");
        let installed = ctl(&pair.app, &install(variant)).expect("captured");
        assert_eq!(installed.text("backend"), variant);
        assert!(
            installed.stdout.contains("refused for up to 2 s"),
            "{installed:?}"
        );
        assert_captured(&pair, true);
        let with_ours = saved(&pair.app);
        let others = |text: &str| {
            let lines = text.lines().filter(|line| {
                line.contains("OUTRIGGER_150010") || !line.contains("OUTRIGGER_15001")
            });
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(others(&with_ours), others(&before));

        let again = ctl(&pair.app, &install(variant)).expect("already captured");
        assert_eq!(again.json["generation"], 1);
        assert_eq!(saved(&pair.app), with_ours);

        ctl(&pair.app, REMOVE).expect("removed");
        assert_eq!(saved(&pair.app), before);
        assert_captured(&pair, false);
        ctl(&pair.app, REMOVE).expect("nothing to remove");
        assert_eq!(saved(&pair.app), before);
        assert_eq!(pair.app.enter(|| run("ls /proc/net/xt_recent")), "");
    }
}

/// Refused for the time of the lease at most, as the output says, and never hung.
#[test]
fn a_killed_proxys_connections_go_direct_within_the_lease() {
    for variant in VARIANTS {
        let pair = wire();
        let mut proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &install(variant)).expect("captured");
        proxy.kill();
        let killed = Instant::now();
        for address in [V4, V6] {
            until("a direct connection", || {
                match Client::try_connect(&pair.app, address) {
                    Ok(client) => {
                        assert!(!client.is_captured);
                        true
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                        false
                    }
                }
            });
        }
        let took = killed.elapsed();
        assert!(took < LEASE + Duration::from_millis(500), "{took:?}");

        // A successor that has not passed the gate is not captured for by what the first one left.
        let _next = serve(&pair.app, "--workers 2");
        thread::sleep(LEASE / 2);
        assert_captured(&pair, false);
        ctl(&pair.app, &install(variant)).expect("captured");
        assert_captured(&pair, true);
    }
}

#[test]
fn a_stopped_proxys_connections_go_direct_after_the_lease() {
    for variant in VARIANTS {
        let pair = wire();
        let proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &install(variant)).expect("captured");
        proxy.signal("STOP");
        thread::sleep(LEASE + Duration::from_millis(500));
        assert_captured(&pair, false);
        // Rules that nobody owns go without the proxy's help.
        ctl(&pair.app, REMOVE).expect("removed");
        assert_eq!(saved(&pair.app), "");
    }
}

#[test]
fn a_dead_proxys_rules_of_both_variants_are_removed_at_once() {
    let pair = wire();
    VARIANTS.iter().for_each(|of| load_foreign(&pair.app, of));
    let before = saved(&pair.app);
    let mut proxy = serve(&pair.app, "--workers 1");
    ctl(&pair.app, &install("iptables-legacy")).expect("captured");
    proxy.kill();
    // An install would have removed the other variant's.
    let dry_run = ctl(&pair.app, "install-rules --dry-run --backend iptables-nft").stdout;
    let (v4, v6) = dry_run.split_once("# ip6tables").unwrap();
    for (command, script) in [("iptables", v4), ("ip6tables", v6)] {
        let input = config(script.split_once('\n').unwrap().1);
        pair.app
            .enter(|| run(&format!("{command}-nft-restore --noflush {input}")));
    }
    let removed = ctl(&pair.app, REMOVE).expect("removed");
    for variant in VARIANTS {
        for family in ["IPv4", "IPv6"] {
            let what = format!("{variant} OUTRIGGER_15001 ({family})");
            assert!(removed.stdout.contains(&what), "{removed:?}");
        }
    }
    assert_eq!(saved(&pair.app), before);
    ctl(&pair.app, REMOVE).expect("nothing to remove");
}

#[test]
fn exclusions_go_direct() {
    for variant in VARIANTS {
        let pair = wire();
        serve_echo(&pair.peer, "10.77.0.2:9000");
        serve_echo(&pair.peer, "10.77.0.2:9001");
        let _proxy = serve(&pair.app, "--workers 2");
        let install_with = |text: &str| {
            let file = config(&format!("capture: {{ {text} }}"));
            ctl(&pair.app, &format!("{} --config {file}", install(variant))).expect("captured");
        };
        for (exclusion, excluded, captured) in [
            ("ports: ['9000-9000', 22]", "10.77.0.2:9000", V4),
            ("ports: [1-8079, '8081-65535']", "10.77.0.2:9000", V6),
            ("cidrs: ['10.77.0.2/32', '192.0.2.0/24']", V4, V6),
            ("cidrs: ['10.77.0.0/31', '10.77.0.2/31']", V4, V6),
            ("cidrs: ['fd77::/64']", V6, V4),
        ] {
            install_with(&format!("exclude: {{ {exclusion} }}"));
            let is_captured = |address| Client::connect(&pair.app, address).is_captured;
            assert!(!is_captured(excluded), "{exclusion}");
            assert!(is_captured(captured), "{exclusion}");
        }
        for exclusion in ["uids: [7, 0]", "gids: [7, 0]"] {
            install_with(&format!("exclude: {{ {exclusion} }}"));
            assert_captured(&pair, false);
        }
        install_with("exclude: { uids: [7], gids: [7] }");
        assert_captured(&pair, true);

        install_with("include: { ports: [9001, 9002], cidrs: ['10.77.0.0/16', '10.78.0.0/16'] }");
        assert!(Client::connect(&pair.app, "10.77.0.2:9001").is_captured);
        assert!(!Client::connect(&pair.app, "10.77.0.2:9000").is_captured);
        assert!(!Client::connect(&pair.app, V6).is_captured);
        let again = ctl(&pair.app, &install(variant)).expect("captured");
        assert_eq!(again.json["families"], serde_json::json!(["IPv4", "IPv6"]));
        assert_captured(&pair, true);
    }
}

/// Each new backend is in force before the old one goes; so is each new configuration.
#[test]
fn backends_and_configurations_replace_each_other_without_a_gap() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, &install("nft")).expect("captured");
    let changed = config("capture: { exclude: { ports: [23] } }");
    let done = AtomicBool::new(false);
    let dialled = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_captured(&pair, true);
                dialled.fetch_add(2, Ordering::Relaxed);
            }
        });
        // Also when the test fails, which would else wait for the thread.
        let _done = Done(&done);
        for arguments in [
            "iptables-legacy",
            "iptables-nft",
            "nft",
            "iptables-nft",
            &format!("iptables-nft --config {changed}"),
            "iptables-legacy",
            &format!("iptables-legacy --config {changed}"),
        ] {
            let dialled_before = dialled.load(Ordering::Relaxed);
            ctl(&pair.app, &install(arguments)).expect("captured");
            let variant = arguments.split(' ').next().unwrap();
            let rules = saved(&pair.app);
            let count = |of: &str| rules.matches(of).count();
            let expected = if variant == "nft" { 0 } else { 2 };
            assert_eq!(count(":OUTRIGGER_15001 "), expected, "{rules}");
            if variant != "nft" {
                assert!(!pair.app.ruleset().contains("outrigger_15001_g"));
            }
            until("load after the change", || {
                dialled.load(Ordering::Relaxed) > dialled_before + 10
            });
        }
    });
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn live_connections_survive_an_install_and_a_removal() {
    for variant in VARIANTS {
        let pair = wire();
        let mut clients: Vec<_> = [V4, V6, V4, V6]
            .map(|address| Client::connect(&pair.app, address))
            .into();
        let _proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &install(variant)).expect("captured");
        clients.iter_mut().for_each(Client::check);
        clients.extend([V4, V6].map(|address| Client::connect(&pair.app, address)));
        assert!(clients[4].is_captured && clients[5].is_captured);
        ctl(&pair.app, REMOVE).expect("removed");
        clients.iter_mut().for_each(Client::check);
        drop(clients);
        until("the anchor's end", || {
            !pair.app.ruleset().contains("outrigger")
        });
    }
}

#[test]
fn a_gate_that_is_not_passed_leaves_everything_as_it_was() {
    for variant in VARIANTS {
        let pair = wire();
        load_foreign(&pair.app, variant);
        let before = saved(&pair.app);
        let nobody = ctl(&pair.app, &install(variant));
        assert_refused(&pair.app, nobody, "control", &["nothing listens"], &before);
        let hung = proxy(&pair.app, PROXY_UID, "--workers 1 --hung-workers 1");
        let refused = ctl(&pair.app, &install(variant));
        assert_refused(&pair.app, refused, "canary", &["no answer"], &before);
        drop(hung);
        let _looping = proxy(&pair.app, 0, "");
        let file = config("capture: { proxy_uid: 0, proxy_mark: 7 }");
        let refused = ctl(&pair.app, &format!("{} --config {file}", install(variant)));
        assert_refused(
            &pair.app,
            refused,
            "loop",
            &["redirected to itself"],
            &before,
        );
        assert_captured(&pair, false);
    }
}

/// Regression: built-in tables that the first use of iptables-nft makes were left behind.
#[test]
fn a_gate_that_is_not_passed_leaves_a_bare_namespace_bare() {
    let pair = wire();
    let _hung = proxy(&pair.app, PROXY_UID, "--workers 1 --hung-workers 1");
    let refused = ctl(&pair.app, &install("iptables-nft")).expect("refused");
    assert_eq!(refused.text("check"), "canary");
    until("the anchor's end", || pair.app.ruleset().is_empty());
}

#[test]
fn what_a_backend_cannot_do_is_refused_with_what_to_install() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let before = saved(&pair.app);
    for variant in VARIANTS {
        let long: Vec<_> = (0..600)
            .map(|n| format!("'10.{}.{}.0/30'", n / 200, n % 200))
            .collect();
        let file = config(&format!(
            "capture: {{ include: {{ ports: [80, 90] }}, exclude: {{ cidrs: [{}] }} }}",
            [long.as_slice(), long.as_slice()].concat().join(", ")
        ));
        // Twice the same networks are one rule each.
        ctl(&pair.app, &format!("{} --config {file}", install(variant))).expect("captured");
        ctl(&pair.app, REMOVE).expect("removed");
        let file = config(&format!(
            "capture: {{ include: {{ ports: [80, 90], cidrs: [{}] }} }}",
            long.join(", ")
        ));
        let refused = ctl(&pair.app, &format!("{} --config {file}", install(variant)));
        let words = ["more than 1000", "--backend nft"];
        assert_refused(&pair.app, refused, "backend", &words, &before);

        let without = |name: &str, value: &str| {
            let mut command = Command::new("env");
            command
                .arg(format!("{name}={value}"))
                .arg(proxyctl::proxyctl());
            proxyctl::finish(&pair.app, command, &install(variant))
        };
        let refused = without("XTABLES_LIBDIR", "/nonexistent");
        let words = ["Couldn't load", "xt_recent", "package `iptables`"];
        assert_refused(&pair.app, refused, "backend", &words, &before);
        // The programs are found although a user's PATH has no sbin.
        without("PATH", "/usr/bin:/bin").expect("captured");
        ctl(&pair.app, REMOVE).expect("removed");

        let refused = ctl_as(&pair.app, 1000, &install(variant));
        assert_refused(&pair.app, refused, "privilege", &["root"], &before);
    }
    let hidden = "mount -t tmpfs none /usr/sbin && exec \"$0\" install-rules --json --backend ";
    for backend in ["iptables", "iptables-legacy", "iptables-nft"] {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{hidden}{backend}")]);
        command.arg(proxyctl::proxyctl());
        let refused = proxyctl::finish(&pair.app, command, "");
        let words = ["not installed", "package `iptables`"];
        assert_refused(&pair.app, refused, "backend", &words, &before);
    }
}

#[test]
fn a_foreign_rule_that_leads_into_our_chain_is_named() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    ctl(&pair.app, &install("iptables-legacy")).expect("captured");
    pair.app.enter(|| {
        run("iptables-legacy -t nat -N THEIRS");
        run("iptables-legacy -t nat -A THEIRS -j OUTRIGGER_15001");
    });
    let before = saved(&pair.app);
    let refused = ctl(&pair.app, REMOVE);
    let words = ["-A THEIRS -j OUTRIGGER_15001", "-t nat -D THEIRS"];
    assert_refused(&pair.app, refused, "leftover", &words, &before);
}

#[test]
fn auto_takes_nft_and_says_why_where_it_cannot() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let installed = ctl(&pair.app, &install("auto")).expect("captured");
    assert_eq!(installed.text("backend"), "nft");
    assert!(installed.stdout.contains("nft was chosen"), "{installed:?}");
    ctl(&pair.app, REMOVE).expect("removed");

    // All four messages to nf_tables before the choice: two that ask what it can do, and the trial's.
    let mut command = Command::new("strace");
    let fault = "inject=sendto:error=EOPNOTSUPP:when=1..4";
    command.args(["-qq", "-o", "/dev/null", "-e", fault]);
    command.arg(proxyctl::proxyctl());
    let installed = proxyctl::finish(&pair.app, command, &install("auto")).expect("captured");
    let host = pair.app.enter(|| run("iptables --version"));
    let expected = if host.contains("nf_tables") {
        "iptables-nft"
    } else {
        "iptables-legacy"
    };
    assert_eq!(installed.text("backend"), expected);
    let note = installed.json["notes"][0].as_str().unwrap().to_owned();
    assert!(
        note.contains("nft does not work here") && note.contains("not supported"),
        "{note}"
    );
    assert_captured(&pair, true);
}

#[test]
fn a_dry_run_prints_what_the_restore_programs_take() {
    let pair = wire();
    let file = config("capture: { proxy_mark: 7, exclude: { uids: [5], cidrs: ['fd00::/8'] } }");
    for variant in VARIANTS {
        let arguments = format!("install-rules --dry-run --backend {variant} --config {file}");
        let outcome = ctl_as(&pair.app, 1000, &arguments);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert_eq!(saved(&pair.app), "");
        let (v4, v6) = outcome.stdout.split_once("# ip6tables").unwrap();
        for (command, script) in [("iptables", v4), ("ip6tables", v6)] {
            let script = script.split_once('\n').unwrap().1;
            let program = variant.replacen("iptables", command, 1);
            let input = config(script);
            pair.app
                .enter(|| run(&format!("{program}-restore --noflush --test {input}")));
        }
        assert!(v6.contains("-d fd00::/8 -j RETURN"), "{v6}");
    }
}

#[test]
fn a_graceful_stop_refuses_nothing_while_the_lease_runs_out() {
    for variant in VARIANTS {
        let pair = wire();
        let mut proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &install(variant)).expect("captured");
        proxy.signal("TERM");
        until("direct connections", || {
            // Without a live connection the proxy would be gone by now.
            thread::sleep(LEASE / 8);
            [V4, V6].map(|address| !Client::connect(&pair.app, address).is_captured) == [true; 2]
        });
        assert!(proxy.wait().success());
        assert_captured(&pair, false);
    }
}

/// Regression: it was first only as long as nobody else put a rule first. This one spares the proxy, so that
/// the lease says nothing of it.
#[test]
fn a_repeated_install_puts_our_jump_first_again() {
    for variant in VARIANTS {
        let pair = wire();
        let _proxy = serve(&pair.app, "--workers 1");
        ctl(&pair.app, &install(variant)).expect("captured");
        let rule = format!("OUTPUT -p tcp -m owner ! --uid-owner {PROXY_UID} -j ACCEPT");
        pair.app
            .enter(|| run(&format!("{variant} -t nat -I {rule}")));
        assert!(!Client::connect(&pair.app, V4).is_captured);
        ctl(&pair.app, &install(variant)).expect("captured");
        assert_captured(&pair, true);
        assert!(saved(&pair.app).contains(&format!("-A {rule}")));
        ctl(&pair.app, &install(variant)).expect("already captured");
    }
}

#[test]
fn a_proxy_of_the_only_user_is_told_by_its_mark() {
    let file = config("capture: { proxy_mark: 7 }");
    for variant in VARIANTS {
        // The lock of the legacy tables is in /run.
        let script = format!(
            "mount -t tmpfs tmpfs /run && ip link set lo up
            {ctl} serve --config {file} --admin off --log-level error & proxy=$!
            until ss -ltn | grep -q 127.0.0.1:15001; do kill -0 $proxy || exit 1; sleep 0.01; done
            {ctl} install-rules --json --backend {variant} --config {file}; echo
            {variant}-save
            kill -9 $proxy
            {ctl} remove-rules --json",
            ctl = proxyctl::proxyctl().display(),
        );
        let output = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--net",
                "--mount",
                "sh",
                "-c",
                &script,
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("\"captured\""), "{text}");
        assert!(text.contains("--mark 0x7 -j RETURN"), "{text}");
        assert!(!text.contains("--uid-owner"), "{text}");
        assert!(text.contains("\"removed\""), "{text}");
    }
}

/// Whatever happens to an install at whichever program it runs and at whichever message it sends to
/// the proxy: no connection is lost, its repetition puts things right, and one that failed left the
/// rules as they were.
#[test]
fn an_install_by_iptables_nft_that_is_killed_or_fails_loses_no_connection() {
    install_with_faults("iptables-nft");
}

#[test]
fn an_install_by_iptables_legacy_that_is_killed_or_fails_loses_no_connection() {
    install_with_faults("iptables-legacy");
}

/// Whoever is killed leaves the program that it runs at work: nobody may read the rules meanwhile.
#[test]
fn an_install_waits_for_the_program_of_one_that_was_killed() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let programs = faulty_programs();
    // The first one that changes something: the four before it list what there is.
    let killed = proxyctl::finish(
        &pair.app,
        programs.at(LISTINGS + 1, "outlive-parent"),
        &install("iptables-legacy"),
    );
    assert_eq!(killed.code, -1, "{killed:?}");
    assert_eq!(saved(&pair.app), "");
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let next = scope.spawn(|| {
            let next = ctl(&pair.app, &install("iptables-legacy"));
            is_done.store(true, Ordering::Relaxed);
            next
        });
        let deadline = Instant::now() + Duration::from_millis(500);
        until("its patience", || {
            assert!(!is_done.load(Ordering::Relaxed), "it did not wait");
            assert_eq!(saved(&pair.app), "", "it did not wait");
            Instant::now() > deadline
        });
        programs.let_go();
        next.join().unwrap().expect("captured");
    });
    assert_captured(&pair, true);
    assert!(!saved(&pair.app).contains("OUTRIGGER_15001_PROBE"));
}

fn install_with_faults(variant: &str) {
    let pair = wire();
    load_foreign(&pair.app, variant);
    let _proxy = serve(&pair.app, "--workers 1");
    for (fault, older_in_force) in [
        ("fail", false),
        ("kill-parent-after", false),
        ("fail", true),
        ("fail-after", true),
        ("kill", true),
        ("kill-parent-before", true),
        ("kill-parent-after", true),
    ] {
        let programs = faulty_programs();
        sweep(5, |point| {
            let command = programs.at(point, fault);
            installs_around(
                &pair,
                variant,
                older_in_force,
                command,
                fault.starts_with("fail"),
            )
        });
    }
    for fault in ["signal=KILL", "error=ENOBUFS"] {
        sweep(5, |point| {
            let command = traced(&format!("inject=sendmsg:{fault}:when={point}"));
            installs_around(&pair, variant, true, command, fault.starts_with("error"))
        });
    }
}

#[test]
fn a_removal_that_is_killed_or_fails_loses_no_connection() {
    for variant in VARIANTS {
        let pair = wire();
        load_foreign(&pair.app, variant);
        let before = saved(&pair.app);
        let _proxy = serve(&pair.app, "--workers 1");
        for fault in FAULTS {
            let programs = faulty_programs();
            sweep(3, |point| {
                ctl(&pair.app, &install(variant)).expect("captured");
                let outcome = proxyctl::finish(&pair.app, programs.at(point, fault), REMOVE);
                connect_to_both(&pair);
                ctl(&pair.app, REMOVE).expect_one_of(&["removed", "nothing to remove"]);
                assert_eq!(saved(&pair.app), before, "{fault} at {point}");
                assert_captured(&pair, false);
                outcome.code != 0
            });
        }
    }
}

/// Whether `faulty` fails to install a changed capture; its repetition must not.
fn installs_around(
    pair: &Pair,
    variant: &str,
    older_in_force: bool,
    faulty: Command,
    leaves_all: bool,
) -> bool {
    if older_in_force {
        ctl(&pair.app, &install(variant)).expect("captured");
    }
    let before = saved(&pair.app);
    let changed = config("capture: { exclude: { ports: [23] } }");
    let arguments = format!("{} --config {changed}", install(variant));
    let outcome = proxyctl::finish(&pair.app, faulty, &arguments);
    let failed = outcome.code != 0;
    if failed && leaves_all {
        assert_eq!(saved(&pair.app), before, "{outcome:?}");
    }
    if older_in_force {
        assert_captured(pair, true);
    } else {
        connect_to_both(pair);
    }
    ctl(&pair.app, &arguments).expect_one_of(&["captured", "already captured"]);
    assert_captured(pair, true);
    ctl(&pair.app, REMOVE).expect("removed");
    assert!(
        !saved(&pair.app).contains("OUTRIGGER_15001_"),
        "{outcome:?}"
    );
    assert_captured(pair, false);
    failed
}

/// Through the proxy or directly, but through.
fn connect_to_both(pair: &Pair) {
    for address in [V4, V6] {
        Client::connect(&pair.app, address).check();
    }
}

/// Moves a fault from point to point until it is met no more: three harmless ones in a row.
fn sweep(least: usize, mut fails_at: impl FnMut(usize) -> bool) {
    let (mut failures, mut harmless) = (0, 0);
    for point in 1.. {
        if fails_at(point) {
            (failures, harmless) = (failures + 1, 0);
        } else {
            harmless += 1;
        }
        if harmless == 3 {
            break;
        }
    }
    assert!(failures >= least, "only {failures} points mattered");
}

fn traced(inject: &str) -> Command {
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e", inject]);
    command.arg(proxyctl::proxyctl());
    command
}

/// What may happen at a run of a program: it fails, before or after it has done its work; it is
/// killed; whoever runs it is killed, before or after.
const FAULTS: [&str; 5] = [
    "fail",
    "fail-after",
    "kill",
    "kill-parent-before",
    "kill-parent-after",
];

/// The programs that an install runs before the first one that changes something.
const LISTINGS: usize = 4;

/// A directory for PATH, of programs that do as the real ones but for one fault.
struct FaultyPrograms(PathBuf);

fn faulty_programs() -> FaultyPrograms {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("faulty-{}-{number}", std::process::id());
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    for variant in ["nft", "legacy"] {
        for command in ["iptables", "ip6tables"] {
            for job in ["save", "restore"] {
                let path = directory.join(format!("{command}-{variant}-{job}"));
                fs::write(&path, FAULTY_PROGRAM).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            }
        }
    }
    FaultyPrograms(directory)
}

const FAULTY_PROGRAM: &str = r#"#!/bin/sh
here=${0%/*} name=${0##*/} PATH=${PATH#*:}
count=$(($(cat "$here/count") + 1))
echo $count > "$here/count"
if [ $count = "$FAULT_AT" ]; then
  case $FAULT in
    fail) exit 1 ;;
    fail-after) "$name" "$@"; exit 1 ;;
    kill) kill -9 $$ ;;
    kill-parent-before) kill -9 $PPID; exit 1 ;;
    outlive-parent)
      cat > "$here/input"; kill -9 $PPID; exec > /dev/null 2>&1
      while [ -d "$here" ] && ! [ -e "$here/go" ]; do sleep 0.01; done
      "$name" "$@" < "$here/input"; exit ;;
    kill-parent-after) cat > "$here/input"; "$name" "$@" < "$here/input"; kill -9 $PPID; exit ;;
  esac
fi
exec "$name" "$@"
"#;

impl FaultyPrograms {
    /// `proxyctl`, with `fault` at the run of that number.
    fn at(&self, point: usize, fault: &str) -> Command {
        fs::write(self.0.join("count"), "0").unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(proxyctl::proxyctl());
        command
            .env("PATH", format!("{}:{path}", self.0.display()))
            .env("FAULT", fault)
            .env("FAULT_AT", point.to_string());
        command
    }

    /// What outlives its parent waits for this.
    fn let_go(&self) {
        fs::write(self.0.join("go"), "").unwrap();
    }
}

impl Drop for FaultyPrograms {
    fn drop(&mut self) {
        self.let_go();
        let _ = fs::remove_dir_all(&self.0);
    }
}
