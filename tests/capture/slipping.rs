//! Connections that connection tracking takes for others, and that would slip past the capture.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::{
    INSTALL, config,
    netns::{Namespace, Pair, run},
    proxyctl::{PROXY_UID, as_user, ctl, serve, until},
    wire::{Client, V4, V6, bound_socket, until_captured, until_direct, wire},
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
    assert_none_slips(&pair.app);
}

/// Regression: in a bare namespace tracking ends with a killed proxy, and nobody sees the end of the
/// connections. From the port of one of them the next proxy's own connection came back to itself.
#[test]
fn a_captured_connection_of_a_killed_proxy_is_forgotten() {
    for backend in ["nft", "iptables-nft", "iptables-legacy"] {
        let pair = wire();
        let mut proxy = serve(&pair.app, "--workers 2");
        let install = format!("{INSTALL} --backend {backend}");
        ctl(&pair.app, &install).expect("captured");
        let captured = [V4, V6].map(|address| Client::from_port(&pair.app, 44_000, address));
        assert!(captured.iter().all(|client| client.is_captured));
        let _live = Client::from_port(&pair.app, 44_001, V4);
        proxy.kill();
        drop(captured);
        let _next = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &install).expect("captured");
        // What a SYN renews by itself may still be listed.
        for (address, own) in [(V4, "10.77.0.1:44000"), (V6, "[fd77::1]:44000")] {
            let mut dial = as_user(PROXY_UID, "socat".as_ref());
            let kind = if address == V4 { "TCP4" } else { "TCP6" };
            dial.args(["-T", "1", "-u"]);
            dial.args([&format!("{kind}:{address},bind={own},reuseaddr"), "-"]);
            let output = pair.app.enter(|| dial.output().unwrap());
            let seen = String::from_utf8_lossy(&output.stdout);
            assert_eq!(seen.trim(), own, "{backend}: {output:?}");
        }
    }
}

/// Regression: where nobody else needs tracking, it sleeps between two captures. What it remembered of a
/// captured connection led a direct one between the same ends to the proxy, once the next install woke it.
#[test]
fn a_direct_connection_between_the_ends_of_a_captured_one_lives_through_the_next_install() {
    const SERVERS: [&str; 2] = ["10.77.0.2:9090", "[fd77::2]:9090"];
    for backend in ["nft", "iptables-nft"] {
        let pair = wire();
        SERVERS.iter().for_each(|server| {
            let listener = pair.peer.enter(|| TcpListener::bind(server).unwrap());
            thread::spawn(move || {
                listener
                    .incoming()
                    .for_each(|stream| echo_unless_told(stream.unwrap()))
            });
        });
        let connect = |server: &str| {
            let server: SocketAddr = server.parse().unwrap();
            let socket = bound_socket(45_000, server).unwrap();
            socket.set_linger(None).unwrap();
            socket.connect(&server.into()).unwrap();
            TcpStream::from(socket)
        };
        let mut proxy = serve(&pair.app, "--workers 2");
        let install = format!("{INSTALL} --backend {backend}");
        ctl(&pair.app, &install).expect("captured");
        for server in SERVERS {
            let mut captured = pair.app.enter(|| connect(server));
            captured.write_all(b"end").unwrap();
            // The far end closes first, so that this port is free again at once.
            assert_eq!(captured.read(&mut [0; 8]).unwrap(), 0);
        }
        let remembered = entries(&pair.app, 45_000);
        assert_eq!(remembered.matches("sport=15001").count(), 2, "{remembered}");
        ctl(&pair.app, "remove-rules --json").expect("removed");
        proxy.signal("TERM");
        proxy.wait();

        let mut direct = SERVERS.map(|server| pair.app.enter(|| connect(server)));
        direct.iter_mut().for_each(check);
        let _next = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &install).expect("captured");
        direct.iter_mut().for_each(check);
    }
}

fn echo_unless_told(mut stream: TcpStream) {
    thread::spawn(move || {
        let mut said = [0; 8];
        while let Ok(length @ 1..) = stream.read(&mut said)
            && &said[..length] != b"end"
        {
            let _ = stream.write_all(&said[..length]);
        }
    });
}

fn check(stream: &mut TcpStream) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(b"echo").unwrap();
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).expect("it is answered");
    assert_eq!(&heard, b"echo");
}

/// What an install finds redirected and live stays so.
#[test]
fn a_captured_connection_outlives_a_change_of_the_capture() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let mut live = [V4, V6].map(|address| Client::from_port(&pair.app, 44_000, address));
    let changed = config("capture: { exclude: { ports: [23] } }");
    ctl(&pair.app, &format!("{INSTALL} --config {changed}")).expect("captured");
    assert_eq!(entries(&pair.app, 44_000).matches("ESTABLISHED").count(), 2);
    live.iter_mut().for_each(Client::check);
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

