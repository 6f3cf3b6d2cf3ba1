//! One request of a client, from its head to the record: which upstream connection carries it,
//! whether it may be sent again when that one turns out dead, and what follows for both sides.

use std::{io, mem, time::Instant};

use super::{
    Next, Session,
    attempt::{Attempt, AttemptEnd},
    body::Body,
    download::Answer,
    progress::Progress,
    record::Outcome,
    request::RequestHead,
};
use crate::{
    accept::reset_when_dropped,
    buffer::Buffer,
    failure::Failure,
    forward::opaque,
    upstream::{self, Lease},
};

/// The buffers of one request beside the input; without capacity until they are needed.
#[derive(Default)]
struct Buffers {
    overflow: Buffer,
    output: Buffer,
}

/// A request's body, as far as it is in the input.
struct Arrived {
    /// What is still to come.
    body: Body,
    count: usize,
}

impl Session {
    /// Forwards the request whose head begins the input, and its answer.
    pub(super) async fn exchange(&mut self, mut head: RequestHead) -> Next {
        let mut outcome = Outcome::begin(head.len);
        let mut arrived = match self.arrived(&head) {
            Ok(arrived) => arrived,
            Err(how) => {
                return self
                    .refuse(Some(&head), Failure::BadRequest(how), outcome)
                    .await;
            }
        };
        head.apply_edits(&mut self.input);
        let is_whole = arrived.body.is_done();
        let mut lease = match self.upstream_for(&head, is_whole, outcome.started).await {
            Ok(lease) => lease,
            Err(failure) => return self.refuse(Some(&head), failure, outcome).await,
        };
        let mut buffers = Buffers::default();
        loop {
            let progress = Progress::new(head.len + arrived.count);
            let end = self
                .attempt(&head, arrived.body, &lease, &mut buffers, &progress)
                .await;
            outcome.add(&lease, &progress);
            let ended = match end {
                AttemptEnd::Answered(answer) => {
                    // Read once for both: the clock costs more than the pool.
                    let now = *outcome.ended.insert(Instant::now());
                    Ok(self.answered(&head, lease, &answer, &buffers, &progress, now))
                }
                AttemptEnd::Tunnel => {
                    return Box::pin(self.tunnel(head, lease, buffers, &progress, outcome)).await;
                }
                AttemptEnd::NoAnswer(kind) if may_repeat(kind, &head, &lease, &progress) => {
                    lease = match self.dial().await {
                        Ok(lease) => lease,
                        Err(failure) => return self.refuse(Some(&head), failure, outcome).await,
                    };
                    arrived = match self.arrived(&head) {
                        Ok(arrived) => arrived,
                        Err(how) => {
                            return self
                                .refuse(Some(&head), Failure::BadRequest(how), outcome)
                                .await;
                        }
                    };
                    continue;
                }
                AttemptEnd::NoAnswer(kind) => no_answer(kind, &lease, &progress),
                AttemptEnd::Incomplete => Ok((Next::Reset, Some(Failure::UpstreamIncomplete))),
                AttemptEnd::ClientLost => {
                    reset_when_dropped(&lease.upstream.stream);
                    Ok((Next::Reset, Some(Failure::ClientClosed)))
                }
                AttemptEnd::Malformed(how) => {
                    reset_when_dropped(&lease.upstream.stream);
                    if progress.status.get().is_some() {
                        Ok((Next::Reset, Some(Failure::BadRequest(how))))
                    } else {
                        Err(Failure::BadRequest(how))
                    }
                }
            };
            let (next, failure) = match ended {
                Ok(ended) => ended,
                Err(failure) => return self.refuse(Some(&head), failure, outcome).await,
            };
            outcome.failure = failure;
            self.record(Some(&head), &outcome);
            self.advance(progress.in_input.get(), buffers);
            return next;
        }
    }

    /// An upstream connection that may carry the request.
    async fn upstream_for(
        &mut self,
        head: &RequestHead,
        is_whole: bool,
        now: Instant,
    ) -> Result<Lease, Failure> {
        if let Some(pinned) = self.pinned.take() {
            return Ok(pinned);
        }
        if let Some(dialled) = self.dialled.take() {
            return Ok(self.connection.worker.http1_pool.lease(dialled));
        }
        // A request that can be sent again may go over any idle connection, which might die under
        // it. Every other goes over the one that this client used last, whose death it would have
        // met without us too, or over a fresh one.
        let idle = if head.is_idempotent() && is_whole && !head.authenticates_connection {
            self.idle_upstreams.check_out(now)
        } else {
            (self.last_upstream).and_then(|id| self.idle_upstreams.check_out_id(id, now))
        };
        match idle {
            Some(lease) => Ok(lease),
            None => self.dial().await,
        }
    }

    async fn dial(&self) -> Result<Lease, Failure> {
        let worker = &self.connection.worker;
        let original = self.connection.original.0;
        // Large while under way, and rare.
        let dialled = Box::pin(upstream::dial(worker, original, &self.client)).await;
        dialled.map(|upstream| worker.http1_pool.lease(upstream))
    }

