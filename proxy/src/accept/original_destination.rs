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
    if shared.own.contains(client.0, original) {
        return Err(Failure::Loop);
    }
    Ok(OriginalDst(original))
}

impl Shared {
    /// Whether dialling `address` would reach this very process: one of its listeners by name, or
    /// its port on any address of this host.
    pub(crate) fn is_own_listener(&self, address: SocketAddr) -> bool {
        self.listeners.iter().any(|l| l.0 == address)
            || (self.listeners.iter().any(|l| l.0.port() == address.port()) && is_local(address))
    }
}

/// Only an address of this host can be bound. Asked only about our own port, so its cost does not
/// matter.
fn is_local(address: SocketAddr) -> bool {
    UdpSocket::bind((address.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use outrigger_config::Settings;

    use super::*;
    use crate::{
        address::ListenerAddr,
        testing::{pair, run, shared},
    };

    fn listening_on(address: &str) -> Shared {
        let mut shared = std::sync::Arc::into_inner(shared(Settings::default())).expect("unshared");
        shared
            .listeners
            .push(ListenerAddr(address.parse().expect("an address")));
        shared
    }

    #[test]
    fn a_connection_that_nobody_redirected_is_refused() {
        run(async {
            let (stream, app) = pair().await;
            let client = ClientAddr(app.local_addr().expect("bound"));
            // Where connection tracking is at work the kernel answers with the address dialled, our
            // own; where it is not, with an error.
            let local = stream.local_addr().expect("bound").to_string();
            let found = original_destination(&listening_on(&local), &stream, client);
            assert_eq!(found, Err(Failure::NotRedirected));
        });
    }

    #[test]
    fn our_port_is_ours_on_every_address_of_this_host_and_on_no_other() {
        let shared = listening_on("127.0.0.1:15001");
        let is_own = |address: &str| shared.is_own_listener(address.parse().expect("an address"));
        assert!(is_own("127.0.0.1:15001"));
        assert!(is_own("127.0.0.9:15001"));
        assert!(!is_own("127.0.0.1:15002"));
        assert!(!is_own("203.0.113.7:15001"));
    }
}
