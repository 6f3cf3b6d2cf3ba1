//! What a connection speaks, from its first bytes, which are carried on and never peeked at.

use crate::{buffer::Buffer, connection::Connection, failure::Failure, upstream::Upstream};
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
    /// What the upstream has said so far, if it spoke before its client; to be sent to the client
    /// before anything else.
    pub upstream_bytes: Buffer,
    /// The upstream connection, if it had to be dialled to find out who speaks first.
    pub upstream: Option<Upstream>,
}

/// Waits for the first bytes and tells what they are.
///
/// # Errors
/// What ended the connection before it said anything.
pub async fn first_bytes(connection: &Connection, _client: &TcpStream) -> Result<First, Failure> {
    Ok(First {
        detected: Detected::Opaque,
        client_bytes: connection.worker.buffers.take(),
        upstream_bytes: Buffer::default(),
        upstream: None,
    })
}
