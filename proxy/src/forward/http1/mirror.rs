//! Copies of an HTTP/1 request on their way: sent by tasks of their own, for nobody waits for them.
//!
//! Failure edges: a copy that cannot be sent, or whose answer takes too long, is lost and counted.

use std::{io, rc::Rc, time::Instant};

use outrigger_config::Limits;
use tokio::net::TcpStream;

use super::{
    body::Body,
    edit,
    io::{read, write_some},
    request::{Method, RequestHead},
    response::{self, Response},
};
use crate::{
    buffer::Buffer,
    cluster::Outcome,
    connection::Connection,
    dispatch::{Tried, Way},
    failure::Failure,
    route::{Copy, shadow},
    upstream::Lease,
    worker::Worker,
};

/// Sends a copy of the request that is whole in `input`.
pub(super) fn send(
    connection: &Connection,
    limits: Limits,
    copy: &Copy,
    head: &RequestHead,
    input: &[u8],
) {
    let body = input.len() - head.len;
    let Some(place) = copy.place(&connection.worker, body) else {
        return;
    };
    let mut head = head.clone();
    let mut request = Buffer::with_capacity(input.len());
    request.extend(input);
    if let Some(host) = head.host(request.filled()).filter(|_| copy.shadow_host) {
        let host = shadow(host);
        edit::set_host(&mut head, &host, &mut request);
    }
    let target = copy.target(connection.original.0);
    let key = target.key_of_source(connection.client.0.ip());
    let (worker, original) = (connection.worker.clone(), connection.original);
    place.spawn(async move {
        let way = Way {
            worker: &worker,
            original,
            target: &target,
            key: &key,
        };
        let sending = Sending {
            worker: &worker,
            limits,
            head: &head,
            request: request.filled(),
        };
        sending.run(way).await
    });
}

/// Whether a request can be copied at all: a tunnel cannot.
pub(super) fn can_be_copied(head: &RequestHead) -> bool {
    head.method != Method::Connect
}

struct Sending<'a> {
    worker: &'a Rc<Worker>,
    limits: Limits,
    head: &'a RequestHead,
    request: &'a [u8],
}

impl Sending<'_> {
    async fn run(&self, way: Way<'_>) -> Result<(), Failure> {
        let mut hop = way.choose()?;
        let pool = &self.worker.http1_pool;
        // One that must not be seen twice goes over no connection that might die under it.
        if self.head.is_idempotent()
            && let Some(lease) = pool.check_out(hop.peer, Instant::now())
            && let Ok(outcome) = self.exchange(lease).await
        {
            hop.report(outcome, Instant::now());
            return Ok(());
        }
        // Fresh, for an idle one may have been closed.
        let upstream = match hop.dial(self.worker, None).await {
            Ok(upstream) => upstream,
            Err(failure) => return hop.failed(failure, &mut Tried::default()).and(Err(failure)),
        };
        let lease = self.worker.http1_pool.lease(upstream);
        let outcome = self.exchange(lease).await;
        hop.report(
            outcome.as_ref().map_or(Outcome::LocalOriginFailure, |o| *o),
            Instant::now(),
        );
        outcome.map(|_| ()).map_err(|_| Failure::UpstreamClosed)
    }

    /// Sends the request and reads its answer to the end.
    async fn exchange(&self, mut lease: Lease) -> io::Result<Outcome> {
        let stream = &lease.upstream.stream;
        let mut sent = 0;
        while sent < self.request.len() {
            sent += write_some(stream, &self.request[sent..]).await?;
        }
        let mut buffer = self.worker.buffers.take();
        let answer = self.answer(stream, &mut buffer).await;
        let is_clean = buffer.is_empty();
        self.worker.buffers.give(buffer);
        let (status, keeps) = answer?;
        if let Some(head) = keeps.filter(|_| is_clean) {
            lease.note_answered(sent as u64, head.keeps_for);
            let idle = self.worker.http1_pool.destination(lease.upstream.peer);
            idle.check_in(self.worker, lease, Instant::now());
        }
        Ok(Outcome::of_status(status))
    }

    /// The status, and the head if the connection stays.
    async fn answer(
        &self,
        stream: &TcpStream,
        buffer: &mut Buffer,
    ) -> io::Result<(u16, Option<response::ResponseHead>)> {
        let head = loop {
            match response::parse(buffer.filled(), self.head, &self.limits) {
                Response::Head(head) if head.is_interim() => {
                    buffer.consume(head.len);
                    continue;
                }
                Response::Head(head) => break head,
                Response::Odd => return Err(io::ErrorKind::InvalidData.into()),
                Response::Partial => {}
            }
            if buffer.space().is_empty() {
                buffer.grow(self.limits.max_header_bytes);
            }
            if read(stream, buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        buffer.consume(head.len);
        let mut body = Body::new(head.framing, self.limits.max_header_bytes);
        loop {
            let taken = body.take(buffer.filled());
            buffer.consume(taken.map_err(|_| io::ErrorKind::InvalidData)?);
            if body.is_done() {
                break;
            }
            if read(stream, buffer).await? == 0 {
                break;
            }
        }
        let status = head.status;
        // One that is authenticated now, as the client, serves nobody else.
        let authenticates = self.head.authenticates_connection || head.authenticates_connection;
        let stays = body.is_done() && head.keeps_alive && !authenticates && status != 101;
        Ok((status, stays.then_some(head)))
    }
}
