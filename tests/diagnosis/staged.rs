//! Troubles of the host rather than of its rules, staged for real where the kernel lets a namespace have
//! them by itself.

use std::{
    net::UdpSocket,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    netns::{Namespace, Pair, run},
    proxyctl::{Outcome, ctl, finish, proxyctl},
};

fn find<'a>(found: &'a Outcome, kind: &str) -> Option<&'a Value> {
    let findings = found.json["findings"].as_array();
    let findings = findings.unwrap_or_else(|| panic!("{found:?}"));
    findings.iter().find(|finding| finding["kind"] == kind)
}

/// The limit is the whole machine's and stays as it is; the entries are this namespace's own.
#[test]
fn a_connection_tracking_table_that_is_nearly_full_is_told_and_one_that_is_full() {
    let pair = Pair::new();
    pair.app.enter(|| {
        run("ip route add local 198.18.0.0/15 dev lo");
        run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=600");
        // Tracking is at work where a rule asks for it.
        run("iptables-legacy -t nat -A OUTPUT -p tcp --dport 9 -j REDIRECT --to-ports 9");
    });
    let most = pair.app.enter(|| number("nf_conntrack_max"));
    assert!(
        most <= 600_000,
        "this test fills the table: it needs a net.netfilter.nf_conntrack_max of 600,000 at most, not {most}"
    );
    assert!(find(&ctl(&pair.app, "doctor --json"), "conntrack_full").is_none());
    fill(&pair.app, 0, most * 92 / 100);
    let found = ctl(&pair.app, "doctor --json");
    let finding = find(&found, "conntrack_full").unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(finding["level"], "warning", "{found:?}");
    assert!(
        finding["evidence"][0]
            .to_string()
            .contains(&format!("of {most} entries")),
        "{found:?}"
    );
    fill(&pair.app, 1, most);
    let found = ctl(&pair.app, "doctor --json");
    let finding = find(&found, "conntrack_full").unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(
        (&finding["level"], found.code),
        (&"error".into(), 1),
        "{found:?}"
    );
}

/// Each datagram to another address or port is an entry.
fn fill(namespace: &Namespace, round: u8, wanted: u64) {
    namespace.enter(|| {
        let socket = UdpSocket::bind("198.19.255.1:0").unwrap();
        for third in 0..=255u8 {
            for fourth in 1..=255u8 {
                for port in 1..=32 {
                    let _ = socket.send_to(
                        &[0],
                        (
                            format!("198.{}.{third}.{fourth}", 18 + round).as_str(),
                            port,
                        ),
                    );
                }
                if number("nf_conntrack_count") >= wanted {
                    return;
                }
            }
        }
    });
}

fn number(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).unwrap();
    text.trim().parse().unwrap()
}

/// The modules of a running kernel cannot be taken away for a test; that they are seen nowhere can be had
/// in a mount namespace.
#[test]
fn modules_that_are_nowhere_are_named() {
    let pair = Pair::new();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let release = release.trim();
    let found = elsewhere(
        &pair.app,
        &format!(
            "mkdir -p /lib/modules && mount -t tmpfs none /lib/modules && mkdir /lib/modules/{release} && \
             echo kernel/net/netfilter/nf_tables.ko > /lib/modules/{release}/modules.builtin && \
             echo kernel/net/netfilter/nft_redir.ko.xz: > /lib/modules/{release}/modules.dep && \
             mount -t tmpfs none /sys/module && mkdir /sys/module/nf_nat"
        ),
    );
    let finding = find(&found, "modules_missing").unwrap_or_else(|| panic!("{found:?}"));
    let evidence = finding["evidence"][0].as_str().unwrap();
    assert_eq!(
        evidence, "missing: nf_conntrack, nft_chain_nat",
        "{found:?}"
    );
    assert_eq!(found.code, 0, "a warning is no error: {found:?}");
}

/// The real nscd, in a /run of its own.
#[test]
fn a_cache_of_names_is_the_other_suspect() {
    let pair = Pair::new();
    let found = elsewhere(
        &pair.app,
        "mount -t tmpfs none /run && mkdir -p /run/nscd /var/cache/nscd && \
         mount -t tmpfs none /var/cache/nscd && nscd && trap 'nscd --shutdown' EXIT && \
         timeout 10 sh -c 'until nscd -g > /dev/null 2>&1; do sleep 0.05; done'",
    );
    let finding = find(&found, "names_cached").unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(
        (&finding["level"], found.code),
        (&"info".into(), 0),
        "{found:?}"
    );
    assert_eq!(finding["fix"], "nscd --invalidate=hosts", "{found:?}");
    assert!(find(&ctl(&pair.app, "doctor --json"), "names_cached").is_none());
}

/// `doctor` with other mounts than everybody's.
fn elsewhere(namespace: &Namespace, mounts: &str) -> Outcome {
    let mut command = Command::new("unshare");
    let line = format!("{mounts} && {} doctor --json", proxyctl().display());
    command.args(["--mount", "sh", "-ec", &line]);
    command.stdin(Stdio::null());
    finish(namespace, command, "")
}
