//! Sockets bound to a device, whose packets never reach `lo`: they go direct.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    INSTALL,
    netns::{Namespace, Pair, run},
    proxyctl::{ctl, serve, until},
    watch::{status, unchosen, until_counted},
    wire::{Client, V4, V6, assert_captured, bound_socket, serve_echo, wire},
};

/// What the table of the first install is called.
const TABLE: &str = "outrigger_15001_g1";

/// Redirected, its packets would go nowhere. The first retransmission comes after a second.
#[test]
fn a_socket_bound_to_a_device_goes_direct() {
    thread::scope(|tests| {
        for backend in ["nft", "iptables-nft", "iptables-legacy"] {
            tests.spawn(move || {
                let pair = wire();
                let _proxy = serve(&pair.app, "--workers 2");
                let installed = ctl(&pair.app, &format!("{INSTALL} --backend {backend}"));
                installed.expect("captured");
                for address in [V4, V6] {
                    goes_direct(&pair, address, backend);
                }
                assert_captured(&pair, true);
                until_counted(&pair, "bound_to_device", 2);
                assert_eq!(unchosen(&pair), 2, "{backend}: {}", status(&pair));
            });
        }
    });
}

/// By its second SYN.
pub(crate) fn goes_direct(pair: &Pair, address: &str, cell: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let began = Instant::now();
    let connected = pair.app.enter(|| {
        let socket = bound_socket(44_000, address).unwrap();
        socket.bind_device(Some(b"wire0")).unwrap();
        socket.connect_timeout(&address.into(), Duration::from_secs(10))?;
        Ok::<_, std::io::Error>(Client::greeted_over(socket))
    });
    let client = connected.unwrap_or_else(|error| panic!("{cell} {address}: {error}"));
    assert!(!client.is_captured, "{cell} {address}");
    let took = began.elapsed();
    assert!(
        took < Duration::from_millis(2500),
        "{cell} {address}: {took:?}"
    );
}

/// It needs its interface, which the proxy's own connection would not have.
#[test]
fn a_link_local_destination_goes_direct() {
    let pair = wire();
    serve_echo(&pair.peer, "[::]:9100");
    pair.peer
        .enter(|| run("ip -6 addr add fe80::99/64 dev wire0 nodad"));
    let link = pair.app.enter(|| run("ip -o link show wire0"));
    let index = link.split(':').next().unwrap().trim();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let client = Client::connect(&pair.app, &format!("[fe80::99%{index}]:9100"));
    assert!(!client.is_captured);
}

/// A note says of a connection only that it has not been seen on `lo`.
#[test]
fn a_connection_that_reaches_the_proxy_leaves_no_note() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    for _ in 0..300 {
        assert!(Client::connect(&pair.app, V6).is_captured);
    }
    assert_eq!(notes(&pair.app), 0);
    // As long as the note of a socket bound to a device stands, the same port goes direct.
    let address: SocketAddr = V6.parse().unwrap();
    let lost = pair.app.enter(|| {
        let socket = bound_socket(44_001, address).unwrap();
        socket.bind_device(Some(b"wire0")).unwrap();
        socket.connect_timeout(&address.into(), Duration::from_millis(100))
    });
    lost.expect_err("captured although bound to a device");
    assert_eq!(notes(&pair.app), 1);
}

/// Its SYN reached `lo` and was dropped there, because nobody had room for it: the retransmission is
/// no reason to take it for a socket bound to a device.
#[test]
fn a_retransmission_to_a_full_accept_queue_is_captured() {
    let pair = wire();
    pair.app.enter(|| run("sysctl -qw net.core.somaxconn=1"));
    let proxy = serve(&pair.app, "--workers 1");
    ctl(&pair.app, INSTALL).expect("captured");
    proxy.signal("STOP");
    let (full, waiting) = pair.app.enter(|| fill_queue(V6));
    assert!(!waiting.is_empty(), "{} were all taken", full.len());
    // Within the lease still, or it would go direct for another reason.
    proxy.signal("CONT");
    for (socket, address) in &waiting {
        until("a connection", || socket.peer_addr().is_ok());
        assert!(is_translated(&pair.app, address), "{address} went direct");
    }
    drop(full);
}

/// Without room for a note, whatever is not bound to a device is captured all the same.
#[test]
fn a_full_set_of_notes_bars_nobody() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, INSTALL).expect("captured");
    let address: SocketAddr = V6.parse().unwrap();
    // Sockets that are lost, each from a port and one of three addresses of its own.
    pair.app.enter(|| {
        run("ip -6 addr add fd77::8/64 dev wire0 nodad");
        run("ip -6 addr add fd77::9/64 dev wire0 nodad");
        for source in ["fd77::1", "fd77::8", "fd77::9"] {
            // Below the ports that other clients get.
            for port in 1025..32_768 {
                let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
                let from: SocketAddr = (source.parse::<std::net::IpAddr>().unwrap(), port).into();
                socket.set_nonblocking(true).unwrap();
                socket.bind_device(Some(b"wire0")).unwrap();
                if socket.bind(&from.into()).is_ok() {
                    let _ = socket.connect(&SockAddr::from(address));
                }
            }
        }
    });
    for _ in 0..50 {
        assert!(Client::connect(&pair.app, V6).is_captured);
    }
}

/// Sockets that were taken, and those that wait, with where they come from.
fn fill_queue(to: &str) -> (Vec<Socket>, Vec<(Socket, SocketAddr)>) {
    let to: SocketAddr = to.parse().unwrap();
    let (mut taken, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to.into());
        thread::sleep(Duration::from_millis(20));
        if socket.peer_addr().is_ok() {
            taken.push(socket);
        } else {
            let own = socket.local_addr().unwrap().as_socket().unwrap();
            waiting.push((socket, own));
        }
    }
    (taken, waiting)
}

/// Whether connection tracking leads it to the proxy.
fn is_translated(namespace: &Namespace, from: &SocketAddr) -> bool {
    let port = from.port();
    let entries = namespace.enter(|| {
        run(&format!(
            "conntrack -L -f ipv6 -p tcp --orig-port-src {port}"
        ))
    });
    entries.contains("sport=15001")
}

fn notes(namespace: &Namespace) -> usize {
    let listed = namespace.enter(|| run(&format!("nft list set inet {TABLE} bound_to_device_v6")));
    listed.matches("expires").count()
}

/// For the figure in the documentation: connections a second over each family, one after the other.
#[test]
#[ignore = "a measurement, not a check: run it alone, with --nocapture"]
fn connect_rate() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    ctl(&pair.app, INSTALL).expect("captured");
    for round in 0..3 {
        for address in [V4, V6] {
            let address: SocketAddr = address.parse().unwrap();
            let rate = pair.app.enter(|| {
                let began = Instant::now();
                for _ in 0..3000 {
                    let stream = TcpStream::connect(address).unwrap();
                    socket2::SockRef::from(&stream)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                }
                3000.0 / began.elapsed().as_secs_f64()
            });
            println!("round {round}: {address}: {rate:.0}/s");
        }
    }
}
