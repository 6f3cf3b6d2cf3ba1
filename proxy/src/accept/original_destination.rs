//! Where a captured connection was going, from the kernel and never by guess.

use std::net::{SocketAddr, UdpSocket};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::{
    address::{ClientAddr, OriginalDst},
    failure::Failure,
    shared::Shared,
};

/// The original destination of `stream`.
///
/// # Errors
/// `NotRedirected` for a connection that was dialled to us, `Loop` for one of our own.
pub fn original_destination(
    shared: &Shared,
    stream: &TcpStream,
    client: ClientAddr,
) -> Result<OriginalDst, Failure> {
    let socket = SockRef::from(stream);
    let original = match client.0 {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    }
    .ok()
    .and_then(|address| address.as_socket())
    .ok_or(Failure::NotRedirected)?;
    if shared.is_own_listener(original) {
        return Err(Failure::NotRedirected);
    }
    if shared.own.contains(client.0) {
        return Err(Failure::Loop);
    }
    Ok(OriginalDst(original))
}

impl Shared {
    /// Whether dialling `address` would reach this very process: one of its listeners by name, or
    /// its port on any address of this host.
    fn is_own_listener(&self, address: SocketAddr) -> bool {
        self.listeners.iter().any(|l| l.0 == address)
            || (self.listeners.iter().any(|l| l.0.port() == address.port()) && is_local(address))
    }
}

/// Only an address of this host can be bound. Asked only about our own port, so its cost does not
/// matter.
fn is_local(address: SocketAddr) -> bool {
    UdpSocket::bind((address.ip(), 0)).is_ok()
}
