//! Forwarding HTTP/2, by prior knowledge, on the h2 crate.
//!
//! ```text
//! client ── Wire ── h2 server ─┬─ exchange ─┬─ h2 client ── Wire ── destination
//!                 (this file)  └─ exchange ─┘   (session)
//! ```
//!
//! A task per client connection, one per stream, and one per connection to a destination. Each stream
//! goes where its route leads, and gets a place on one of its client's sessions with that peer
//! ([`sessions`]), which come from the worker's [`pool`].
//!
//! h2 keeps connection matters (SETTINGS, PING, PRIORITY, header compression, server push) to each
//! side; requests, responses, interim responses, trailers and resets go through.

mod account;
mod admission;
mod answer;
mod asking;
mod body;
mod edit;
mod exchange;
mod hedge;
mod held;
mod mirror;
mod peers;
mod pool;
mod relay;
mod request;
mod routing;
mod session;
mod sessions;
mod settings;
#[cfg(test)]
mod tests;
mod upload;
mod window;
mod wire;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use h2::server;
use tokio::{net::TcpStream, task};

use self::{peers::Peers, wire::Wire};
use crate::{connection::Connection, detect::First, worker::Worker};

pub use pool::Pool;

/// Serves an HTTP/2 client to its end.
pub async fn serve(connection: Connection, client: TcpStream, first: First) {
    let worker = connection.worker.clone();
    let wire = Wire::client(client, first.client_bytes, &worker);
    let peers = Peers::new(connection);
    if let Some(dialled) = first.dialled {
        peers.sessions(&dialled.hop).connect(Some(dialled.upstream));
    }
    if let Some(client) = handshake(&worker, &wire, peers.client.offers_connect()).await {
        serve_streams(&worker, client, wire, &peers).await;
    }
    peers.client.end().await;
}

/// Waits for the rest of the preface, as long as for a request head.
async fn handshake(
    worker: &Worker,
    wire: &Wire,
    offers_connect: bool,
) -> Option<server::Connection<Wire, Bytes>> {
    let settings = worker.settings();
    let mut handshake =
        pin!(settings::server(&settings.limits, offers_connect).handshake(wire.clone()));
    let shaken = poll_fn(|cx| {
        wire.begin_turn();
        let shaken = handshake.as_mut().poll(cx);
        wire.poll_send(cx);
        shaken
    });
    let limit = settings.timeouts.request_head.0;
    tokio::time::timeout(limit, shaken).await.ok()?.ok()
}

/// Serves the client's streams until its connection ends.
async fn serve_streams(
    worker: &Worker,
    mut client: server::Connection<Wire, Bytes>,
    wire: Wire,
    peers: &Rc<Peers>,
) {
    let mut drain = pin!(worker.drain.started());
    let mut is_draining = false;
    let mut offers_connect = peers.client.offers_connect();
    let ended = poll_fn(|cx| {
        wire.begin_turn();
        if !is_draining && drain.as_mut().poll(cx).is_ready() {
            is_draining = true;
            client.graceful_shutdown();
        }
        if !offers_connect && peers.client.offers_connect() {
            // Refused only while other settings of ours are not acknowledged; then the next turn.
            offers_connect = client.enable_connect_protocol().is_ok();
        }
        if let Some(size) = peers.client.window.adjust(cx) {
            client.set_target_window_size(size);
        }
        loop {
            match client.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, response)))) => {
                    let running = peers.begin_exchange();
                    task::spawn_local(exchange::run(running, request, response));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    wire.poll_send(cx);
                    return Poll::Pending;
                }
            }
        }
    });
    if let Err(error) = ended.await {
        let client = peers.client.connection.client;
        tracing::debug!(%client, %error, "HTTP/2 client connection failed");
    }
}
