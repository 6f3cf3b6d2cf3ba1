//! Who goes past the capture, and who changes its rules: seen by the proxy itself.

use std::{net::SocketAddr, os::unix::process::CommandExt as _, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    INSTALL, STATUS, config,
    netns::{Pair, run},
    proxyctl::{Running, ctl, proxyctl, serve, start, until},
    wire::{
        Client, V4, V6, assert_captured, bound_socket, serve_echo, until_captured, until_direct,
        wire,
    },
};

const OTHER: &str = "10.77.0.2:9999";

pub(crate) fn status(pair: &Pair) -> Value {
    ctl(&pair.app, STATUS).json
}

pub(crate) fn count(pair: &Pair, reason: &str) -> u64 {
    let status = status(pair);
    let counts = status["bypasses"]["counts"].as_array().unwrap();
    counts
        .iter()
        .filter(|of| of["reason"] == reason)
        .map(|of| of["count"].as_u64().unwrap())
        .sum()
}

#[track_caller]
pub(crate) fn until_counted(pair: &Pair, reason: &str, expected: u64) {
    until(&format!("{expected} of {reason}"), || {
        count(pair, reason) == expected
    });
}

/// The figure of everything that nobody asked for.
pub(crate) fn unchosen(pair: &Pair) -> u64 {
    let status = status(pair);
    let counts = status["bypasses"]["counts"].as_array().unwrap();
    let unchosen = counts.iter().filter(|of| of["is_chosen"] == false);
    unchosen.map(|of| of["count"].as_u64().unwrap()).sum()
}

#[test]
fn nothing_is_counted_while_everything_is_captured() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    assert!(status(&pair)["bypasses"]["is_watched"] == true);
    for _ in 0..10 {
        assert_captured(&pair, true);
    }
    // A planted one shows that all before it have been read.
    run_notrack(&pair);
    Client::connect(&pair.app, V4);
    until_counted(&pair, "untracked", 1);
    assert_eq!(unchosen(&pair), 1, "{}", status(&pair));
}

pub(crate) fn run_notrack(pair: &Pair) {
    pair.app.enter(|| {
        run("nft add table inet foreign");
        run("nft add chain inet foreign out { type filter hook output priority -300 ; }");
        run("nft add rule inet foreign out tcp dport 8080 notrack");
    });
}

#[test]
fn an_untracked_connection_is_counted_and_explained() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    run_notrack(&pair);
    for address in [V4, V6] {
        assert!(!Client::connect(&pair.app, address).is_captured);
    }
    until_counted(&pair, "untracked", 2);
    let status = status(&pair);
    let recent = &status["bypasses"]["recent"][1];
    assert_eq!(recent["destination"], V4, "{status}");
    assert_eq!(recent["uid"], 0, "{status}");
    let text = ctl(&pair.app, "status").stdout;
    assert!(text.contains("WENT PAST: 2 untracked"), "{text}");
    assert!(text.contains("notrack"), "{text}");
}

/// Translation is decided once per entry: an entry made before the capture keeps its connection out.
#[test]
fn an_entry_from_before_is_counted_as_such() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let address: SocketAddr = V4.parse().unwrap();
    pair.app.enter(|| {
        run(
            "conntrack -I -p tcp -s 10.77.0.1 -d 10.77.0.2 --sport 45000 --dport 8080 \
             --state SYN_SENT -t 60",
        )
    });
    let connected = pair.app.enter(|| {
        let socket = bound_socket(45_000, address).unwrap();
        socket.connect_timeout(&address.into(), Duration::from_secs(10))
    });
    connected.expect("a connection, if not a captured one");
    until_counted(&pair, "older_entry", 1);
}

#[test]
fn what_the_settings_exclude_is_counted_and_no_reason_for_alarm() {
    let pair = wire();
    serve_echo(&pair.peer, OTHER);
    let file =
        config("capture: { exclude: { cidrs: ['fd77::/64'], ports: [9999], uids: [1234] } }\n");
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
    assert!(!Client::connect(&pair.app, OTHER).is_captured);
    assert!(!Client::connect(&pair.app, V6).is_captured);
    let mut dial = Command::new("bash");
    dial.args(["-c", ": < /dev/tcp/10.77.0.2/8080"]).uid(1234);
    assert!(pair.app.enter(|| dial.status().unwrap()).success());
    for reason in ["excluded_port", "excluded_cidr", "excluded_uid"] {
        until_counted(&pair, reason, 1);
    }
    assert_eq!(unchosen(&pair), 0, "{}", status(&pair));
}

