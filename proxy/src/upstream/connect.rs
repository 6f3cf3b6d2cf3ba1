//! Dialling upstream.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream},
};

use crate::{failure::Failure, shared::Shared};

/// Keepalive probes start after this idle time: early enough that no firewall on the way has
/// forgotten the connection (the shortest common limit is 5 minutes).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A connection to a destination, known as ours for as long as it lives.
#[derive(Debug)]
pub struct Upstream {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    local: SocketAddr,
    shared: Arc<Shared>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.own.remove(self.local);
    }
}

/// Dials `peer`, waiting as long as a direct connection would have waited unless the settings say
/// otherwise.
///
/// # Errors
/// The kind of failure, and the system's own error where there is one.
pub async fn connect(shared: &Arc<Shared>, peer: SocketAddr) -> Result<Upstream, Failure> {
    let dial = dial(shared, peer);
    let stream = match shared.settings.timeouts.connect {
        Some(limit) => tokio::time::timeout(limit.0, dial)
            .await
            .map_err(|_| Failure::ConnectTimeout)?,
        None => dial.await,
    }
    .map_err(|error| {
        tracing::debug!(%peer, %error, "connect failed");
        Failure::of_connect(&error)
    })?;
    let local = stream.local_addr().map_err(|_| Failure::UpstreamClosed)?;
    shared.own.insert(local);
    Ok(Upstream {
        stream,
        peer,
        local,
        shared: shared.clone(),
    })
}

/// [`connect`] on behalf of `client`, given up when the client is reset meanwhile.
///
/// # Errors
/// As [`connect`]; `ClientClosed` when given up.
pub async fn connect_for(
    shared: &Arc<Shared>,
    peer: SocketAddr,
    client: &TcpStream,
) -> Result<Upstream, Failure> {
    tokio::select! {
        connected = connect(shared, peer) => connected,
        _ = client.ready(Interest::ERROR) => Err(Failure::ClientClosed),
    }
}

async fn dial(shared: &Shared, peer: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(peer),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE))?;
    if let Some(mark) = shared.settings.capture.proxy_mark {
        socket.set_mark(mark)?;
    }
    TcpSocket::from_std_stream(socket.into())
        .connect(peer)
        .await
}
