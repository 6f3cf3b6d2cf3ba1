//! HTTP/1.x, relayed by our own relay and not an HTTP library's: a transparent proxy forwards what
//! was said. A head is its bytes, where they lie, and a list of edits; a body is relayed by its
//! framing.
//!
//! A client's connection is a loop: the next [`request`] → its route and endpoint → an upstream connection → an [`attempt`]
//! ([`upload`] and [`download`] together) → the record → what follows. Only `Connection: close`,
//! `keep-alive` and `Keep-Alive` belong to each side; all else is forwarded verbatim.
//!
//! Failure edges: a request that could be read in two ways is refused (400, 408, 431); one that no
//! upstream takes gets 502, 503 or 504; an upstream lost within its answer, and a client lost at
//! any time, are told to the other side by a reset.

mod admission;
mod again;
mod attempt;
mod body;
pub mod chunked;
mod close;
mod download;
mod edit;
mod exchange;
pub mod head;
mod hedge;
mod io;
mod keep_alive;
mod mirror;
mod peers;
mod progress;
mod reach;
mod record;
pub mod request;
pub mod response;
mod routing;
mod trace;
mod tunnel;
mod upload;

use std::{
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    task::Poll,
};

use tokio::net::TcpStream;

use self::{peers::Peers, record::Outcome, request::RequestHead};
use crate::{
    accept::reset_when_dropped,
    buffer::Buffer,
    configuration::Pinned,
    connection::Connection,
    detect::First,
    dispatch::{Dialled, Target},
    failure::Failure,
    forward::deadlines::Timer,
    observe::trace::Trace,
    upstream::{Lease, poll_disturbed},
};

/// A client's connection, and what it has to do with upstream ones.
struct Session {
    connection: Connection,
    /// As they were when the request under way began.
    settings: Pinned,
    client: TcpStream,
    /// What has arrived from the client, from the current request on. Empty and without capacity
    /// while the client is idle.
    input: Buffer,
    peers: Peers,
    /// Dialled while it was not known who would speak first.
    dialled: Option<Dialled>,
    /// Authenticated by this client's NTLM or Negotiate, and for nobody else.
    pinned: Option<OwnedLease>,
    /// A request begins the input and has not been recorded yet.
    is_under_way: bool,
    /// Of the request under way, if requests are traced.
    trace: Option<Trace>,
    /// Of the last request that had time limits.
    timer: Option<Timer>,
}

/// It stays with the client for as long as its requests have the same target, whatever a balancer
/// would choose.
struct OwnedLease {
    lease: Lease,
    target: Target,
}

/// What follows a request on the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Request,
    /// Nothing more is expected from the client.
    Close,
    /// We end it between two requests, and one may be on its way.
    Part,
    /// The client may still be sending, and must be able to read what it was sent.
    Linger,
    Reset,
}

/// Serves an HTTP/1 connection to its end.
pub async fn serve(connection: Connection, client: TcpStream, first: First) {
    let worker = connection.worker.clone();
    let mut session = Session {
        peers: Peers::new(&worker.http1_pool, connection.original.0),
        settings: worker.settings(),
        connection,
        client,
        input: first.client_bytes,
        dialled: first.dialled,
        pinned: None,
        is_under_way: false,
        trace: None,
        timer: None,
    };
    let mut drain = pin!(worker.drain.started());
    let next = loop {
        let next = match session.next_head(drain.as_mut()).await {
            Ok(head) => {
                session.is_under_way = true;
                session.exchange(head).await
            }
            Err(Ended::Quietly) => Next::Close,
            Err(Ended::ByUs) => Next::Part,
            Err(Ended::With(failure)) => {
                let outcome = Outcome::begin(session.input.len());
                session.refuse(None, failure, outcome).await
            }
        };
        if next != Next::Request {
            break next;
        }
    };
    worker.buffers.give(mem::take(&mut session.input));
    match next {
        Next::Request | Next::Close => {}
        Next::Part => Box::pin(close::part(&worker, &session.client)).await,
        Next::Linger => Box::pin(close::linger(&worker, &session.client)).await,
        Next::Reset => reset_when_dropped(&session.client),
    }
}

