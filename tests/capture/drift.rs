//! What others do to the rules, what `status` calls it, and that rules are put back exactly where that
//! helps: by the library, as a supervisor calls it.

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use outrigger_iptables::{
    Backend,
    repair::{Repair, Step},
};

use crate::{
    INSTALL, REMOVE, STATUS, config,
    netns::{Pair, run},
    proxyctl::{PROXY_UID, Running, ctl, ctl_as, serve, until},
    watch::{status, unchosen},
    wire::{Client, V4, V6, assert_captured, serve_echo, until_captured, wire},
};

const VARIANTS: [&str; 2] = ["iptables-nft", "iptables-legacy"];

fn captured(backend: &str) -> (Pair, Running, Repair) {
    let pair = wire();
    serve_echo(&pair.app, "127.0.0.1:7777");
    let proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, &format!("{INSTALL} --backend {backend}")).expect("captured");
    let settings = outrigger_config::parse("").unwrap();
    let backend: Backend = backend.parse().unwrap();
    (pair, proxy, Repair::new(settings, backend))
}

/// A step that is refused is to be tried again, as another program may be at work still.
fn is_repaired(pair: &Pair, repair: &mut Repair) -> bool {
    match pair.app.enter(|| repair.step()) {
        Ok(step) => matches!(step, Step::Repaired(_)),
        Err(refusal) => {
            eprintln!("to be tried again: {refusal}");
            false
        }
    }
}

/// Each line by which another program takes the rules of `PROGRAM` away.
#[test]
fn rules_that_are_gone_are_repaired() {
    let emptied = config("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n");
    for (variant, lines) in [
        (
            "iptables-nft",
            vec![
                "iptables-nft -t nat -F",
                "iptables-nft -t mangle -F",
                "ip6tables-nft -t nat -F",
                "iptables-nft-restore {FILE}",
                "nft flush ruleset",
            ],
        ),
        (
            "iptables-legacy",
            vec![
                "iptables-legacy -t nat -F",
                "iptables-legacy -t mangle -F",
                "iptables-legacy-restore {FILE}",
            ],
        ),
    ] {
        for line in lines {
            let (pair, _proxy, mut repair) = captured(variant);
            assert!(
                !is_repaired(&pair, &mut repair),
                "{line}: nothing was wrong"
            );
            pair.app.enter(|| run(&line.replace("{FILE}", &emptied)));
            until(&format!("the repair after {line}"), || {
                is_repaired(&pair, &mut repair)
            });
            until_captured(&pair);
            until(&format!("the all-clear after {line}"), || {
                status(&pair)["drift"]["trouble"].is_null()
            });
            assert!(!is_repaired(&pair, &mut repair), "{line}: repaired twice");
            assert_captured(&pair, true);
        }
    }
}

/// What a removal ended, and what the proxy ended, is not brought back.
#[test]
fn a_capture_that_was_ended_on_purpose_is_not_repaired() {
    for backend in ["nft", "iptables-nft"] {
        let (pair, _proxy, mut repair) = captured(backend);
        if backend != "nft" {
            pair.app.enter(|| run("iptables-nft -t nat -F"));
            until("the report", || {
                status(&pair)["drift"]["needs_repair"] == true
            });
        }
        ctl(&pair.app, REMOVE).expect("removed");
        assert!(!is_repaired(&pair, &mut repair));
        assert_eq!(status(&pair)["drift"]["needs_repair"], false);
        assert_captured(&pair, false);
    }
}

/// An owned table passes a flush by; nothing is to be repaired.
#[test]
fn a_flush_does_not_touch_rules_that_the_proxy_owns() {
    let (pair, _proxy, mut repair) = captured("nft");
    pair.app.enter(|| run("nft flush ruleset"));
    assert_captured(&pair, true);
    assert!(!is_repaired(&pair, &mut repair));
    assert!(status(&pair)["drift"]["trouble"].is_null());
}

/// Another's rules are not ours to remove, and installing again would end as before.
#[test]
fn trouble_that_no_install_ends_is_named_and_not_repaired() {
    let chain = |hook: &str| {
        [
            "nft add table ip foreign".into(),
            format!("nft add chain ip foreign out {{ {hook} ; }}"),
        ]
    };
    let ahead = "type nat hook output priority -160";
    let first = "type filter hook output priority -400";
    for (backend, hook, rule, trouble) in [
        (
            "nft",
            ahead,
            "ip daddr 127.0.0.0/8 tcp dport != 1 redirect to :7777",
            "overruled",
        ),
        (
            "iptables-legacy",
            ahead,
            "ip daddr 127.0.0.0/8 tcp dport != 1 redirect to :7777",
            "overruled",
        ),
        ("nft", first, "oif lo udp dport != 53 drop", "dropped"),
        (
            "nft",
            first,
            "oif lo tcp flags & (syn | ack) == syn drop",
            "dropped",
        ),
        (
            "nft",
            first,
            "oif lo ct zone set 5",
            "no_original_destination",
        ),
    ] {
        let (pair, _proxy, mut repair) = captured(backend);
        pair.app.enter(|| {
            chain(hook).iter().for_each(|line| drop(run(line)));
            run(&format!("nft add rule ip foreign out {rule}"));
        });
        until(&format!("{trouble} of {rule} with {backend}"), || {
            status(&pair)["drift"]["trouble"] == trouble
        });
        assert_eq!(status(&pair)["drift"]["needs_repair"], false, "{rule}");
        assert!(!is_repaired(&pair, &mut repair), "{rule}");
        let text = ctl(&pair.app, "status").stdout;
        assert!(text.contains("RULES OVERRULED: "), "{text}");
        pair.app.enter(|| run("nft delete table ip foreign"));
        until_captured(&pair);
    }
}