    fn arrived(&self, head: &RequestHead) -> Result<Arrived, &'static str> {
        let limits = &self.settings.limits;
        let mut body = Body::new(head.framing, limits.max_header_bytes);
        let count = body.take(&self.input.filled()[head.len..])?;
        Ok(Arrived { body, count })
    }

    async fn attempt(
        &mut self,
        head: &RequestHead,
        body: Body,
        lease: &Lease,
        buffers: &mut Buffers,
        progress: &Progress,
    ) -> AttemptEnd {
        let attempt = Attempt {
            worker: &self.connection.worker,
            limits: self.settings.limits,
            client: &self.client,
            upstream: &lease.upstream.stream,
            request: head,
            body,
            input: &mut self.input,
            overflow: &mut buffers.overflow,
            output: &mut buffers.output,
            progress,
        };
        attempt.run().await
    }

    /// What follows a whole answer, for both sides.
    fn answered(
        &mut self,
        head: &RequestHead,
        mut lease: Lease,
        answer: &Answer,
        buffers: &Buffers,
        progress: &Progress,
        now: Instant,
    ) -> (Next, Option<Failure>) {
        let is_complete = progress.is_request_complete.get();
        let has_client_closed = progress.has_client_closed.get();
        let is_reusable = answer.head.keeps_alive
            && is_complete
            && !has_client_closed
            && buffers.output.is_empty();
        let pins = lease.is_pinned
            || head.authenticates_connection
            || answer.head.authenticates_connection;
        let keeps_client = answer.keeps_client && is_complete && (is_reusable || !pins);

        self.last_upstream = Some(lease.id);
        if is_reusable {
            lease.note_answered(progress.written.get(), answer.head.keeps_for);
            lease.is_pinned = pins;
            if !pins {
                let worker = &self.connection.worker;
                self.idle_upstreams.check_in(worker, lease, now);
            } else if keeps_client {
                self.pinned = Some(lease);
            }
        }

        let failure = (has_client_closed && !is_complete).then_some(Failure::ClientClosed);
        let is_last = self.input.len() == progress.in_input.get() && buffers.overflow.is_empty();
        let next = if keeps_client {
            Next::Request
        } else if has_client_closed || (is_complete && !head.keeps_alive && is_last) {
            Next::Close
        } else {
            Next::Linger
        };
        (next, failure)
    }

    /// The connection is a tunnel from here on: an upgrade, CONNECT, or an answer that is no HTTP
    /// to rely on.
    async fn tunnel(
        &mut self,
        head: RequestHead,
        lease: Lease,
        mut buffers: Buffers,
        progress: &Progress,
        mut outcome: Outcome,
    ) -> Next {
        if progress.has_streamed.get() && !progress.is_request_complete.get() {
            // Part of the body may be inside a pipe that is gone.
            reset_when_dropped(&lease.upstream.stream);
            outcome.failure = Some(Failure::UpstreamProtocol);
            self.record(Some(&head), &outcome);
            return Next::Reset;
        }
        // A tunnel may live for days: it keeps of the request no more than the record needs.
        let mut to_upstream = mem::take(&mut self.input);
        self.input.extend(&to_upstream.filled()[..head.len]);
        if progress.has_streamed.get() {
            to_upstream = mem::take(&mut buffers.overflow);
        } else {
            to_upstream.consume(progress.written.get() as usize);
        }
        let relayed = opaque::relay(
            &self.connection,
            &self.client,
            &lease.upstream.stream,
            to_upstream,
            buffers.output,
        )
        .await;
        outcome.received += relayed.received;
        outcome.sent += relayed.sent;
        outcome.failure = relayed.failure;
        self.record(Some(&head), &outcome);
        Next::Close
    }

    /// Leaves the request behind: the input begins with what the client sent after it.
    fn advance(&mut self, in_input: usize, buffers: Buffers) {
        let pool = &self.connection.worker.buffers;
        if buffers.overflow.capacity() > 0 {
            // The input held nothing but the request.
            pool.give(mem::replace(&mut self.input, buffers.overflow));
        } else {
            self.input.consume(in_input);
        }
        pool.give(buffers.output);
    }
}

/// Whether the request may be sent once more, over a fresh connection: either it provably had no
/// effect or a second effect is none, and all of it is still there.
fn may_repeat(kind: io::ErrorKind, head: &RequestHead, lease: &Lease, progress: &Progress) -> bool {
    // After a reset, what was not acknowledged may have been read all the same.
    let is_unconsumed = || kind == io::ErrorKind::UnexpectedEof && lease.is_unconsumed();
    lease.is_reused
        && !lease.is_pinned
        && !progress.has_answer_begun.get()
        && !progress.has_streamed.get()
        && (head.is_idempotent() || is_unconsumed())
}

/// What follows when the upstream closed or failed before its final answer; or the failure that
/// the client is told.
fn no_answer(
    kind: io::ErrorKind,
    lease: &Lease,
    progress: &Progress,
) -> Result<(Next, Option<Failure>), Failure> {
    if progress.has_client_closed.get() {
        Ok((Next::Close, Some(Failure::ClientClosed)))
    } else if progress.has_answer_begun.get() {
        Err(Failure::UpstreamIncomplete)
    } else if lease.is_reused {
        // The client meets the end of a connection that was idle, as it would have without us, and
        // decides for itself whether to send the request again.
        let next = match kind {
            io::ErrorKind::UnexpectedEof => Next::Close,
            _ => Next::Reset,
        };
        Ok((next, Some(Failure::UpstreamClosed)))
    } else {
        Err(Failure::UpstreamClosed)
    }
}
