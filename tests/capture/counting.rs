//! Bypasses beside rules of iptables, which cannot count them: a table of nftables does.

use std::{net::SocketAddr, time::Duration};

use crate::{
    INSTALL, REMOVE, config,
    netns::run,
    proxyctl::{ctl, serve, until},
    watch::{count, run_notrack, status, unchosen, until_counted},
    wire::{
        Client, V4, V6, assert_captured, bound_socket, serve_echo, until_captured, until_direct,
        wire,
    },
};

const VARIANTS: [&str; 2] = ["iptables-nft", "iptables-legacy"];
const OTHER: &str = "10.77.0.2:9999";

#[test]
fn what_goes_past_rules_of_iptables_is_counted_and_explained() {
    for variant in VARIANTS {
        let pair = wire();
        serve_echo(&pair.peer, OTHER);
        let file = config("capture: { exclude: { cidrs: ['192.0.2.0/24'], ports: [9999] } }");
        let install = format!("{INSTALL} --backend {variant} --config {file}");
        let proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &install).expect("captured");
        assert_eq!(status(&pair)["bypasses"]["is_watched"], true, "{variant}");
        for _ in 0..5 {
            assert_captured(&pair, true);
        }
        assert!(!Client::connect(&pair.app, OTHER).is_captured);
        until_counted(&pair, "excluded_port", 1);
        assert_eq!(unchosen(&pair), 0, "{variant}: {}", status(&pair));

        pair.app.enter(|| {
            run("conntrack -I -p tcp -s 10.77.0.1 -d 10.77.0.2 --sport 45000 --dport 8080 --state SYN_SENT -t 60")
        });
        let address: SocketAddr = V4.parse().unwrap();
        let connected = pair.app.enter(|| {
            let socket = bound_socket(45_000, address).unwrap();
            socket.connect_timeout(&address.into(), Duration::from_secs(10))
        });
        connected.expect("a connection, if not a captured one");
        until_counted(&pair, "older_entry", 1);

        proxy.signal("STOP");
        until_direct(&pair);
        proxy.signal("CONT");
        until_captured(&pair);
        until("lapsed ones", || count(&pair, "lapsed") >= 2);

        run_notrack(&pair);
        for address in [V4, V6] {
            assert!(!Client::connect(&pair.app, address).is_captured);
        }
        until_counted(&pair, "untracked", 2);
        assert_eq!(count(&pair, "older_entry"), 1, "{}", status(&pair));

        assert!(pair.app.ruleset().contains("outrigger_15001_bypass_g1"));
        ctl(&pair.app, REMOVE).expect("removed");
        assert!(!pair.app.ruleset().contains("_bypass_"), "{variant}");
    }
}

#[test]
fn the_next_backend_takes_the_counting_over() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    for (backend, counters) in [
        ("nft", 0),
        ("iptables-nft", 1),
        ("iptables-legacy", 1),
        ("nft", 0),
    ] {
        ctl(&pair.app, &format!("{INSTALL} --backend {backend}")).expect("captured");
        assert_captured(&pair, true);
        let rules = pair.app.ruleset();
        assert_eq!(
            rules.matches("_bypass_g").count(),
            counters,
            "{backend}: {rules}"
        );
        assert_eq!(unchosen(&pair), 0, "{backend}: {}", status(&pair));
    }
}
