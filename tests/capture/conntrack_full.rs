//! A connection tracking table that fills up: captured connections must not be refused for it.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use crate::{
    INSTALL, STATUS,
    netns::{Namespace, run},
    proxyctl::{ctl, serve, until},
    wire::{Client, V4, assert_captured, wire},
};

/// The limit is the whole machine's and stays as it is; the entries are this namespace's own. Each
/// datagram to another address or port is an entry, of which the kernel keeps 30 s.
#[test]
fn a_nearly_full_table_ends_the_capture_and_a_full_one_the_anchor() {
    let pair = wire();
    pair.app.enter(|| {
        run("ip route add local 198.18.0.0/15 dev lo");
        run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=600");
    });
    let most = number(&pair.app, "nf_conntrack_max");
    assert!(
        most <= 600_000,
        "this test fills the table: it needs a net.netfilter.nf_conntrack_max of 600,000 at most, not {most}"
    );
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let mut live = Client::connect(&pair.app, V4);
    assert!(live.is_captured);
    fill(&pair.app, 0, most * 85 / 100);
    assert!(Client::connect(&pair.app, V4).is_captured);

    fill(&pair.app, 1, most * 92 / 100);
    until("the end of the capture", || {
        ctl(&pair.app, STATUS).text("result") == "given up"
    });
    assert_captured(&pair, false);
    live.check();
    let status = ctl(&pair.app, STATUS);
    assert!(
        status.text("given_up").contains("nearly full"),
        "{status:?}"
    );
    let refused = ctl(&pair.app, INSTALL).expect("refused");
    assert!(
        refused.text("message").contains("nearly full"),
        "{refused:?}"
    );
    assert!(pair.app.ruleset().contains("anchor"));

    fill(&pair.app, 2, most);
    until("the end of the anchor", || pair.app.ruleset().is_empty());
    assert_captured(&pair, false);

    pair.app.enter(|| run("conntrack -F"));
    ctl(&pair.app, INSTALL).expect("captured");
    assert_captured(&pair, true);
}

/// Until there are `wanted` entries, or nothing more can be done for it.
fn fill(namespace: &Namespace, round: u8, wanted: u64) {
    let sending = || {
        let socket = UdpSocket::bind("198.19.255.1:0").unwrap();
        for third in 0..=255u8 {
            for fourth in 1..=255u8 {
                for port in 1..=32 {
                    let to: IpAddr = [198, 18 + round % 2, third, fourth].into();
                    let _ = socket.send_to(&[0], SocketAddr::from((to, port)));
                }
                if number_here("nf_conntrack_count") >= wanted {
                    return;
                }
            }
        }
    };
    namespace.enter(sending);
}

fn number(namespace: &Namespace, name: &str) -> u64 {
    namespace.enter(|| number_here(name))
}

fn number_here(name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).unwrap();
    text.trim().parse().unwrap()
}
