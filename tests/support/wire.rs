//! An application and a server at the two ends of a wire; a client can tell whether it came itself.

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{
    netns::{Namespace, Pair},
    proxyctl::until,
};

pub(crate) const V4: &str = "10.77.0.2:8080";
pub(crate) const V6: &str = "[fd77::2]:8080";

const LIMIT: Duration = Duration::from_secs(10);

/// A wire with echo servers at its far end.
pub(crate) fn wire() -> Pair {
    let pair = Pair::new();
    for address in [V4, V6] {
        serve_echo(&pair.peer, address);
        // The first IPv6 connection over a fresh wire may wait a second for neighbour discovery,
        // which has nothing to do with capture.
        assert!(!Client::connect(&pair.app, address).is_captured);
    }
    pair
}

/// Each connection is told its peer's address, then gets its lines back. So a client learns whether
/// it came itself or through a proxy, whose connections have other ports.
pub(crate) fn serve_echo(namespace: &Namespace, address: &str) {
    let listener = namespace.enter(|| TcpListener::bind(address).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || echo(stream));
        }
    });
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    writeln!(stream, "{}", stream.peer_addr()?)?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        stream.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// A connection of the application.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    pub(crate) is_captured: bool,
}

impl Client {
    pub(crate) fn connect(namespace: &Namespace, address: &str) -> Self {
        Self::try_connect(namespace, address).unwrap_or_else(|e| panic!("{address}: {e}"))
    }

    pub(crate) fn try_connect(namespace: &Namespace, address: &str) -> std::io::Result<Self> {
        namespace.enter(|| Self::dial(address))
    }

    /// From this very thread.
    pub(crate) fn dial(address: &str) -> std::io::Result<Self> {
        let address: SocketAddr = address.parse().unwrap();
        Self::greeted(TcpStream::connect_timeout(&address, LIMIT)?)
    }

    /// From a port of the application's choice.
    pub(crate) fn from_port(namespace: &Namespace, port: u16, address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let connect = || {
            let socket = bound_socket(port, address)?;
            socket.connect_timeout(&address.into(), LIMIT)?;
            Self::greeted(socket.into())
        };
        namespace
            .enter(connect)
            .unwrap_or_else(|error| panic!("from port {port} to {address}: {error}"))
    }

    /// A connection that was begun without blocking.
    pub(crate) fn greeted_over(socket: Socket) -> Self {
        socket.set_nonblocking(false).unwrap();
        Self::greeted(socket.into()).unwrap()
    }

    fn greeted(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        let own = stream.local_addr()?;
        let mut stream = BufReader::new(stream);
        let mut seen = String::new();
        stream.read_line(&mut seen)?;
        let seen: SocketAddr = seen
            .trim()
            .parse()
            .map_err(|_| std::io::Error::other(format!("{seen:?} is no greeting")))?;
        Ok(Self {
            stream,
            is_captured: seen != own,
        })
    }

    pub(crate) fn check(&mut self) {
        self.stream.get_mut().write_all(b"still here?\n").unwrap();
        let mut answer = String::new();
        self.stream.read_line(&mut answer).unwrap();
        assert_eq!(answer, "still here?\n");
    }
}

/// Ends with a reset, so that the next connection may have the very same two ends.
pub(crate) fn bound_socket(port: u16, to: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    socket.bind(&SocketAddr::from((any, port)).into())?;
    Ok(socket)
}

#[track_caller]
pub(crate) fn assert_captured(pair: &Pair, expected: bool) {
    for address in [V4, V6] {
        let client = Client::connect(&pair.app, address);
        assert_eq!(client.is_captured, expected, "{address}");
    }
}

/// One family's lease may have been renewed once more than the other's.
#[track_caller]
pub(crate) fn until_direct(pair: &Pair) {
    for address in [V4, V6] {
        until("the end of the capture", || {
            Client::try_connect(&pair.app, address).is_ok_and(|client| !client.is_captured)
        });
    }
}

/// After a lapse: until the next beat connections go direct.
#[track_caller]
pub(crate) fn until_captured(pair: &Pair) {
    for address in [V4, V6] {
        until("the capture's return", || {
            Client::try_connect(&pair.app, address).is_ok_and(|client| client.is_captured)
        });
    }
}
