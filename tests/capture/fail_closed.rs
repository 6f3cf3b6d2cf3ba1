//! `capture.fail_closed`: what must not be reached without the proxy is not, and all else goes direct.

use std::{
    io::ErrorKind,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    INSTALL, REMOVE, STATUS, config,
    netns::{Namespace, Pair, run},
    proxyctl::{PROXY_UID, as_user, ctl, proxyctl, serve, until},
    wire::{Client, V4, V6, assert_captured, serve_echo, wire},
};

const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];
/// Beside the closed ones, and open.
const OPEN: [&str; 2] = ["10.77.0.3:8080", "[fd77::3]:8080"];
const CLOSED: &str = "capture: { fail_closed: ['10.77.0.2/32', 'fd77::2/128'] }";
/// More than `connect` takes to be told, and less than any retransmission.
const AT_ONCE: Duration = Duration::from_millis(500);

fn wire_with_more() -> Pair {
    let pair = wire();
    pair.peer.enter(|| {
        run("ip addr add 10.77.0.3/24 dev wire0");
        run("ip -6 addr add fd77::3/64 dev wire0 nodad");
    });
    for address in OPEN {
        serve_echo(&pair.peer, address);
        assert!(!Client::connect(&pair.app, address).is_captured);
    }
    pair
}

#[track_caller]
fn assert_closed(namespace: &Namespace) {
    for address in [V4, V6] {
        let began = Instant::now();
        let refused = Client::try_connect(namespace, address)
            .map(drop)
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
        assert!(began.elapsed() < AT_ONCE, "{address}: not at once");
    }
}

#[track_caller]
fn assert_open(namespace: &Namespace) {
    for address in OPEN {
        assert!(
            !Client::connect(namespace, address).is_captured,
            "{address}"
        );
    }
}

fn tables(namespace: &Namespace) -> Vec<String> {
    let listed = namespace.enter(|| run("nft list tables"));
    let ours = listed.lines().filter(|line| line.contains("_closed_"));
    ours.map(str::to_owned).collect()
}

/// The proxy's own connections go on to be let through, while it lives and when it does not.
#[test]
fn closed_destinations_are_reached_through_the_proxy_and_refused_after_its_death() {
    let file = config(CLOSED);
    for backend in BACKENDS {
        let pair = wire_with_more();
        let mut before = Client::connect(&pair.app, V4);
        let mut proxy = serve(&pair.app, &format!("--workers 2 --config {file}"));
        ctl(
            &pair.app,
            &format!("{INSTALL} --config {file} --backend {backend}"),
        )
        .expect("captured");
        assert_captured(&pair, true);
        let status = ctl(&pair.app, "status").stdout;
        assert!(status.contains("outrigger_15001_closed_g1"), "{status}");
        assert!(status.contains("refused without the proxy"), "{status}");

        proxy.kill();
        // The iptables backends redirect for a lease more.
        until("direct connections", || {
            OPEN.iter()
                .all(|address| Client::try_connect(&pair.app, address).is_ok())
        });
        assert_closed(&pair.app);
        assert_open(&pair.app);
        // Not the application's: as the proxy's user it passes.
        let as_proxy = |address: &str| {
            let (host, port) = address.rsplit_once(':').unwrap();
            let mut socat = as_user(PROXY_UID, "socat".as_ref());
            socat.args(["-u", &format!("TCP:{host}:{port}"), "OPEN:/dev/null"]);
            socat.args(["-T", "1"]);
            pair.app.enter(|| socat.output().unwrap())
        };
        for address in [V4, V6] {
            let output = as_proxy(address);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(!errors.contains("refused"), "{address}: {errors}");
        }
        before.check();
        let status = ctl(&pair.app, STATUS).expect("direct");
        assert_eq!(status.json["closed"][0], "outrigger_15001_closed_g1");

        let removed = ctl(&pair.app, REMOVE).expect("removed");
        assert!(removed.stdout.contains("closed_g1"), "{removed:?}");
        assert_captured(&pair, false);
        assert_eq!(tables(&pair.app), [""; 0]);
    }
}

#[test]
fn a_proxy_that_hangs_or_ends_in_good_order_leaves_them_closed() {
    let file = config(CLOSED);
    let pair = wire_with_more();
    let mut proxy = serve(&pair.app, &format!("--workers 2 --config {file}"));
    ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
    proxy.signal("STOP");
    until("the end of the lease", || {
        Client::try_connect(&pair.app, V4)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    assert_closed(&pair.app);
    proxy.signal("CONT");
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert_closed(&pair.app);
    assert_open(&pair.app);
    // A flush by another tool takes what nobody owns; while the proxy lives it is owned.
    ctl(&pair.app, REMOVE).expect("removed");
    assert_captured(&pair, false);
}

/// From one proxy to the next, and from one generation to the next, nothing goes direct to them.
#[test]
fn the_next_install_takes_them_over_without_a_gap() {
    let pair = wire_with_more();
    let (file, wider) = (
        config(CLOSED),
        config(&CLOSED.replace("10.77.0.2/32", "10.77.0.2/31")),
    );
    let mut proxy = serve(&pair.app, &format!("--workers 2 --config {file}"));
    let install = |file: &str| ctl(&pair.app, &format!("{INSTALL} --config {file}"));
    install(&file).expect("captured");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let dialling = scope.spawn(|| {
            let (mut captured, mut refused) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                for address in [V4, V6] {
                    match Client::try_connect(&pair.app, address) {
                        Ok(client) if client.is_captured => captured += 1,
                        Ok(_) => panic!("{address}: went direct"),
                        Err(_) => refused += 1,
                    }
                }
            }
            (captured, refused)
        });
        proxy.kill();
        assert_closed(&pair.app);
        let _next = serve(&pair.app, &format!("--workers 2 --config {file}"));
        install(&file).expect("captured");
        assert_eq!(tables(&pair.app), ["table inet outrigger_15001_closed_g2"]);
        assert_captured(&pair, true);
        install(&wider).expect("captured");
        assert_eq!(tables(&pair.app), ["table inet outrigger_15001_closed_g3"]);
        install(&wider).expect("already captured");
        assert_captured(&pair, true);
        done.store(true, Ordering::Relaxed);
        let (captured, refused) = dialling.join().unwrap();
        assert!(captured > 10 && refused > 10, "{captured}, {refused}");
    });
    // A configuration without them opens them.
    let _third = serve_after(&pair);
    ctl(&pair.app, INSTALL).expect("captured");
    assert_eq!(tables(&pair.app), [""; 0]);
}

