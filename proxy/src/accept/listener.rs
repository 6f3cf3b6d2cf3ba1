//! Listening sockets: made here, one per worker and address, or inherited.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
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
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, source } if source.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address}: another process listens there; find it with `ss -ltnp 'sport = :{}'`, stop it, or choose another port with --listen",
                address.port()
            ),
            Self::Bind { address, source } => write!(f, "cannot listen on {address}: {source}"),
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
/// The first address that cannot be bound. IPv6 missing on this machine is no error: its address is
/// left out, with a warning.
pub fn bind(wanted: &[SocketAddr], workers: usize) -> Result<Listeners, BindError> {
    let mut listeners = Listeners {
        addresses: Vec::new(),
        per_worker: (0..workers).map(|_| Vec::new()).collect(),
    };
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
                tracing::warn!(%address, "no IPv6 on this machine; listening on IPv4 only");
            }
            Err(source) => return Err(BindError::Bind { address, source }),
        }
    }
    Ok(listeners)
}

/// Takes over sockets that someone else bound; each is shared by all workers.
///
/// # Errors
/// The first that is no plain TCP listener on loopback.
pub fn inherited(sockets: Vec<OwnedFd>, workers: usize) -> Result<Listeners, BindError> {
    let mut listeners = Listeners {
        addresses: Vec::new(),
        per_worker: (0..workers).map(|_| Vec::new()).collect(),
    };
    for (index, fd) in sockets.into_iter().enumerate() {
        let refuse = |reason: String| BindError::Inherited { index, reason };
        let socket = Socket::from(fd);
        let address = check_inherited(&socket).map_err(refuse)?;
        configure(&socket).map_err(|e| refuse(e.to_string()))?;
        for worker in &mut listeners.per_worker {
            worker.push(
                socket
                    .try_clone()
                    .map_err(|e| refuse(e.to_string()))?
                    .into(),
            );
        }
        listeners.addresses.push(ListenerAddr(address));
    }
    Ok(listeners)
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
    Ok(address)
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
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE))
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
