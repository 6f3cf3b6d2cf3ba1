//! What a connection speaks, from its first bytes, which are read and carried on.
//!
//! Whoever speaks first decides. A client that says nothing for a moment may be waiting for the
//! server's greeting, so its destination is dialled, and from then on both are listened to; a
//! destination that spoke first not long ago is dialled at once. Bytes that stop before they tell
//! what they are belong to a protocol that we do not know. Nothing is ever held back for longer
//! than that.
//!
//! What cannot be hidden: the proxy accepts before it dials, so a client that connects and closes
//! at once, to see whether anybody listens, always finds somebody. Its destination sees what it
//! would have seen without us, a connection that says nothing, and a client that waits for as
//! little as the quiet time learns of a refusal by a reset.

pub mod classify;
mod client_hello;
#[cfg(test)]
mod tests;

use std::{
    cell::OnceCell,
    future::{Future, pending},
    io,
    pin::{Pin, pin},
    time::Duration,
};

use outrigger_config::Timeouts;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};

use self::{
    classify::{Verdict, classify},
    client_hello::client_hello,
};
use crate::{
    buffer::{Buffer, BufferPool},
    connection::Connection,
    deadline::after,
    dispatch::{Dialled, Tried, Way},
    failure::Failure,
    route::Routed,
};

pub use self::client_hello::ClientHello;

/// How long a request line may stop half way before it counts as none. A process out of its CPU
/// quota may be stopped between two writes for most of a scheduler period, 100 ms by default.
const PATIENCE: Duration = Duration::from_millis(100);

/// What the client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    Http1,
    Http2,
    /// A ClientHello, which is known if all of it came at once, or a route asks for it.
    Tls(ClientHello),
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
    pub dialled: Option<Dialled>,
    /// For which route that was.
    pub routed: Option<Routed>,
}

