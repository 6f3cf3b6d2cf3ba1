//! The two servers of the story, as processes of their own: the upstream, which tells each caller
//! which TCP connection his request came on, and a stranger that answers 404 to everything.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::network::{self, UPSTREAM};
use crate::sys;

/// What the director waits for on a server's standard output.
pub(super) const IN_NAMESPACE: &str = "in its own namespace";
pub(super) const LISTENING: &str = "listening";
pub(super) const LISTENING_WITHOUT_V6: &str = "listening, IPv4 only";

/// Where the upstream serves.
pub(super) const PORT: u16 = 80;

/// Moves to a network namespace of its own, waits until the wire is laid (a line on standard
/// input), then serves port 80 there.
///
/// # Errors
/// The system's own.
pub(super) fn upstream() -> io::Result<()> {
    sys::enter_new_namespaces(UnshareFlags::NEWNET)?;
    println!("{IN_NAMESPACE}");
    io::stdin().lock().read_line(&mut String::new())?;
    let has_v6 = network::bring_up(UPSTREAM)?;
    let mut listeners = vec![TcpListener::bind((UPSTREAM.v4, PORT))?];
    if has_v6 {
        listeners.push(TcpListener::bind((UPSTREAM.v6, PORT))?);
    }
    network::await_carrier(UPSTREAM)?;
    println!(
        "{}",
        if has_v6 {
            LISTENING
        } else {
            LISTENING_WITHOUT_V6
        }
    );
    accept_all(&listeners, tell_connection);
    Ok(())
}

/// Serves the proxy's port in place of the proxy, as some left-over server would.
///
/// # Errors
/// The system's own.
pub(super) fn stranger(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    println!("{LISTENING}");
    accept_all(&[listener], |_| (404, "no such page\n".into()));
    Ok(())
}

/// Where a request came in: what the upstream answers with, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Arrival {
    /// Counts from 1, over all listeners.
    pub(super) connection: u64,
    /// Counts from 1 on its connection.
    pub(super) request: u64,
    pub(super) from: SocketAddr,
}

type Answer = fn(&Arrival) -> (u16, String);

fn tell_connection(arrival: &Arrival) -> (u16, String) {
    (200, serde_json::json!(arrival).to_string())
}

fn accept_all(listeners: &[TcpListener], answer: Answer) {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(move || {
                for stream in listener.incoming().flatten() {
                    let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed) + 1;
                    // A caller that breaks off is that caller's affair.
                    thread::spawn(move || serve_connection(&stream, connection, answer));
                }
            });
        }
    });
}

fn serve_connection(stream: &TcpStream, connection: u64, answer: Answer) -> io::Result<()> {
    let from = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    for request in 1.. {
        if !read_head(&mut reader)? {
            break;
        }
        let (status, body) = answer(&Arrival {
            connection,
            request,
            from,
        });
        let reason = if status == 200 { "OK" } else { "Not Found" };
        let length = body.len();
        let response =
            format!("HTTP/1.1 {status} {reason}\r\nContent-Length: {length}\r\n\r\n{body}");
        (&mut &*stream).write_all(response.as_bytes())?;
    }
    Ok(())
}

/// Reads up to the empty line that ends a request without a body; false at the end of the stream.
fn read_head(reader: &mut impl BufRead) -> io::Result<bool> {
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if line == "\r\n" {
            return Ok(true);
        }
    }
}
