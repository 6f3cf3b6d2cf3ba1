//! Listening sockets: made here, one per worker and address, or inherited.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::address::ListenerAddr;

/// Connections the kernel holds for us while a worker is busy; the kernel lowers it to somaxconn.
const BACKLOG: i32 = 4096;

/// Keepalive towards the application, so that one that vanished without a word is noticed.
const KEEPALIVE_IDLE: std::time::Duration = std::time::Duration::from_secs(60);

/// The listening sockets of a process: for each worker, one per address.
#[derive(Debug)]
pub struct Listeners {
    pub addresses: Vec<ListenerAddr>,
    pub per_worker: Vec<Vec<TcpListener>>,
}

/// Why a listener could not be had.
#[derive(Debug)]
pub enum BindError {
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    Inherited {
        index: usize,
        reason: String,
    },
    /// Only IPv6 is wanted, and this machine has none.
    NoFamily,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, source } if source.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address}: another process listens there; find it with `ss -ltnp 'sport = :{}'`, stop it, or choose another port with --listen",
                address.port()
            ),
            Self::Bind { address, source } if source.raw_os_error() == Some(libc::EMFILE) => write!(
                f,
                "cannot listen on {address}: {source}; each worker has a socket for each address: raise LimitNOFILE= or `ulimit -n`, or ask for fewer --workers"
            ),
            Self::Bind { address, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "cannot listen on {address}: {source}; ports below net.ipv4.ip_unprivileged_port_start (1024) take a privilege that the proxy has given up: choose a higher one with --listen"
                )
            }
            Self::Bind { address, source } => write!(
                f,
                "cannot listen on {address}: {source}; choose another with --listen"
            ),
            Self::NoFamily => f.write_str(
                "nothing to listen on: only IPv6 is asked for, and there is no IPv6 here; see that `lo` has ::1, or listen on 127.0.0.1 too",
            ),
            Self::Inherited { index, reason } => {
                write!(
                    f,
                    "inherited socket {index} (LISTEN_FDS) is not usable: {reason}"
                )
            }
        }
    }
}

impl std::error::Error for BindError {}

/// Binds every address once per worker, as one reuseport group each, so that the kernel spreads
/// connections without a shared lock. Port 0 is chosen once and used for all.
///
/// # Errors
/// The first address that cannot be bound. IPv6 missing on this machine is no error while there is
/// IPv4 to listen on: its address is left out, with a warning.
pub fn bind(wanted: &[SocketAddr], workers: usize) -> Result<Listeners, BindError> {
    let mut listeners = Listeners {
        addresses: Vec::new(),
        per_worker: (0..workers).map(|_| Vec::new()).collect(),
    };
    let is_only_ipv6 = wanted.iter().all(SocketAddr::is_ipv6);
    let mut port = 0;
    for &wanted in wanted {
        let mut address = wanted;
        if address.port() == 0 {
            address.set_port(port);
        }
        match bind_group(address, workers) {
            Ok(group) => {
                port = group.address.port();
                listeners.addresses.push(ListenerAddr(group.address));
                for (worker, socket) in listeners.per_worker.iter_mut().zip(group.sockets) {
                    worker.push(socket);
                }
            }
            Err(error) if address.is_ipv6() && is_family_missing(&error) => {
                if is_only_ipv6 {
                    return Err(BindError::NoFamily);
                }
                tracing::warn!(%address, "no IPv6 on this machine; listening on IPv4 only");
            }
            Err(source) => return Err(BindError::Bind { address, source }),
        }
    }
    Ok(listeners)
}

