//! Both directions of a tunnel in one task, with one timer, until both have closed or one side is
//! gone.
//!
//! What one side does, the other sees: bytes, the end of a direction (half-close), a reset. A reset
//! overtakes bytes that the other side is slow to take, as it would have on a direct connection.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use tokio::{io::Interest, net::TcpStream};

use super::{
    direction::{Direction, End},
    patience::{Patience, TunnelLimits},
};
use crate::{accept::reset_when_dropped, buffer::Buffer, connection::Connection, failure::Failure};

/// What went through a tunnel and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes from the client that the upstream took, those handed in included.
    pub received: u64,
    /// Bytes from the upstream that the client took, those handed in included.
    pub sent: u64,
    /// None: both sides closed in an orderly way.
    pub failure: Option<Failure>,
}

/// How much went through a tunnel so far.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) received: Cell<u64>,
    pub(super) sent: Cell<u64>,
}

/// Relays until both directions have closed, one side is reset, or nothing moves for too long.
/// `to_upstream` and `to_client` go first. After a failure both sockets send a reset when the
/// caller drops them.
pub async fn relay(
    connection: &Connection,
    client: &TcpStream,
    upstream: &TcpStream,
    to_upstream: Buffer,
    to_client: Buffer,
    limits: TunnelLimits,
) -> Relayed {
    let traffic = Traffic::default();
    let ended = relay_counted(
        connection,
        client,
        upstream,
        to_upstream,
        to_client,
        limits,
        &traffic,
    )
    .await;
    if ended.is_err() {
        reset_when_dropped(client);
        reset_when_dropped(upstream);
    }
    Relayed {
        received: traffic.received.get(),
        sent: traffic.sent.get(),
        failure: ended.err(),
    }
}

/// [`relay`], whose progress can be read from outside at any time, and which leaves it to the
/// caller to carry a reset over.
pub(super) async fn relay_counted(
    connection: &Connection,
    client: &TcpStream,
    upstream: &TcpStream,
    to_upstream: Buffer,
    to_client: Buffer,
    limits: TunnelLimits,
    traffic: &Traffic,
) -> Result<(), Failure> {
    let worker = &*connection.worker;
    let mut up = Direction::new(worker, client, upstream, to_upstream, &traffic.received);
    let mut down = Direction::new(worker, upstream, client, to_client, &traffic.sent);
    let mut client_reset = pin!(client.ready(Interest::ERROR));
    let mut upstream_reset = pin!(upstream.ready(Interest::ERROR));
    let mut patience = Patience::new(limits);

    poll_fn(|cx| {
        up.poll(cx, &mut down);
        down.poll(cx, &mut up);
        if up.is_deaf() && client_reset.as_mut().poll(cx).is_ready() {
            up.source_failed(&mut down);
        }
        if down.is_deaf() && upstream_reset.as_mut().poll(cx).is_ready() {
            down.source_failed(&mut up);
        }
        match (up.end(), down.end()) {
            (Some(End::SourceLost), _) => Poll::Ready(Err(Failure::ClientClosed)),
            (_, Some(End::SourceLost)) => Poll::Ready(Err(upstream_failure(traffic))),
            // A side that closed in an orderly way and then takes no more has simply closed.
            (Some(_), Some(_)) => Poll::Ready(Ok(())),
            (up, down) => {
                let is_half_closed = up.is_some() || down.is_some();
                let moved = traffic.received.get() + traffic.sent.get();
                patience.poll_run_out(cx, moved, is_half_closed).map(Err)
            }
        }
    })
    .await
}

fn upstream_failure(traffic: &Traffic) -> Failure {
    if traffic.sent.get() == 0 {
        Failure::UpstreamClosed
    } else {
        Failure::UpstreamIncomplete
    }
}