/// An attempt that a hung proxy has no room for is decided on anew at its next retransmission: direct,
/// once the lease is over. Otherwise it would be led to that proxy for as long as it tries.
#[test]
fn an_attempt_that_a_hung_proxy_never_took_goes_direct_after_the_lease() {
    for backend in ["nft", "iptables-nft", "iptables-legacy"] {
        let pair = tracked_wire();
        pair.app.enter(|| run("sysctl -qw net.core.somaxconn=1"));
        let proxy = serve(&pair.app, "--workers 1");
        ctl(&pair.app, &format!("{INSTALL} --backend {backend}")).expect("captured");
        proxy.signal("STOP");
        let mut waiting = [V4, V6].map(|to| pair.app.enter(|| attempts(to)));
        // The first retransmission, after a second, may still find room.
        thread::sleep(Duration::from_millis(1500));
        for of_family in &mut waiting {
            of_family.retain(|socket| socket.peer_addr().is_err());
            assert!(!of_family.is_empty(), "the proxy had room for all");
        }
        for socket in waiting.into_iter().flatten() {
            until("a direct connection", || socket.peer_addr().is_ok());
            assert!(!Client::greeted_over(socket).is_captured);
        }
    }
}

/// What began direct, because the lease had lapsed, and was never answered does not keep its ports
/// direct: a second after its last packet they are captured again.
#[test]
fn an_attempt_of_a_lapse_does_not_keep_its_port_direct() {
    let pair = tracked_wire();
    let proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    proxy.signal("STOP");
    until_direct(&pair);
    pair.peer.enter(|| {
        run("nft add table inet deaf");
        run("nft add chain inet deaf in { type filter hook input priority 0 ; }");
        run("nft add rule inet deaf in tcp dport 8080 drop");
    });
    for address in [V4, V6] {
        PORTS.for_each(|port| give_up_at_once(&pair.app, port, address));
    }
    assert!(entries(&pair.app, PORTS.start).contains("SYN_SENT"));
    pair.peer.enter(|| run("nft delete table inet deaf"));
    proxy.signal("CONT");
    until_captured(&pair);
    thread::sleep(Duration::from_secs(1));
    assert_none_slips(&pair.app);
}

/// Others translate service addresses at -100 (kube-proxy, Docker). The proxy is told the service address,
/// and its own connection is translated by them. Of two chains of the same priority the kernel asks the
/// one first that was registered last, so they come once before the capture and once after it.
#[test]
fn a_service_address_is_captured_before_others_translate_it() {
    for is_before in [true, false] {
        let pair = wire();
        let _proxy = serve(&pair.app, "--workers 2");
        if is_before {
            translate_services(&pair.app);
        }
        ctl(&pair.app, INSTALL).expect("captured");
        if !is_before {
            translate_services(&pair.app);
        }
        for address in ["10.96.0.1:8080", "[fd96::1]:8080"] {
            let is_captured = Client::connect(&pair.app, address).is_captured;
            assert!(is_captured, "{address}, translated before: {is_before}");
        }
    }
}

fn translate_services(namespace: &Namespace) {
    namespace.enter(|| {
        run("ip route add 10.96.0.0/16 dev wire0");
        run("ip -6 route add fd96::/64 dev wire0");
        run("nft add table inet services");
        run("nft add chain inet services out { type nat hook output priority -100 ; }");
        run("nft add rule inet services out ip daddr 10.96.0.1 dnat to 10.77.0.2");
        run("nft add rule inet services out ip6 daddr fd96::1 dnat to fd77::2");
    });
}

/// The kernel's own time for it is ten seconds.
#[test]
fn a_reset_connection_is_forgotten_within_two_seconds() {
    let pair = tracked_wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    for address in [V4, V6] {
        assert!(Client::from_port(&pair.app, 45_000, address).is_captured);
    }
    let ended = Instant::now();
    until("the end of the entries", || {
        entries(&pair.app, 45_000).is_empty()
    });
    let took = ended.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// More than a queue of one has room for.
fn attempts(address: &str) -> Vec<Socket> {
    let address: SocketAddr = address.parse().unwrap();
    let attempt = |_| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into());
        socket
    };
    (0..8).map(attempt).collect()
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

/// From none of the ports may a connection go past the capture.
fn assert_none_slips(app: &Namespace) {
    for address in [V4, V6] {
        let slipped: Vec<_> = PORTS
            .filter(|&port| !Client::from_port(app, port, address).is_captured)
            .collect();
        assert!(
            slipped.is_empty(),
            "{address}: past the capture from {slipped:?}"
        );
    }
}