fn serve_after(pair: &Pair) -> crate::proxyctl::Running {
    until("the end of the last one", || {
        ctl(&pair.app, STATUS).json.get("proxy").is_none()
    });
    serve(&pair.app, "--workers 1")
}

#[test]
fn what_a_foreign_rule_keeps_untracked_or_translates_is_closed_too() {
    let file = config(CLOSED);
    let pair = wire_with_more();
    let mut proxy = serve(&pair.app, &format!("--workers 1 --config {file}"));
    ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
    proxy.kill();
    pair.app.enter(|| {
        run("nft add table inet foreign");
        run("nft add chain inet foreign out { type filter hook output priority -300 ; }");
        run("nft add rule inet foreign out notrack");
    });
    assert_closed(&pair.app);
    pair.app.enter(|| {
        run("nft delete table inet foreign");
        run("nft add table inet foreign");
        run("nft add chain inet foreign out { type nat hook output priority -100 ; }");
        run("nft add rule inet foreign out ip daddr 10.77.0.2 dnat to 10.77.0.3");
        run("nft add rule inet foreign out ip6 daddr fd77::2 dnat to fd77::3");
    });
    assert_closed(&pair.app);
    assert_open(&pair.app);
}

#[test]
fn exclusions_stay_open() {
    let pair = wire_with_more();
    for exclusion in ["uids: [0]", "gids: [0]", "ports: [8080]"] {
        let file = config(&CLOSED.replace(
            "fail_closed",
            &format!("exclude: {{ {exclusion} }}, fail_closed"),
        ));
        let mut proxy = serve(&pair.app, &format!("--workers 1 --config {file}"));
        ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
        proxy.kill();
        assert_captured(&pair, false);
        ctl(&pair.app, REMOVE).expect("removed");
    }
}

#[test]
fn a_namespace_of_one_user_closes_them_by_the_proxys_mark() {
    let file = config(
        "capture: { proxy_mark: 7, proxy_uid: 0, fail_closed: ['192.0.2.0/24', '2001:db8::/32'] }",
    );
    let script = format!(
        "ip link set lo up; ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up
        ip addr add 198.51.100.1/24 dev d0; ip route add default dev d0
        ip -6 addr add fd00::1/64 dev d0 nodad; ip -6 route add default dev d0
        {ctl} serve --admin off --log-level error --workers 1 --config {file} & proxy=$!
        until {ctl} install-rules --json --config {file} | grep captured; do sleep 0.05; done
        nft list ruleset
        kill -9 $proxy; wait $proxy
        for address in 192.0.2.1 '[2001:db8::1]'; do
            socat -u TCP:$address:80,connect-timeout=3 OPEN:/dev/null 2>&1
            socat -u TCP:$address:80,connect-timeout=1,setsockopt-listen=1:36:x07000000 OPEN:/dev/null 2>&1
        done",
        ctl = proxyctl().display(),
    );
    let output = Command::new("timeout")
        .args([
            "60",
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            &script,
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"captured\""), "{text}");
    assert_eq!(text.matches("refused").count(), 2, "{text}");
    assert_eq!(text.matches("timed out").count(), 2, "{text}");
}

#[test]
fn a_contradiction_is_an_error_with_its_reason() {
    let pair = wire();
    for (settings, reason) in [
        (
            "fail_closed: ['10.0.0.0/8'], exclude: { cidrs: ['10.1.0.0/16'] }",
            "overlaps 10.1.0.0/16",
        ),
        (
            "fail_closed: ['10.0.0.0/8'], include: { cidrs: ['10.0.0.0/9', '::/0'] }",
            "not within",
        ),
        ("fail_closed: ['127.1.0.0/16']", "never captured"),
    ] {
        let file = config(&format!("capture: {{ {settings} }}"));
        let outcome = ctl(&pair.app, &format!("{INSTALL} --config {file}"));
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(outcome.text("message").contains(reason), "{outcome:?}");
    }
    let file = config("listen: ['127.0.0.1:15001']\ncapture: { fail_closed: ['fd00::/8'] }");
    let refused = ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("refused");
    assert_eq!(refused.text("check"), "settings");
    assert!(
        refused.text("message").contains("IPv6 is not captured"),
        "{refused:?}"
    );
}