#[test]
fn a_socket_bound_to_a_device_is_counted_as_such() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let address: SocketAddr = V4.parse().unwrap();
    pair.app.enter(|| {
        let socket = bound_socket(46_000, address).unwrap();
        socket.bind_device(Some(b"wire0")).unwrap();
        socket
            .connect_timeout(&address.into(), Duration::from_secs(10))
            .unwrap();
    });
    until_counted(&pair, "bound_to_device", 1);
}

#[test]
fn connections_from_before_the_capture_are_told() {
    let pair = wire();
    let mut live: Vec<_> = (0..5).map(|_| Client::connect(&pair.app, V4)).collect();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let status = status(&pair);
    assert_eq!(status["bypasses"]["live_before"], 5, "{status}");
    live.iter_mut().for_each(Client::check);
}

#[test]
fn connections_of_a_lapse_are_counted_as_such() {
    let pair = wire();
    let proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    proxy.signal("STOP");
    until_direct(&pair);
    proxy.signal("CONT");
    until_captured(&pair);
    until("lapsed ones", || count(&pair, "lapsed") >= 2);
}

/// A neighbour's second generation would take the group of the first proxy's first.
#[test]
fn a_group_that_another_has_is_left_to_it() {
    let pair = wire();
    let _first = listener(&pair, "127.0.0.1:15011");
    ctl(&pair.app, &format!("{INSTALL} --listen 127.0.0.1:15011")).expect("captured");
    let _neighbour = listener(&pair, "127.0.0.1:15010");
    let install = format!("{INSTALL} --listen 127.0.0.1:15010");
    let one = ctl(&pair.app, &install).expect("captured");
    assert_eq!(one.json["generation"], 1);
    let changed = config("capture: { lease: 3s }\n");
    let two = ctl(&pair.app, &format!("{install} --config {changed}")).expect("captured");
    assert_eq!(two.json["generation"], 3, "{two:?}");
    let told = ctl(&pair.app, &format!("{STATUS} --port 15010")).json;
    assert_eq!(told["bypasses"]["is_watched"], true, "{told}");
}

fn listener(pair: &Pair, address: &str) -> Running {
    let mut command = Command::new(proxyctl());
    command.args([
        "serve",
        "--admin",
        "off",
        "--log-level",
        "error",
        "--listen",
        address,
    ]);
    let running = start(&pair.app, command);
    until("the neighbour", || {
        pair.app
            .enter(|| std::net::TcpStream::connect(address).is_ok())
    });
    running
}

/// Fact 6: whether a foreign DNAT at -100 came before ours or after.
#[test]
fn a_foreign_dnat_at_100_never_comes_before_the_capture() {
    for is_first in [true, false] {
        let pair = wire();
        let _proxy = serve(&pair.app, "--workers 2");
        let dnat = || {
            pair.app.enter(|| {
                run("nft add table ip foreign");
                run("nft add chain ip foreign out { type nat hook output priority -100 ; }");
                run("nft add rule ip foreign out ip daddr 10.96.0.1 tcp dport 80 dnat to 10.77.0.2:8080");
                run("ip route add 10.96.0.1/32 via 10.77.0.2");
            })
        };
        if is_first {
            dnat();
        }
        ctl(&pair.app, INSTALL).expect("captured");
        if !is_first {
            dnat();
        }
        let client = Client::connect(&pair.app, "10.96.0.1:80");
        assert!(client.is_captured, "DNAT first: {is_first}");
        assert_eq!(unchosen(&pair), 0);
        assert_eq!(status(&pair)["drift"]["shadowed_by"], Value::Array(vec![]));
    }
}

/// Below the capture's own priority, which iptables does not let one choose.
const AHEAD: [(&str, &str); 3] = [
    ("nft", "-160"),
    ("iptables-nft", "-120"),
    ("iptables-legacy", "-120"),
];

fn redirect_ahead(pair: &Pair, priority: &str, port: u16) {
    pair.app.enter(|| {
        run("nft add table ip foreign");
        run(&format!(
            "nft add chain ip foreign out {{ type nat hook output priority {priority} ; }}"
        ));
        run(&format!(
            "nft add rule ip foreign out tcp dport {port} redirect to :7777"
        ));
    });
}

