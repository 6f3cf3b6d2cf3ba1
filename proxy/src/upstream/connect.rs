//! Dialling upstream.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{io::Interest, net::TcpStream};

use crate::{cluster::Permit, failure::Failure, shared::Shared};

/// Keepalive probes start after this idle time: early enough that no firewall on the way has
/// forgotten the connection (the shortest common limit is 5 minutes).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A connection to a destination, known as ours for as long as it lives.
#[derive(Debug)]
pub struct Upstream {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    /// Its place among the connections of the cluster that it was made for.
    pub permit: Option<Permit>,
    registration: Registration,
}

impl Upstream {
    /// Our end.
    pub fn local(&self) -> SocketAddr {
        self.registration.local
    }
}

/// Dials `peer`, waiting as long as a direct connection would have waited unless the settings say
/// otherwise.
///
/// # Errors
/// The kind of failure; the system's own error is logged.
pub async fn connect(shared: &Arc<Shared>, peer: SocketAddr) -> Result<Upstream, Failure> {
    let limit = shared.configuration.settings().timeouts.connect;
    connect_within(shared, peer, limit.map(|l| l.0)).await
}

/// [`connect`] with a limit of its own, or the settings', on behalf of `client` if there is one:
/// given up when that is reset meanwhile.
///
/// # Errors
/// As [`connect`]; `ClientClosed` when given up.
pub(super) async fn connect_for(
    shared: &Arc<Shared>,
    peer: SocketAddr,
    limit: Option<Duration>,
    client: Option<&TcpStream>,
) -> Result<Upstream, Failure> {
    let connecting = async {
        match limit {
            Some(_) => connect_within(shared, peer, limit).await,
            None => connect(shared, peer).await,
        }
    };
    let Some(client) = client else {
        return connecting.await;
    };
    tokio::select! {
        biased;
        connected = connecting => connected,
        _ = client.ready(Interest::ERROR) => Err(Failure::ClientClosed),
    }
}

async fn connect_within(
    shared: &Arc<Shared>,
    peer: SocketAddr,
    limit: Option<Duration>,
) -> Result<Upstream, Failure> {
    let dial = dial(shared, peer);
    match limit {
        Some(limit) => tokio::time::timeout(limit, dial)
            .await
            .unwrap_or(Err(Failure::ConnectTimeout)),
        None => dial.await,
    }
}

async fn dial(shared: &Arc<Shared>, peer: SocketAddr) -> Result<Upstream, Failure> {
    let failed = |error: io::Error| {
        tracing::debug!(%peer, %error, "connect failed");
        Failure::of_connect(&error)
    };
    let socket = open(shared, peer).map_err(|error| {
        tracing::error!(%peer, %error, "cannot make a socket to dial with");
        match Failure::of_connect(&error) {
            Failure::OutOfResources => Failure::OutOfResources,
            _ => Failure::Internal,
        }
    })?;
    match socket.connect(&peer.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(failed(error)),
        _ => {}
    }
    // The address is ours before the answer has come: were the dial redirected to ourselves, it
    // would be accepted before it counts as connected here.
    let registration = Registration::new(shared, &socket, peer).map_err(failed)?;
    let stream = TcpStream::from_std(socket.into()).map_err(failed)?;
    stream.writable().await.map_err(failed)?;
    match stream.take_error() {
        Ok(None) => Ok(Upstream {
            stream,
            peer,
            permit: None,
            registration,
        }),
        Ok(Some(error)) | Err(error) => Err(failed(error)),
    }
}

fn open(shared: &Shared, peer: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(peer),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE))?;
    if let Some(mark) = shared.configuration.settings().capture.proxy_mark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

/// A connection listed as our own until dropped.
#[derive(Debug)]
struct Registration {
    local: SocketAddr,
    peer: SocketAddr,
    shared: Arc<Shared>,
}

impl Registration {
    fn new(shared: &Arc<Shared>, socket: &Socket, peer: SocketAddr) -> io::Result<Self> {
        let local = socket
            .local_addr()?
            .as_socket()
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        shared.own.insert(local, peer);
        Ok(Self {
            local,
            peer,
            shared: shared.clone(),
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.own.remove(self.local, self.peer);
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::{Settings, Span};

    use super::*;
    use crate::testing::{black_hole, closed_port, listener, pair, run, shared};

    #[test]
    fn a_connection_is_known_as_ours_before_it_can_be_accepted_and_until_it_closes() {
        run(async {
            let (listener, address) = listener().await;
            let shared = shared(Settings::default());
            let dial = connect(&shared, address);
            let accepted = async {
                let (stream, from) = listener.accept().await.unwrap();
                assert!(shared.own.contains(from, address));
                (stream, from)
            };
            let ((_stream, from), upstream) = tokio::join!(accepted, dial);
            drop(upstream.unwrap());
            assert!(!shared.own.contains(from, address));
        });
    }

    #[test]
    fn a_refused_dial_leaves_nothing_behind() {
        run(async {
            let shared = shared(Settings::default());
            let refused = connect(&shared, closed_port().await).await;
            assert_eq!(refused.unwrap_err(), Failure::ConnectRefused);
            assert!(shared.own.is_empty());
        });
    }

    #[test]
    fn a_dial_given_up_leaves_nothing_behind() {
        run(async {
            let mut settings = Settings::default();
            settings.timeouts.connect = Some(Span::from_millis(20));
            let shared = shared(settings);
            let (address, _held) = black_hole().await;
            let timed_out = connect(&shared, address).await;
            assert_eq!(timed_out.unwrap_err(), Failure::ConnectTimeout);
            assert!(shared.own.is_empty());
        });
    }

    #[test]
    fn a_dial_ends_when_its_client_is_reset() {
        run(async {
            let shared = shared(Settings::default());
            let (address, _held) = black_hole().await;
            let (client, app) = pair().await;
            crate::accept::reset(app);
            let given_up = connect_for(&shared, address, None, Some(&client)).await;
            assert_eq!(given_up.unwrap_err(), Failure::ClientClosed);
        });
    }

    #[test]
    fn running_out_is_our_fault_and_not_the_destinations() {
        for code in [
            libc::EMFILE,
            libc::ENFILE,
            libc::EADDRNOTAVAIL,
            libc::ENOBUFS,
        ] {
            let failure = Failure::of_connect(&io::Error::from_raw_os_error(code));
            assert_eq!(failure, Failure::OutOfResources, "{code}");
        }
    }
}