/// Waits for the first bytes and tells what they are.
///
/// # Errors
/// What ended the connection before it could be told.
pub async fn first_bytes(connection: &Connection, client: &TcpStream) -> Result<First, Failure> {
    let Connection {
        worker,
        destination,
        accepted,
        ..
    } = connection;
    let settings = worker.settings();
    let Timeouts {
        quiet, tunnel_idle, ..
    } = settings.timeouts;
    let max_bytes = settings.limits.max_header_bytes;

    let begun = Instant::now();
    let mut client_bytes = Buffer::default();
    let mut upstream_bytes = Buffer::default();
    // Decided when it is first dialled, and kept: what has been greeted by one cluster must not be
    // sent to another.
    let routed = OnceCell::new();
    let dial = || {
        let routed = routed.get_or_init(|| connection.route(None));
        // Where a route answers HTTP itself, HTTP is waited for.
        (!routed.answers_itself()).then(|| Box::pin(dial(connection, routed, client)))
    };
    let mut dialling = destination.speaks_first(*accepted).then(dial).flatten();
    let mut upstream: Option<Dialled> = None;
    let mut refusal: Option<Failure> = None;
    let mut half_said: Option<bool> = None;
    let mut is_hello_under_way = false;
    let mut is_silent_for_long = false;
    // When it ends, the next thing is tried.
    let mut silence = pin!(sleep_until(after(
        begun,
        match dialling {
            None => quiet.0,
            Some(_) => tunnel_idle.0,
        }
    )));

    let detected = loop {
        tokio::select! {
            biased;
            heard = read(client, &worker.buffers, &mut client_bytes) => {
                if heard.map_err(|_| Failure::ClientClosed)? == 0 {
                    // Perhaps half a close, and the other half is yet to speak.
                    break Detected::Opaque;
                }
                let bytes = client_bytes.filled();
                match classify(bytes) {
                    Verdict::Http1 => break Detected::Http1,
                    Verdict::Http2 => break Detected::Http2,
                    Verdict::Tls => {
                        let asks = worker.asks_tls();
                        let hello = client_hello(bytes, asks);
                        if hello.is_some() || bytes.len() >= max_bytes || !asks {
                            break Detected::Tls(hello.unwrap_or_default());
                        }
                        if !is_hello_under_way {
                            is_hello_under_way = true;
                            let limit = settings.timeouts.request_head.0;
                            silence.as_mut().reset(after(Instant::now(), limit));
                        }
                        if client_bytes.space().is_empty() {
                            client_bytes.grow(max_bytes);
                        }
                    }
                    Verdict::Opaque => break Detected::Opaque,
                    Verdict::Undecided { .. } if bytes.len() >= max_bytes => break Detected::Opaque,
                    Verdict::Undecided { looks_like_http } => {
                        if half_said != Some(looks_like_http) {
                            half_said = Some(looks_like_http);
                            let pause = if looks_like_http { PATIENCE.max(quiet.0) } else { quiet.0 };
                            silence.as_mut().reset(after(Instant::now(), pause));
                        }
                        if client_bytes.space().is_empty() {
                            client_bytes.grow(max_bytes);
                        }
                    }
                }
            }
            heard = heard_from(&mut upstream, &worker.buffers, &mut upstream_bytes) => {
                if heard.map_err(|_| Failure::UpstreamClosed)? > 0 {
                    destination.note_first_speaker(true, std::time::Instant::now());
                }
                break Detected::Opaque;
            }
            dialled = finished(&mut dialling) => {
                dialling = None;
                match dialled {
                    Ok(dialled) => upstream = Some(dialled),
                    Err(failure) => {
                        // A client about to speak HTTP can be told in its own language, and where there
                        // are routes what it says may lead to somebody who answers.
                        refusal = Some(failure);
                        if half_said.is_none() {
                            let limit = match worker.has_own_routes() {
                                true => settings.timeouts.request_head.0,
                                false => quiet.0,
                            };
                            silence.as_mut().reset(after(begun, limit));
                        }
                    }
                }
            }
            () = silence.as_mut() => {
                if is_hello_under_way {
                    break Detected::Tls(ClientHello::default());
                }
                if half_said.is_some() {
                    break Detected::Opaque;
                }
                if let Some(failure) = refusal {
                    return Err(failure);
                }
                if dialling.is_some() || upstream.is_some() {
                    return Err(Failure::IdleTimeout);
                }
                if is_silent_for_long {
                    return Err(Failure::IdleTimeout);
                }
                is_silent_for_long = true;
                dialling = dial();
                silence.as_mut().reset(after(Instant::now(), tunnel_idle.0));
            }
        }
    };

    if upstream_bytes.is_empty() && !client_bytes.is_empty() {
        destination.note_first_speaker(false, *accepted);
    }
    if matches!(detected, Detected::Opaque | Detected::Tls(_))
        && let Some(dialling) = dialling
    {
        upstream = Some(dialling.await?);
    }
    Ok(First {
        detected,
        client_bytes,
        upstream_bytes,
        routed: upstream.is_some().then(|| routed.get().cloned()).flatten(),
        dialled: upstream,
    })
}

/// Dials where a connection goes of which nothing is known but its destination.
async fn dial(
    connection: &Connection,
    routed: &Routed,
    client: &TcpStream,
) -> Result<Dialled, Failure> {
    let worker = &connection.worker;
    connection.admit(routed, client).await?;
    routed.admit_opaque(&worker.rng, client).await?;
    let target = &routed.target;
    let key = target.key_of_source(connection.client.0.ip());
    let way = Way {
        worker,
        original: connection.original,
        target,
        key: &key,
    };
    way.connect(
        way.choose()?,
        client,
        &mut Tried::default(),
        &connection.failed,
    )
    .await
}

/// Reads once, with a buffer that is taken only when there is something to read.
async fn read(stream: &TcpStream, buffers: &BufferPool, buffer: &mut Buffer) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        if buffer.capacity() == 0 {
            *buffer = buffers.take();
        }
        match buffer.try_read_urgent_too(stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if buffer.is_empty() {
                    buffers.give(std::mem::take(buffer));
                }
            }
            read => return read,
        }
    }
}

/// [`read`] from the upstream; never, while there is none.
async fn heard_from(
    upstream: &mut Option<Dialled>,
    buffers: &BufferPool,
    buffer: &mut Buffer,
) -> io::Result<usize> {
    match upstream {
        Some(dialled) => read(&dialled.upstream.stream, buffers, buffer).await,
        None => pending().await,
    }
}

/// The end of a dial; never, while there is none.
async fn finished<T>(dialling: &mut Option<Pin<Box<impl Future<Output = T>>>>) -> T {
    match dialling {
        Some(dialling) => dialling.await,
        None => pending().await,
    }
}