/// What the proxy itself has seen: its user may not look at rules.
fn told(pair: &Pair) -> serde_json::Value {
    ctl_as(&pair.app, PROXY_UID, STATUS).json["drift"].clone()
}

/// For longer than two rounds of beats.
#[track_caller]
fn assert_stays_well(pair: &Pair, what: &str) {
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert!(told(pair)["trouble"].is_null(), "{what}: {}", told(pair));
    }
}

/// Another's rule that spares this proxy's user, whose own probe comes back as ever.
#[test]
fn a_rule_ahead_that_spares_the_proxy_is_noticed_within_a_second_and_repaired() {
    thread::scope(|tests| {
        for variant in VARIANTS {
            tests.spawn(move || {
                // To nobody, to a server that speaks and to one that is silent; the last is of Istio's kind,
                // which leaves loopback alone.
                for (port, condition) in [(7778, ""), (7777, ""), (7779, ""), (7779, "! -o lo")] {
                    for (command, address) in [("iptables", V4), ("ip6tables", V6)] {
                        let program = variant.replacen("iptables", command, 1);
                        rule_ahead(variant, &program, condition, port, address);
                    }
                }
            });
        }
    });
}

fn rule_ahead(variant: &str, program: &str, condition: &str, port: u16, address: &str) {
    let (pair, _proxy, mut repair) = captured(variant);
    serve_echo(&pair.app, "[::1]:7777");
    let _silent = pair
        .app
        .enter(|| ["127.0.0.1:7779", "[::1]:7779"].map(|of| TcpListener::bind(of).unwrap()));
    if !condition.is_empty() {
        pair.app.enter(|| {
            run("ip route add default via 10.77.0.2");
            run("ip -6 route add default via fd77::2");
        });
    }
    let rule = format!(
        "OUTPUT -p tcp {condition} -m owner ! --uid-owner {PROXY_UID} -j REDIRECT --to-ports {port}"
    );
    let cell = format!("{program} {rule}");
    assert_stays_well(&pair, &cell);
    pair.app
        .enter(|| run(&format!("{program} -t nat -I {rule}")));
    let planted = Instant::now();
    until(&format!("the report of {cell}"), || {
        told(&pair)["trouble"] == "gone"
    });
    let took = planted.elapsed();
    assert!(took < Duration::from_secs(1), "{cell}: {took:?}");
    assert_eq!(told(&pair)["needs_repair"], true, "{cell}");
    assert_eq!(unchosen(&pair), 0, "{cell}: {}", status(&pair));
    until(&format!("the repair of {cell}"), || {
        is_repaired(&pair, &mut repair)
    });
    until(&format!("the all-clear of {cell}"), || {
        told(&pair)["trouble"].is_null()
    });
    assert!(Client::connect(&pair.app, address).is_captured, "{cell}");
    // It is still there, and behind ours.
    let rules = pair.app.enter(|| run(&format!("{program}-save")));
    assert!(rules.contains(&format!("--to-ports {port}\n")), "{rules}");
}

/// A rule for some destinations only, which no probe meets. nftables tells the proxy of it; of one by
/// iptables-legacy nobody is told, so that it takes somebody with the privilege to look.
#[test]
fn a_rule_ahead_for_some_destinations_is_noticed_by_whoever_can_see_it() {
    for variant in VARIANTS {
        let (pair, _proxy, mut repair) = captured(variant);
        let program = variant.replacen("iptables", "ip6tables", 1);
        let rule = "OUTPUT -d 2001:db8:1::/48 -p tcp --dport 80 -j REDIRECT --to-ports 7777";
        pair.app
            .enter(|| run(&format!("{program} -t nat -I {rule}")));
        let planted = Instant::now();
        if variant == "iptables-nft" {
            until("the report", || told(&pair)["trouble"] == "gone");
            let what = told(&pair)["recent"][0]["what"].to_string();
            assert!(what.contains("table ip6 nat chain OUTPUT"), "{what}");
        }
        until("the report", || status(&pair)["drift"]["trouble"] == "gone");
        assert!(planted.elapsed() < Duration::from_secs(1), "{variant}");
        until("the repair", || is_repaired(&pair, &mut repair));
        until("the all-clear", || {
            status(&pair)["drift"]["trouble"].is_null()
        });
        assert_captured(&pair, true);
        // Behind ours it is none of our business, nor is its end.
        pair.app
            .enter(|| run(&format!("{program} -t nat -A {rule}")));
        pair.app
            .enter(|| run(&format!("{program} -t nat -D {rule}")));
        assert!(status(&pair)["drift"]["trouble"].is_null(), "{variant}");
    }
}

/// Of two captures the narrower is the right one, and no reason for alarm.
#[test]
fn a_neighbour_that_captures_the_same_applications_is_no_drift() {
    for variant in VARIANTS {
        let (pair, _proxy, mut repair) = captured(variant);
        // What is dialled as an application leads to the neighbour then.
        pair.app.enter(|| {
            run("ip route add default via 10.77.0.2");
            run("ip -6 route add default via fd77::2");
        });
        let file = config("listen: ['127.0.0.1:15010', '[::1]:15010']");
        let _neighbour = serve(&pair.app, &format!("--workers 1 --config {file}"));
        until("the neighbour's capture", || {
            let install = format!("{INSTALL} --backend {variant} --scope uid:0 --config {file}");
            ctl(&pair.app, &install).code == 0
        });
        assert_stays_well(&pair, variant);
        assert!(!is_repaired(&pair, &mut repair), "{variant}");
    }
}
