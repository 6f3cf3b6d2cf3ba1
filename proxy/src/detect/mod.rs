//! What a connection speaks, from its first bytes, which are carried on and never peeked at.

use crate::{buffer::Buffer, connection::Connection, upstream::Upstream};
use tokio::net::TcpStream;

/// What the client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    Http1,
    Http2,
    Tls { server_name: Option<Box<str>> },
    Opaque,
}

/// What is known once detection is over.
#[derive(Debug)]
pub struct First {
    pub detected: Detected,
    /// What the client has sent so far; to be forwarded before anything else.
    pub client_bytes: Buffer,
    /// The upstream connection, if it had to be dialled to find out who speaks first.
    pub upstream: Option<Upstream>,
}

/// Waits for the first bytes and tells what they are; none when the connection is over already.
pub async fn first_bytes(connection: &Connection, _client: &TcpStream) -> Option<First> {
    Some(First {
        detected: Detected::Opaque,
        client_bytes: connection.worker.buffers.take(),
        upstream: None,
    })
}
