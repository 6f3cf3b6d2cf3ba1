//! An application and a server at the two ends of a wire; a client can tell whether it came itself.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::netns::{Namespace, Pair};

pub(crate) const V4: &str = "10.77.0.2:8080";
pub(crate) const V6: &str = "[fd77::2]:8080";

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
        let address: SocketAddr = address.parse().unwrap();
        let limit = Duration::from_secs(10);
        let stream = namespace.enter(|| TcpStream::connect_timeout(&address, limit))?;
        stream.set_read_timeout(Some(limit))?;
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

#[track_caller]
pub(crate) fn assert_captured(pair: &Pair, expected: bool) {
    for address in [V4, V6] {
        let client = Client::connect(&pair.app, address);
        assert_eq!(client.is_captured, expected, "{address}");
    }
}