#[test]
fn a_foreign_redirect_ahead_is_named_within_a_second_and_when_it_goes() {
    for (backend, priority) in AHEAD {
        let pair = wire();
        serve_echo(&pair.app, "127.0.0.1:7777");
        let _proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &format!("{INSTALL} --backend {backend}")).expect("captured");
        redirect_ahead(&pair, priority, 8080);
        let planted = std::time::Instant::now();
        until("the shadow", || {
            status(&pair)["drift"]["shadowed_by"][0]["table"] == "foreign"
        });
        assert!(
            planted.elapsed() < Duration::from_secs(1),
            "{backend}: too late"
        );
        let drift = status(&pair)["drift"]["recent"][0]["what"].to_string();
        assert!(
            drift.contains("chain out") && drift.contains("by nft"),
            "{drift}"
        );
        Client::connect(&pair.app, V4);
        until_counted(&pair, "foreign_nat", 1);
        let bypass = status(&pair)["bypasses"]["recent"][0].clone();
        // A kernel without NETFILTER_NETLINK_GLUE_CT shows it as translated.
        let told = bypass["destination"].as_str().unwrap();
        assert!([V4, "127.0.0.1:7777"].contains(&told), "{bypass}");

        // A flush would take iptables-nft's rules too.
        pair.app.enter(|| {
            run(if backend == "nft" {
                "nft flush ruleset"
            } else {
                "nft delete table ip foreign"
            })
        });
        until("the shadow's end", || {
            status(&pair)["drift"]["shadowed_by"] == Value::Array(vec![])
        });
        // The flush skipped what the proxy owns.
        assert_captured(&pair, true);
    }
}

#[test]
fn a_foreign_redirect_from_before_is_named_too() {
    for (backend, priority) in AHEAD {
        let pair = wire();
        redirect_ahead(&pair, priority, 7070);
        let _proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &format!("{INSTALL} --backend {backend}")).expect("captured");
        let status = status(&pair);
        assert_eq!(
            status["drift"]["shadowed_by"][0]["chain"], "out",
            "{backend}: {status}"
        );
    }
}

/// It takes the proxy's own probe too: the proof fails, and capture ends rather than mislead.
#[test]
fn a_foreign_redirect_of_everything_stops_the_beat() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    serve_echo(&pair.app, "127.0.0.1:7777");
    pair.app.enter(|| {
        run("nft add table ip foreign");
        run("nft add chain ip foreign out { type nat hook output priority -160 ; }");
        run("nft add rule ip foreign out ip daddr 127.192.0.0/16 meta l4proto tcp redirect to :7777");
    });
    until("the end of the lease", || {
        status(&pair)["is_captured"] == false
    });
    let told = status(&pair);
    // To install again would not put ours before it.
    assert_eq!(told["drift"]["trouble"], "overruled", "{told}");
    assert_eq!(told["drift"]["needs_repair"], false, "{told}");
    assert!(
        told["obstacle"]
            .as_str()
            .unwrap()
            .contains("a probe connection"),
        "{told}"
    );
    until("v4 to go direct", || {
        Client::try_connect(&pair.app, V4).is_ok_and(|client| !client.is_captured)
    });
    pair.app.enter(|| run("nft delete table ip foreign"));
    until_captured(&pair);
    assert_eq!(status(&pair)["drift"]["trouble"], Value::Null);
}

#[test]
fn flushed_iptables_are_noticed_within_a_second_and_an_install_repairs_them() {
    for variant in ["iptables-nft", "iptables-legacy"] {
        let pair = wire();
        let _proxy = serve(&pair.app, "--workers 2");
        let install = format!("{INSTALL} --backend {variant}");
        ctl(&pair.app, &install).expect("captured");
        pair.app.enter(|| run(&format!("{variant} -t nat -F")));
        let flushed = std::time::Instant::now();
        until("the report", || {
            status(&pair)["drift"]["needs_repair"] == true
        });
        assert!(
            flushed.elapsed() < Duration::from_secs(1),
            "{variant}: too late"
        );
        ctl(&pair.app, &install).expect("captured");
        until_captured(&pair);
        until("the all-clear", || {
            status(&pair)["drift"]["needs_repair"] == false
        });
    }
}

#[test]
fn of_two_installs_at_once_one_captures_and_the_other_finds_it_done() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    let results = std::thread::scope(|scope| {
        let installs = [0, 1].map(|_| scope.spawn(|| ctl(&pair.app, INSTALL)));
        installs.map(|install| install.join().unwrap())
    });
    let mut words = results.map(|result| result.text("result").to_owned());
    words.sort();
    assert!(
        words == ["already captured", "captured"] || words == ["captured", "refused"],
        "{words:?}"
    );
    assert_captured(&pair, true);
}