/// Takes over sockets that someone else bound. Those of one address (a reuseport group) are dealt out
/// to the workers, so that the kernel goes on spreading connections; where there are fewer than
/// workers, several workers share one, and where there are more, a worker has several.
///
/// # Errors
/// The first that is no plain TCP listener on loopback.
pub fn inherited(sockets: Vec<OwnedFd>, workers: usize) -> Result<Listeners, BindError> {
    let mut groups: Vec<(SocketAddr, Vec<Socket>)> = Vec::new();
    for (index, fd) in sockets.into_iter().enumerate() {
        let refuse = |reason: String| BindError::Inherited { index, reason };
        let socket = Socket::from(fd);
        let address = check_inherited(&socket).map_err(refuse)?;
        configure(&socket).map_err(|e| refuse(e.to_string()))?;
        if let Some((_, group)) = groups.iter_mut().find(|(of, _)| *of == address) {
            group.push(socket);
            continue;
        }
        if let Some((first, _)) = groups.first() {
            check_together(address, *first).map_err(refuse)?;
        }
        groups.push((address, vec![socket]));
    }
    let mut per_worker: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for (_, group) in &groups {
        for turn in 0..workers.max(group.len()) {
            let index = turn % group.len();
            let socket = group[index]
                .try_clone()
                .map_err(|error| BindError::Inherited {
                    index,
                    reason: error.to_string(),
                })?;
            per_worker[turn % workers].push(socket.into());
        }
    }
    Ok(Listeners {
        addresses: groups.into_iter().map(|(of, _)| ListenerAddr(of)).collect(),
        per_worker,
    })
}

/// One address's sockets, a worker each.
struct Group {
    address: SocketAddr,
    sockets: Vec<TcpListener>,
}

fn bind_group(mut address: SocketAddr, workers: usize) -> io::Result<Group> {
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = listen(address)?;
        // From the second on, the port that the kernel chose for the first.
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(Group { address, sockets })
}

fn check_inherited(socket: &Socket) -> Result<SocketAddr, String> {
    if !socket.is_listener().is_ok_and(|is| is) {
        return Err("it is not a listening socket".into());
    }
    // The kernel answers ENOTSUP when an MPTCP socket is asked for an original destination.
    if socket.protocol().ok().flatten() != Some(Protocol::TCP) {
        return Err("it is not plain TCP (MPTCP cannot tell an original destination); in a systemd unit write SocketProtocol=tcp or leave it out".into());
    }
    let address = socket
        .local_addr()
        .ok()
        .and_then(|a| a.as_socket())
        .ok_or("it has no IP address")?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{address} is reachable from elsewhere and would be an open proxy; listen on 127.0.0.1 or [::1]"
        ));
    }
    if ![
        Ipv4Addr::LOCALHOST.into(),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ]
    .contains(&address.ip())
    {
        return Err(format!(
            "no redirect leads to {address}; listen on 127.0.0.1 or [::1]"
        ));
    }
    Ok(address)
}

