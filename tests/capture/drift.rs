//! What others do to the rules, what `status` calls it, and that rules are put back exactly where that
//! helps: by the library, as a supervisor calls it.

use outrigger_iptables::{
    Backend,
    repair::{Repair, Step},
};

use crate::{
    INSTALL, REMOVE, config,
    netns::{Pair, run},
    proxyctl::{Running, ctl, serve, until},
    watch::status,
    wire::{assert_captured, serve_echo, until_captured, wire},
};

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
