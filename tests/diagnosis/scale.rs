//! A host with very many rules and very large sets.

use std::{fmt::Write as _, time::Instant};

use crate::{experiment::feed, netns::Pair, proxyctl::ctl};

const RULES: usize = 20_000;
const ELEMENTS: u32 = 100_000;
/// In seconds; a build without optimization is allowed ten times as much.
const BOUND: f64 = if cfg!(debug_assertions) { 20.0 } else { 2.0 };

#[test]
fn many_rules_and_large_sets_take_seconds_at_most() {
    let pair = Pair::new();
    feed(&pair.app, "nft", &["-f", "-"], &nft());
    feed(&pair.app, "iptables-legacy-restore", &[], &iptables());
    for command in ["doctor --json", "explain 10.77.0.2:80 --json"] {
        let begun = Instant::now();
        let told = ctl(&pair.app, command);
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "figure: {command}, {RULES} rules and a set of {ELEMENTS}: {seconds:.2} s (at most {BOUND} s)"
        );
        assert!(told.code < 2 && !told.json.is_null(), "{}", told.stderr);
        assert!(seconds <= BOUND, "{command}: {seconds} s");
        if command.starts_with("explain") {
            assert_eq!(told.json["ways"][0]["end"]["to"], "127.0.0.1:15009");
        }
    }
}

/// Half of the rules, and the set; the last rule catches.
fn nft() -> String {
    let mut text = String::from("table ip t {\n set many { type ipv4_addr; elements = { ");
    for n in 0..ELEMENTS {
        let [_, a, b, c] = n.to_be_bytes();
        let _ = write!(text, "20.{a}.{b}.{c}, ");
    }
    text += "10.77.0.2 }\n }\n chain out { type nat hook output priority -100;\n";
    for n in 0..RULES / 2 {
        let _ = writeln!(
            text,
            "  ip daddr 30.0.{}.{} tcp dport 80 accept",
            n / 256,
            n % 256
        );
    }
    text + "  ip daddr @many tcp dport 80 redirect to :15009\n }\n}\n"
}

fn iptables() -> String {
    let mut text = String::from("*filter\n:OUTPUT ACCEPT [0:0]\n");
    for n in 0..RULES / 2 {
        let _ = writeln!(
            text,
            "-A OUTPUT -d 40.0.{}.{}/32 -p tcp -m tcp --dport 80 -j DROP",
            n / 256,
            n % 256
        );
    }
    text + "COMMIT\n"
}