/// One instance has one port, in both families.
fn check_together(address: SocketAddr, first: SocketAddr) -> Result<(), String> {
    if address.is_ipv4() == first.is_ipv4() {
        return Err(format!(
            "{address} is of the same family as {first}; a redirect leads to exactly one"
        ));
    }
    if address.port() != first.port() {
        return Err(format!(
            "{address} has another port than {first}; one instance has one port, in both families"
        ));
    }
    Ok(())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    configure(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Options that accepted sockets inherit, which saves their system calls on each connection.
fn configure(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = SockRef::from(socket);
    // Between the application and us lies only loopback, which has no congestion to control; pacing
    // by the machine's own choice (BBR) doubles the CPU of a large answer there: 437 against 232 us
    // per MiB. A kernel that allows no other choice keeps its own.
    let _ = socket.set_tcp_congestion(b"reno");
    // Urgent data stays in the stream: read past it, its byte would be lost.
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE))
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const BOTH: [SocketAddr; 2] = [
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
    ];

    fn inherit(socket: Socket) -> Result<Listeners, String> {
        inherited(vec![socket.into()], 2).map_err(|error| error.to_string())
    }

    fn listening(address: &str, protocol: Protocol) -> Socket {
        let address: SocketAddr = address.parse().expect("an address");
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(protocol)).expect("a socket");
        socket.bind(&address.into()).expect("bound");
        socket.listen(1).expect("listening");
        socket
    }

    #[test]
    fn port_zero_becomes_one_port_for_all_workers_and_families() {
        let listeners = bind(&BOTH, 3).expect("bound");
        let port = listeners.addresses[0].0.port();
        assert_ne!(port, 0);
        assert_eq!(listeners.per_worker.len(), 3);
        for sockets in &listeners.per_worker {
            let bound: Vec<_> = sockets
                .iter()
                .map(|s| s.local_addr().expect("bound"))
                .collect();
            let expected: Vec<_> = listeners.addresses.iter().map(|l| l.0).collect();
            assert_eq!(bound, expected);
            assert!(bound.iter().all(|address| address.port() == port));
        }
    }

    #[test]
    fn accepted_connections_inherit_their_options() {
        let listeners = bind(&BOTH[..1], 1).expect("bound");
        let _client = std::net::TcpStream::connect(listeners.addresses[0].0).expect("connected");
        let listener = &listeners.per_worker[0][0];
        listener.set_nonblocking(false).expect("blocking");
        let accepted = Socket::from(listener.accept().expect("accepted").0);
        assert!(accepted.tcp_nodelay().expect("TCP_NODELAY"));
        assert!(accepted.keepalive().expect("SO_KEEPALIVE"));
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_the_way_to_find_who_took_it() {
        let other = listening("127.0.0.1:0", Protocol::TCP);
        let address = other
            .local_addr()
            .expect("bound")
            .as_socket()
            .expect("an IP address");
        let error = bind(&[address], 1).expect_err("taken").to_string();
        assert!(
            error.contains(&format!("ss -ltnp 'sport = :{}'", address.port())),
            "{error}"
        );
    }

    #[test]
    fn an_inherited_listener_serves_every_worker() {
        let socket = listening("127.0.0.1:0", Protocol::TCP);
        let address = socket.local_addr().expect("bound").as_socket();
        let listeners = inherit(socket).expect("usable");
        assert_eq!(listeners.addresses.first().map(|l| l.0), address);
        assert!(
            listeners
                .per_worker
                .iter()
                .all(|sockets| sockets.len() == 1)
        );
    }

    #[test]
    fn a_group_that_was_inherited_is_dealt_out_and_none_is_forgotten() {
        for (sockets, workers) in [(3, 3), (3, 2), (2, 3), (1, 4)] {
            let made = bind(&BOTH, sockets).expect("bound");
            let addresses: Vec<_> = made.addresses.iter().map(|l| l.0).collect();
            let inodes = |per_worker: &[Vec<TcpListener>]| -> std::collections::BTreeSet<u64> {
                let all = per_worker.iter().flatten();
                all.map(|s| rustix::fs::fstat(s).expect("open").st_ino)
                    .collect()
            };
            let before = inodes(&made.per_worker);
            let fds = made.per_worker.into_iter().flatten().map(Into::into);
            let taken = inherited(fds.collect(), workers).expect("usable");
            let found: Vec<_> = taken.addresses.iter().map(|l| l.0).collect();
            assert_eq!(found, addresses);
            assert_eq!(inodes(&taken.per_worker), before);
            // Both families, at every worker.
            assert!(taken.per_worker.iter().all(|own| own.len() >= 2));
        }
    }

    #[test]
    fn an_inherited_socket_that_does_not_listen_is_refused() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        assert!(
            inherit(socket)
                .expect_err("refused")
                .contains("not a listening socket")
        );
    }

    #[test]
    fn an_inherited_mptcp_listener_is_refused() {
        let error = inherit(listening("127.0.0.1:0", Protocol::MPTCP)).expect_err("refused");
        assert!(error.contains("SocketProtocol=tcp"), "{error}");
    }

    #[test]
    fn an_inherited_listener_beyond_loopback_is_refused() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let error = inherit(listening(address, Protocol::TCP)).expect_err("refused");
            assert!(error.contains("open proxy"), "{error}");
        }
    }

    #[test]
    fn an_inherited_listener_where_no_redirect_leads_is_refused() {
        let error = inherit(listening("127.0.0.2:0", Protocol::TCP)).expect_err("refused");
        assert!(error.contains("no redirect leads"), "{error}");
    }

    #[test]
    fn inherited_listeners_with_two_ports_are_refused() {
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|a| listening(a, Protocol::TCP).into());
        let error = inherited(sockets.into(), 1)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("one port"), "{error}");
    }

    #[test]
    fn a_machine_without_ipv6_listens_on_ipv4_only() {
        if !testing::is_again() {
            return testing::again(
                "accept::listener::tests::a_machine_without_ipv6_listens_on_ipv4_only",
                "ip link set lo up; echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; exec \"$@\"",
            );
        }
        let listeners = bind(&BOTH, 2).expect("bound");
        assert_eq!(listeners.addresses.len(), 1);
        assert!(listeners.addresses[0].0.is_ipv4());
    }
}
