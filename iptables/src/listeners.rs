//! Who listens on a TCP port, from the kernel's own list (sock_diag).

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use crate::process::{Process, holders};

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    pub inode: u64,
    /// Its owner in the kernel's eyes: who made it, or to whom it was given since.
    pub uid: u32,
    /// The processes that hold it, once [`name_owners`](Self::name_owners) looked.
    pub owners: Vec<Process>,
}

impl Listener {
    /// Looks through `/proc`, which is too slow to do for every listener of a host.
    pub fn name_owners(mut self) -> Self {
        self.owners = holders(&HashSet::from([self.inode]));
        self
    }

    /// Whether a connection redirected on this host could arrive here: REDIRECT in OUTPUT leads to
    /// the loopback address, which wildcard listeners also serve.
    pub fn takes_redirected(&self) -> bool {
        let ip = self.address.ip();
        ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
    }

    pub fn who(&self) -> String {
        match self.owners.first() {
            Some(owner) => owner.to_string(),
            None => format!(
                "a program of user {} that is not visible from here",
                self.uid
            ),
        }
    }
}

/// Every TCP socket that listens on `port`, at whatever address.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn on_port(port: u16) -> io::Result<Vec<Listener>> {
    let mut found = listening(AF_INET, port)?;
    found.extend(listening(AF_INET6, port)?);
    Ok(found)
}

/// Both ends of every TCP connection that data flows on or will: a new connection cannot take their
/// place.
///
/// # Errors
/// When the kernel cannot be asked.
pub(crate) fn live_connections() -> io::Result<HashSet<(SocketAddr, SocketAddr)>> {
    let mut found = HashSet::new();
    for family in [AF_INET, AF_INET6] {
        for socket in dump(family, !REPLACEABLE)? {
            let id = &socket.header.socket_id;
            let end = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
            found.insert((
                end(id.source_address, id.source_port),
                end(id.destination_address, id.destination_port),
            ));
        }
    }
    Ok(found)
}

/// Whether this very connection is among the [`live_connections`] now.
///
/// # Errors
/// When the kernel cannot be asked.
pub(crate) fn is_live(from: SocketAddr, to: SocketAddr) -> io::Result<bool> {
    let family = if from.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut id = any_socket(family);
    (id.source_address, id.source_port) = (from.ip(), from.port());
    (id.destination_address, id.destination_port) = (to.ip(), to.port());
    id.cookie = ANY_COOKIE;
    let found = ask(family, !REPLACEABLE, id, NLM_F_REQUEST)?;
    // Where there is no such connection, the kernel may answer with a listener that would take it.
    Ok(found.iter().any(|socket| {
        let state = StateFlags::from_bits_truncate(1 << socket.header.state);
        !REPLACEABLE.contains(state)
    }))
}

/// How many connections live that this host began towards others, save for those of `proxy`: none
/// that came to a listener.
pub(crate) fn outbound_connections(proxy: Option<u32>) -> io::Result<u64> {
    let mut count = 0;
    for family in [AF_INET, AF_INET6] {
        let listening: HashSet<_> = dump(family, StateFlags::LISTEN)?
            .iter()
            .map(|socket| socket.header.socket_id.source_port)
            .collect();
        for socket in dump(family, !REPLACEABLE - StateFlags::SYN_SENT)? {
            let id = &socket.header.socket_id;
            let is_outbound = !id.destination_address.to_canonical().is_loopback()
                && !listening.contains(&id.source_port);
            count += u64::from(is_outbound && Some(socket.header.uid) != proxy);
        }
    }
    Ok(count)
}

/// A TCP socket that has another end.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) inode: u64,
}

/// # Errors
/// When the kernel cannot be asked.
pub(crate) fn tcp_sockets() -> io::Result<Vec<Connected>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for socket in dump(family, !REPLACEABLE)? {
            let id = &socket.header.socket_id;
            let end = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
            found.push(Connected {
                local: end(id.source_address, id.source_port),
                peer: end(id.destination_address, id.destination_port),
                inode: socket.header.inode.into(),
            });
        }
    }
    Ok(found)
}

