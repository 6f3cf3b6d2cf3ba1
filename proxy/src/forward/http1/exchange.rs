//! One request of a client, from its head to the record: which upstream connection carries it,
//! whether it may be sent again when that one turns out dead, and what follows for both sides.

use std::{io, mem, time::Instant};

use super::{
    Next, OwnedLease, Session,
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
    cluster,
    dispatch::{Dialled, Hop, Key, Target, Way},
    failure::Failure,
    forward::opaque,
    route::Routed,
    upstream::Lease,
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
        let key;
        (outcome.routed, key) = self.route(&head);
        // What its route answers itself or does not admit ends here.
        let target = &outcome.routed.target;
        let reached = self
            .upstream_for(&head, target, &key, is_whole, outcome.started)
            .await;
        let (mut lease, mut hop) = match reached {
            Ok(reached) => reached,
            Err(failure) => return self.refuse(Some(&head), failure, outcome).await,
        };
        let mut buffers = Buffers::default();
        loop {
            let progress = Progress::new(head.len + arrived.count, self.connection.worker.captured());
            let end = self
                .attempt(&head, arrived.body, &lease, &key, &mut buffers, &progress)
                .await;
            outcome.add(&lease, &progress);
            hop.report_end(&end, &lease, &progress);
            let ended = match end {
                AttemptEnd::Answered(answer) => {
                    // Read once for both: the clock costs more than the pool.
                    outcome.ended = Some(Instant::now());
                    Ok(self.answered(&head, lease, &answer, &buffers, &progress, &outcome))
                }
                AttemptEnd::Tunnel => {
                    let tunnel = self.tunnel(head, lease, buffers, &progress, outcome);
                    let next = Box::pin(tunnel).await;
                    // Under way at its endpoint until here.
                    drop(hop);
                    return next;
                }
                AttemptEnd::NoAnswer(kind) if may_repeat(kind, &head, &lease, &progress) => {
                    (lease, hop) = match self.dial(&outcome.routed.target, &key, hop).await {
                        Ok(reached) => reached,
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

    /// Where the routes send the request.
    fn route(&self, head: &RequestHead) -> (Routed, Key) {
        let worker = &self.connection.worker;
        if !worker.has_routes() {
            return Default::default();
        }
        let lines = head.lines(self.input.filled());
        let routed = self.connection.route_request(lines.as_request());
        let client = self.connection.client.0.ip();
        let key = routed.target.key(worker, client, &lines);
        (routed, key)
    }

    /// An upstream connection that may carry the request.
    async fn upstream_for(
        &mut self,
        head: &RequestHead,
        target: &Target,
        key: &Key,
        is_whole: bool,
        now: Instant,
    ) -> Result<(Lease, Hop), Failure> {
        if let Some(pinned) = self.pinned.take_if(|p| p.target.is_same(target)) {
            let hop = Hop::to(pinned.lease.upstream.peer);
            return Ok((pinned.lease, hop));
        }
        let worker = self.connection.worker.clone();
        let pool = &worker.http1_pool;
        if let Some(Dialled { upstream, hop }) = self.dialled.take() {
            let lease = pool.lease(upstream);
            if hop.is_towards(target) {
                self.peers.turn_to(pool, hop.peer);
                return Ok((lease, hop));
            }
            // The host that the request names leads elsewhere.
            pool.destination(hop.peer).check_in(&worker, lease, now);
        }
        let way = self.way(target, key);
        let hop = way.choose()?;
        self.peers.turn_to(pool, hop.peer);
        // A request that can be sent again may go over any idle connection, which might die under
        // it. Every other goes over the one that this client used last, whose death it would have
        // met without us too, or over a fresh one.
        let is_any_good = head.is_idempotent() && is_whole && !head.authenticates_connection;
        match self.peers.check_out(is_any_good, now) {
            Some(lease) => Ok((lease, hop)),
            None => self.dial(target, key, hop).await,
        }
    }

    /// A fresh connection to where `hop` leads, or to another endpoint.
    async fn dial(
        &mut self,
        target: &Target,
        key: &Key,
        hop: Hop,
    ) -> Result<(Lease, Hop), Failure> {
        // Large while under way, and rare.
        let dialled = Box::pin(self.way(target, key).connect(hop, &self.client, &self.connection.failed)).await;
        let Dialled { upstream, hop } = dialled?;
        let pool = &self.connection.worker.http1_pool;
        self.peers.turn_to(pool, hop.peer);
        Ok((pool.lease(upstream), hop))
    }

    fn way<'a>(&'a self, target: &'a Target, key: &'a Key) -> Way<'a> {
        Way {
            worker: &self.connection.worker,
            original: self.connection.original,
            target,
            key,
        }
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
        key: &Key,
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
            set_cookie: key.set_cookie.as_deref(),
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
        outcome: &Outcome,
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

        self.peers.note_used(lease.id);
        if is_reusable {
            lease.note_answered(progress.written.get(), answer.head.keeps_for);
            lease.is_pinned = pins;
            if !pins {
                let worker = &self.connection.worker;
                let now = outcome.ended.unwrap_or_else(Instant::now);
                self.peers.idle().check_in(worker, lease, now);
            } else if keeps_client {
                self.pinned = Some(OwnedLease {
                    lease,
                    target: outcome.routed.target.clone(),
                });
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

impl Hop {
    /// Tells the endpoint's cluster how an attempt went. A connection that died idle tells nothing:
    /// whatever is wrong shows when another one is dialled.
    fn report_end(&mut self, end: &AttemptEnd, lease: &Lease, progress: &Progress) {
        let outcome = match (end, progress.status.get()) {
            (AttemptEnd::Incomplete, _) => cluster::Outcome::LocalOriginFailure,
            (AttemptEnd::NoAnswer(_), _)
                if lease.is_reused && !progress.has_answer_begun.get()
                    || progress.has_client_closed.get() =>
            {
                return;
            }
            (AttemptEnd::NoAnswer(_), _) => cluster::Outcome::LocalOriginFailure,
            (AttemptEnd::Answered(_) | AttemptEnd::Tunnel, None) => cluster::Outcome::Success,
            (AttemptEnd::ClientLost | AttemptEnd::Malformed(_), None) => return,
            (_, Some(status)) => cluster::Outcome::of_status(status),
        };
        self.report(outcome, Instant::now());
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
