//! Exclusions of every kind with every backend, and thousands of networks.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    INSTALL, REMOVE, config,
    netns::{Pair, run},
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
    let file = config(&listing("exclude", 1001));
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

const DIALLED: &str = "10.200.0.1:8080";

/// What a connect costs that no rule redirects, with short lists and with long ones, in one run. CPU time of the
/// dialling thread is held against a bar in the long form, where nothing runs beside it.
#[test]
fn figure_of_long_lists_of_networks() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    // Left out, so that what is measured is the kernel's decision and not the proxy.
    pair.peer
        .enter(|| run("ip addr add 10.200.0.1/32 dev wire0"));
    pair.app
        .enter(|| run("ip route add 10.200.0.0/16 via 10.77.0.2"));
    serve_echo(&pair.peer, DIALLED);
    for (backend, long, most) in [
        ("nft", 10_000, 1.5),
        ("iptables-nft", 990, 3.0),
        ("iptables-legacy", 990, 3.0),
    ] {
        for kind in ["exclude", "include"] {
            let mut costs = Vec::new();
            for count in [1, 100, long] {
                let file = config(&listing(kind, count));
                let began = Instant::now();
                let install = format!("{INSTALL} --backend {backend} --config {file}");
                ctl(&pair.app, &install).expect("captured");
                let install = began.elapsed();
                assert!(!Client::connect(&pair.app, DIALLED).is_captured);
                // The least of several: what disturbs one adds to it.
                let rounds = (0..5).map(|_| connects(&pair, DIALLED));
                let cost = rounds.min_by_key(|cost| cost.cpu).unwrap();
                println!(
                    "figure: {backend}, {kind} {count} networks: installed in {install:.2?}, a connect takes {:.1?}, of it CPU {:.1?}",
                    cost.wall, cost.cpu
                );
                costs.push(cost.cpu.as_secs_f64());
                ctl(&pair.app, REMOVE).expect("removed");
            }
            let ratio = costs[2] / costs[0];
            println!(
                "figure: {backend}, {kind}: CPU of a connect with {long} networks to one with 1: {ratio:.2}"
            );
            let is_long = std::env::var_os("OUTRIGGER_SOAK").is_some();
            assert!(!is_long || ratio < most, "{backend}, {kind}: {ratio:.2}");
        }
    }
}

struct Cost {
    wall: Duration,
    cpu: Duration,
}

/// Of one connect on average.
fn connects(pair: &Pair, address: &str) -> Cost {
    const COUNT: u32 = 200;
    pair.app.enter(|| {
        let (began, cpu) = (Instant::now(), thread_cpu());
        for _ in 0..COUNT {
            let stream = TcpStream::connect(address).unwrap();
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        Cost {
            wall: began.elapsed() / COUNT,
            cpu: (thread_cpu() - cpu) / COUNT,
        }
    })
}

fn thread_cpu() -> Duration {
    let line = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(line.split(' ').next().unwrap().parse().unwrap())
}

/// Networks that do not lie side by side. Of the excluded the one that is dialled is the last, so that whoever walks
/// them walks them all; of the included it is none.
fn listing(kind: &str, count: u32) -> String {
    let others = if kind == "exclude" { count - 1 } else { count };
    let nets = (0..others).map(|n| format!("'{}/31'", Ipv4Addr::from(0x0a64_0000 + n * 4)));
    let dialled = (kind == "exclude").then(|| "'10.200.0.0/31'".to_owned());
    let nets: Vec<_> = nets.chain(dialled).collect();
    format!("capture: {{ {kind}: {{ cidrs: [{}] }} }}", nets.join(", "))
}