/// `INET_DIAG_NOCOOKIE` twice (linux/inet_diag.h).
const ANY_COOKIE: [u8; 8] = [0xff; 8];
const REPLACEABLE: StateFlags = StateFlags::LISTEN
    .union(StateFlags::CLOSE)
    .union(StateFlags::TIME_WAIT);

fn listening(family: u8, port: u16) -> io::Result<Vec<Listener>> {
    let sockets = dump(family, StateFlags::LISTEN)?;
    let listeners = sockets.iter().filter_map(listener);
    Ok(listeners.filter(|l| l.address.port() == port).collect())
}

fn dump(family: u8, states: StateFlags) -> io::Result<Vec<InetResponse>> {
    ask(
        family,
        states,
        any_socket(family),
        NLM_F_REQUEST | NLM_F_DUMP,
    )
}

fn any_socket(family: u8) -> SocketId {
    if family == AF_INET {
        SocketId::new_v4()
    } else {
        SocketId::new_v6()
    }
}

fn ask(family: u8, states: StateFlags, id: SocketId, flags: u16) -> io::Result<Vec<InetResponse>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&request(family, states, id, flags), 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(*response);
                    if flags & NLM_F_DUMP != NLM_F_DUMP {
                        return Ok(found);
                    }
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => {
                    return not_found(family, flags).map(|()| found);
                }
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
    }
}

/// A kernel without IPv6 has no such sockets, as one without the one asked for has none. But one that lists
/// no IPv4 sockets at all must not be taken for one where nobody listens.
fn not_found(family: u8, flags: u16) -> io::Result<()> {
    if family == AF_INET && flags & NLM_F_DUMP == NLM_F_DUMP {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel lists no TCP sockets: it lacks the module tcp_diag",
        ))
    } else {
        Ok(())
    }
}

fn request(family: u8, states: StateFlags, socket_id: SocketId, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn listener(response: &InetResponse) -> Option<Listener> {
    let header = &response.header;
    Some(Listener {
        address: SocketAddr::new(
            header.socket_id.source_address,
            header.socket_id.source_port,
        ),
        inode: header.inode.into(),
        uid: header.uid,
        owners: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Regression: the proxy was told to listen where it did, on a kernel without the module.
    #[test]
    fn a_kernel_that_lists_no_sockets_is_not_taken_for_one_where_nobody_listens() {
        let dump = NLM_F_REQUEST | NLM_F_DUMP;
        let error = not_found(AF_INET, dump).unwrap_err();
        assert!(error.to_string().contains("tcp_diag"), "{error}");
        not_found(AF_INET6, dump).unwrap();
        not_found(AF_INET, NLM_F_REQUEST).unwrap();
    }

    #[test]
    fn finds_a_listener_with_its_process() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = on_port(address.port()).unwrap();
        let [listener] = found.as_slice() else {
            panic!("one listener expected: {found:?}")
        };
        assert_eq!(listener.address, address);
        let named = listener.clone().name_owners();
        let own_pid = i32::try_from(std::process::id()).unwrap();
        assert!(named.owners.iter().any(|p| p.pid == own_pid), "{named:?}");
    }

    #[test]
    fn a_connection_is_live_until_it_closes_and_its_listener_does_not_count() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let to = listener.local_addr().unwrap();
            let client = TcpStream::connect(to).unwrap();
            let from = client.local_addr().unwrap();
            assert!(is_live(from, to).unwrap());
            assert!(is_live(to, from).unwrap());
            drop((client, listener));
            assert!(!is_live(from, to).unwrap());
            let listener = TcpListener::bind(any).unwrap();
            let at = listener.local_addr().unwrap();
            assert!(!is_live(at, to).unwrap(), "only a listener");
        }
    }

    #[test]
    fn sees_v6_wildcards_and_not_other_ports() {
        let socket = TcpListener::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = on_port(port).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].takes_redirected());
    }
}
