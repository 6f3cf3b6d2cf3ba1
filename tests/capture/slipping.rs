//! Connections that connection tracking takes for others, and that would slip past the capture.

use std::net::SocketAddr;

use rustix::io::Errno;

use crate::{
    INSTALL,
    netns::{Namespace, Pair, run},
    proxyctl::{ctl, serve},
    wire::{Client, V4, V6, bound_socket, wire},
};

const PORTS: std::ops::Range<u16> = 41_000..41_020;

/// Connection tracking is at work before the capture, as on any host with a stateful firewall.
fn tracked_wire() -> Pair {
    let pair = wire();
    pair.app.enter(|| {
        run("nft add table inet firewall");
        run("nft add chain inet firewall out { type filter hook output priority 0 ; }");
        run("nft add rule inet firewall out oif lo accept");
        run("nft add rule inet firewall out ct state established accept");
        run("nft add rule inet firewall out tcp flags & (syn | ack) == syn accept");
        run("nft add rule inet firewall out meta l4proto tcp drop");
    });
    pair
}

/// Regression guard: translation is decided once per entry, and the entry of an attempt that was
/// never answered outlives it by two minutes. Whoever tries again from that port is the same
/// connection to it.
#[test]
fn an_attempt_from_the_port_of_an_older_one_is_captured() {
    let pair = tracked_wire();
    pair.peer.enter(|| {
        run("nft add table inet deaf");
        run("nft add chain inet deaf in { type filter hook input priority 0 ; }");
        run("nft add rule inet deaf in tcp dport 8080 drop");
    });
    for address in [V4, V6] {
        PORTS.for_each(|port| give_up_at_once(&pair.app, port, address));
    }
    pair.peer.enter(|| run("nft delete table inet deaf"));
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    for address in [V4, V6] {
        let slipped: Vec<_> = PORTS
            .filter(|&port| !Client::from_port(&pair.app, port, address).is_captured)
            .collect();
        assert!(
            slipped.is_empty(),
            "{address}: past the capture from {slipped:?}"
        );
    }
}

/// A firewall lets it pass for its entry, and for nothing else.
#[test]
fn a_live_connection_keeps_its_entry() {
    let pair = tracked_wire();
    let mut live = [V4, V6].map(|address| Client::from_port(&pair.app, 42_000, address));
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let entries = entries(&pair.app, 42_000);
    assert_eq!(entries.matches("ESTABLISHED").count(), 2, "{entries}");
    assert!(entries.contains("[ASSURED]"), "{entries}");
    live.iter_mut().for_each(Client::check);
}

#[test]
fn what_others_translate_is_left_alone() {
    let pair = tracked_wire();
    pair.app.enter(|| {
        run("nft add table ip foreign");
        run("nft add chain ip foreign out { type nat hook output priority -100 ; }");
        run("nft add rule ip foreign out tcp dport 9999 dnat to 10.77.0.2:8080");
    });
    drop(Client::from_port(&pair.app, 43_000, "10.77.0.2:9999"));
    drop(Client::from_port(&pair.app, 43_001, V4));
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    assert!(
        entries(&pair.app, 43_000).contains("dport=9999"),
        "the translated one is gone"
    );
    assert_eq!(
        entries(&pair.app, 43_001),
        "",
        "the plain one is still there"
    );
}

fn give_up_at_once(namespace: &Namespace, port: u16, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let socket = namespace.enter(|| bound_socket(port, address).unwrap());
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&address.into()).expect_err("no answer yet");
    assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
}

fn entries(namespace: &Namespace, source_port: u16) -> String {
    let list = |family| format!("conntrack -L -f {family} -p tcp --orig-port-src {source_port}");
    namespace.enter(|| ["ipv4", "ipv6"].map(|family| run(&list(family))).concat())
}