/// The end of the worker cuts what is under way: no client may take the part of an answer that it
/// got for the whole.
impl Drop for Session {
    fn drop(&mut self) {
        if self.is_under_way {
            reset_when_dropped(&self.client);
            self.record_cut();
        }
        self.peers.forget(&self.connection.worker.http1_pool);
    }
}

/// Why there is no next request.
enum Ended {
    /// Between two requests.
    Quietly,
    /// The same, and not by the client.
    ByUs,
    With(Failure),
}

impl Session {
    /// The next request's head, at the start of the input.
    async fn next_head(
        &mut self,
        mut drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<RequestHead, Ended> {
        skip_empty_lines(&mut self.input);
        while self.input.is_empty() {
            let buffers = &self.connection.worker.buffers;
            buffers.give(mem::take(&mut self.input));
            self.idle(drain.as_mut()).await?;
            skip_empty_lines(&mut self.input);
        }
        self.settings = self.connection.worker.settings();
        match request::parse(self.input.filled(), &self.settings.limits) {
            Ok(Some(head)) => Ok(head),
            Ok(None) => Box::pin(self.rest_of_head()).await,
            Err(failure) => Err(Ended::With(failure)),
        }
    }

    /// Waits, holding no buffer, for the client to send something, and reads it.
    async fn idle(&mut self, mut drain: Pin<&mut impl Future<Output = ()>>) -> Result<(), Ended> {
        let Self { client, pinned, .. } = self;
        let readable = poll_fn(|cx| {
            if client.poll_read_ready(cx).is_ready() {
                return Poll::Ready(true);
            }
            let is_over = drain.as_mut().poll(cx).is_ready()
                || pinned
                    .as_ref()
                    .is_some_and(|p| poll_disturbed(cx, &p.lease.upstream.stream).is_ready());
            if is_over {
                Poll::Ready(false)
            } else {
                Poll::Pending
            }
        });
        if !readable.await {
            return Err(Ended::ByUs);
        }
        self.input = self.connection.worker.buffers.take();
        match io::read(&self.client, &mut self.input).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Ended::Quietly),
        }
    }

    /// Reads a head that did not arrive at once.
    async fn rest_of_head(&mut self) -> Result<RequestHead, Ended> {
        let settings = self.settings.clone();
        let limits = &settings.limits;
        let head = async {
            let mut seen = self.input.len();
            loop {
                if self.input.space().is_empty() {
                    self.input.grow(limits.max_header_bytes);
                }
                match io::read(&self.client, &mut self.input).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(Ended::With(Failure::ClientClosed)),
                }
                if skip_empty_lines(&mut self.input) {
                    seen = 0;
                }
                let arrived = self.input.filled();
                let is_telling = head::may_be_whole(arrived, seen);
                if is_telling || arrived.len() >= limits.max_header_bytes {
                    match request::parse(arrived, limits) {
                        Ok(Some(head)) => return Ok(head),
                        Ok(None) => {}
                        Err(failure) => return Err(Ended::With(failure)),
                    }
                }
                seen = self.input.len();
            }
        };
        match tokio::time::timeout(settings.timeouts.request_head.0, head).await {
            Ok(head) => head,
            Err(_) if self.input.is_empty() => Err(Ended::Quietly),
            Err(_) => Err(Ended::With(Failure::HeadTimeout)),
        }
    }
}

/// Drops empty lines before a request: old clients send one after a body (RFC 9112, section 2.2).
/// Tells whether there was any.
fn skip_empty_lines(input: &mut Buffer) -> bool {
    let before = input.len();
    while input.filled().starts_with(b"\r\n") {
        input.consume(2);
    }
    input.len() < before
}

#[cfg(test)]
mod tests;
