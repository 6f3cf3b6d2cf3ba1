//! Exclusions of every kind with every backend, and thousands of networks.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    INSTALL, REMOVE, config,
    proxyctl::{ctl, serve},
    scoped::App,
    wire::{Client, V4, V6, serve_echo, wire},
};

const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];
const OTHER: &str = "10.77.0.2:9000";
const USER: u32 = 4242;

#[test]
fn each_kind_leaves_out_what_it_names_and_nothing_else() {
    let everybody = [App::User(0), App::User(USER), App::Group(USER)];
    for backend in BACKENDS {
        let pair = wire();
        serve_echo(&pair.peer, OTHER);
        let _proxy = serve(&pair.app, "--workers 2");
        // For each: whether users 0 and 4242 and group 4242 are captured, to V4, V6 and the other port.
        for (exclusion, expected) in [
            ("ports: [22]", [[true, true, true]; 3]),
            ("cidrs: ['10.77.0.0/24']", [[false, true, false]; 3]),
            ("cidrs: ['fd77::2/128']", [[true, false, true]; 3]),
            (
                "cidrs: ['10.77.0.3/32', 'fd77::3/128']",
                [[true, true, true]; 3],
            ),
            ("ports: ['8000-8100']", [[false, false, true]; 3]),
            ("ports: [9000]", [[true, true, false]; 3]),
            ("uids: [4242]", [[true; 3], [false; 3], [true; 3]]),
            ("gids: [4242]", [[true; 3], [true; 3], [false; 3]]),
        ] {
            let file = config(&format!("capture: {{ exclude: {{ {exclusion} }} }}"));
            ctl(
                &pair.app,
                &format!("{INSTALL} --backend {backend} --config {file}"),
            )
            .expect("captured");
            let found = everybody
                .each_ref()
                .map(|app| [V4, V6, OTHER].map(|address| app.is_captured(&pair.app, address)));
            assert_eq!(found, expected, "{backend}: {exclusion}");
        }
    }
}

/// Every connection walks the rules of iptables one by one; a set of nftables is looked up.
#[test]
fn thousands_of_networks_are_nfts_and_refused_by_iptables() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    let file = config(&excluding(1001));
    let before = pair.app.ruleset();
    for backend in ["iptables-nft", "iptables-legacy"] {
        let refused = ctl(
            &pair.app,
            &format!("{INSTALL} --backend {backend} --config {file}"),
        )
        .expect("refused");
        let said = format!("{} {}", refused.text("message"), refused.text("advice"));
        for word in ["more than 1000", "--backend nft"] {
            assert!(said.contains(word), "{backend}: {said}");
        }
        assert_eq!(pair.app.ruleset(), before, "{backend}");
    }
    ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
    assert!(Client::connect(&pair.app, V4).is_captured);
}

/// Told, not held against a bar: time on a busy machine is no property of the program.
#[test]
fn figure_of_ten_thousand_excluded_networks() {
    let pair = wire();
    let proxy = serve(&pair.app, "--workers 2");
    // Of the excluded, so that what is measured is the kernel's decision and not the proxy.
    pair.peer
        .enter(|| crate::netns::run("ip addr add 10.200.0.1/32 dev wire0"));
    pair.app
        .enter(|| crate::netns::run("ip route add 10.200.0.0/16 via 10.77.0.2"));
    serve_echo(&pair.peer, "10.200.0.1:8080");
    let mut taken = Vec::new();
    for count in [1, 10_000] {
        let file = config(&excluding(count));
        let began = Instant::now();
        ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
        let install = began.elapsed();
        assert!(!Client::connect(&pair.app, "10.200.0.1:8080").is_captured);
        assert!(Client::connect(&pair.app, V4).is_captured);
        // The median of several: one disturbance is no figure.
        let mut rounds: Vec<_> = (0..5).map(|_| connects(&pair, "10.200.0.1:8080")).collect();
        rounds.sort();
        taken.push((count, install, rounds[2]));
        ctl(&pair.app, REMOVE).expect("removed");
    }
    drop(proxy);
    for (count, install, each) in &taken {
        println!(
            "\nfigure: {count} excluded networks: installed in {install:.2?}, {each:.1?} a connect"
        );
    }
    let ratio = taken[1].2.as_secs_f64() / taken[0].2.as_secs_f64();
    println!("figure: a connect with 10,000 excluded networks to one with 1: {ratio:.2}");
}

fn connects(pair: &crate::netns::Pair, address: &str) -> Duration {
    const COUNT: u32 = 1000;
    pair.app.enter(|| {
        let began = Instant::now();
        for _ in 0..COUNT {
            let stream = TcpStream::connect(address).unwrap();
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        began.elapsed() / COUNT
    })
}

/// The first is the one that is dialled; none of them lie side by side.
fn excluding(count: u32) -> String {
    let nets: Vec<_> = (0..count)
        .map(|n| format!("'{}/31'", std::net::Ipv4Addr::from(0x0ac8_0000 + n * 4)))
        .collect();
    format!("capture: {{ exclude: {{ cidrs: [{}] }} }}", nets.join(", "))
}
