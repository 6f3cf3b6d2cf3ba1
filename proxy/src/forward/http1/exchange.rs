//! One request of a client, from its head to the record: which upstream connection carries it,
//! whether it may be sent again when that one turns out dead, and what follows for both sides.

use std::{
    io,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::io::Interest;

use super::{
    Next, Session,
    admission::{Added, Denied},
    again,
    attempt::{Attempt, AttemptEnd},
    body::Body,
    edit,
    hedge::Lost,
    progress::Progress,
    reach::Through,
    record::Outcome,
    request::RequestHead,
};
use crate::{
    accept::reset_when_dropped,
    buffer::Buffer,
    cluster::Rng,
    dispatch::{Key, Tried},
    failure::Failure,
    forward::{
        deadlines,
        policed::{ATTEMPT_COUNT, Policed},
    },
    retry::Fate,
    route::Copy,
    upstream::Lease,
};

/// The buffers of one request beside the input; without capacity until they are needed.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) overflow: Buffer,
    pub(super) output: Buffer,
}

/// A request's body, as far as it is in the input.
pub(super) struct Arrived {
    /// What is still to come.
    pub(super) body: Body,
    pub(super) count: usize,
}

/// One request under way.
pub(super) struct Exchange {
    pub(super) head: RequestHead,
    pub(super) outcome: Outcome,
    pub(super) key: Key,
    /// To the answer, by limits.
    pub(super) added: Added,
    /// To be sent when the request is whole.
    pub(super) copies: Vec<Copy>,
    pub(super) policed: Option<Box<Policed>>,
    pub(super) tried: Tried,
    pub(super) buffers: Buffers,
}

/// What comes of one try.
pub(super) enum TryEnd {
    /// The client has an answer, or what there is of one; of the input so much was the request's.
    Over {
        next: Next,
        failure: Option<Failure>,
        in_input: usize,
    },
    /// A tunnel was made of it, and has ended.
    Tunnelled(Next),
    /// There is no answer but our own.
    Refused(Failure),
    Again(Through, Duration),
}

impl Session {
    /// Forwards the request whose head begins the input, and its answer.
    pub(super) async fn exchange(&mut self, mut head: RequestHead) -> Next {
        let mut outcome = Outcome::begin(head.len);
        let arrived = match self.arrived(&head) {
            Ok(arrived) => arrived,
            Err(how) => {
                let failure = Failure::BadRequest(how);
                return self.refuse(Some(&head), failure, outcome).await;
            }
        };
        head.apply_edits(&mut self.input);
        let key;
        (outcome.routed, key) = self.route(&head);
        self.begin_trace(&mut head, &outcome);
        // What its route answers itself or does not admit ends here.
        let mut added = Added::new();
        if outcome.routed.has_rate_limits() {
            match self.admit(&mut head, &outcome.routed).await {
                Ok(lines) => added = lines,
                Err(Denied::Answered(answer)) => {
                    return self.answer(head, &arrived, *answer, outcome).await;
                }
                Err(Denied::Failed(failure)) => {
                    return self.refuse(Some(&head), failure, outcome).await;
                }
            }
        }
        match self.answer_of_route(&head, &outcome.routed).await {
            Ok(None) => {}
            Ok(Some(mut answer)) => {
                answer.headers.extend(added);
                return self.answer(head, &arrived, answer, outcome).await;
            }
            Err(failure) => return self.refuse(Some(&head), failure, outcome).await,
        }
        let copies = self.prepare(&mut head, &arrived, &outcome.routed);
        let lines = head.lines(self.input.filled());
        let mut exchange = Exchange {
            policed: Policed::begin(
                &outcome.routed,
                head.is_idempotent(),
                &lines,
                self.timer.take(),
            )
            .map(Box::new),
            head,
            outcome,
            key,
            added,
            copies,
            tried: Tried::default(),
            buffers: Buffers::default(),
        };
        if let Some(policed) = exchange.policed.as_deref()
            && !arrived.body.is_done()
            && policed.hedge_delay().is_some()
            && !exchange.expects_continue(self.input.filled())
        {
            let collecting = Box::pin(self.collect(&exchange.head, policed));
            let within = policed
                .deadlines
                .within(collecting, deadlines::Progress::default);
            let collected = within.await;
            let collected = collected.unwrap_or_else(|passed| Err(policed.passed(passed)));
            if let Err(failure) = collected {
                return self
                    .refuse(Some(&exchange.head), failure, exchange.outcome)
                    .await;
            }
        }
        let mut through = Through::Any;
        let failure = loop {
            match self.try_once(&mut exchange, through).await {
                TryEnd::Over {
                    next,
                    failure,
                    in_input,
                } => {
                    exchange.outcome.failure = failure;
                    self.record(Some(&exchange.head), &exchange.outcome);
                    self.timer = exchange.policed.map(|policed| policed.into_timer());
                    self.advance(in_input, exchange.buffers);
                    return next;
                }
                TryEnd::Tunnelled(next) => return next,
                TryEnd::Refused(failure) => break failure,
                TryEnd::Again(next, pause) => {
                    through = next;
                    self.end_attempt();
                    if let Some(policed) = &exchange.policed
                        && let Err(failure) = self.pause(policed, pause).await
                    {
                        break failure;
                    }
                    self.trace_again(&mut exchange.head);
                }
            }
        };
        self.refuse(Some(&exchange.head), failure, exchange.outcome)
            .await
    }

    /// Sends the request over one upstream connection.
    async fn try_once(&mut self, exchange: &mut Exchange, through: Through) -> TryEnd {
        let arrived = match self.arrived(&exchange.head) {
            Ok(arrived) => arrived,
            Err(how) => return TryEnd::Refused(Failure::BadRequest(how)),
        };
        // What a client has authenticated cannot be had a second time.
        let hedge_delay = exchange
            .hedge_delay(&arrived)
            .filter(|_| self.pinned.is_none());
        let is_hedged = hedge_delay.is_some();
        let reached = match hedge_delay {
            // Large while under way, and rare.
            Some(delay) => Box::pin(self.race(exchange, through, delay)).await,
            None => self
                .reach(exchange, through, arrived.body.is_done())
                .await
                .map_err(Lost::Unreached),
        };
        let (lease, mut hop) = match reached {
            Ok(reached) => reached,
            Err(Lost::Unreached(failure)) => {
                self.attempt_failed(failure);
                return exchange.unreached(failure, &self.connection.worker);
            }
            Err(Lost::TimedOut) => {
                self.attempt_failed(Failure::TryTimeout);
                return exchange.raced_too_long(self.rng());
            }
            Err(Lost::NoAnswer { hop, has_left }) => {
                self.attempt_failed(Failure::UpstreamClosed);
                let is_kept = !exchange.head.authenticates_connection;
                let policed = exchange.policed.as_ref();
                let fate = Fate::Reset { has_left };
                return match policed.and_then(|p| p.again(fate, is_kept, self.rng())) {
                    Some(pause) => exchange.again(&hop, pause),
                    None => TryEnd::Refused(Failure::UpstreamClosed),
                };
            }
        };
        if arrived.body.is_done() {
            self.mirror(exchange, exchange.head.len + arrived.count);
        }
        if !is_hedged {
            let peer = lease.upstream.peer;
            if let Some(host) = exchange.outcome.routed.auto_host(peer) {
                edit::set_host(&mut exchange.head, host.as_bytes(), &mut self.input);
            }
            self.number_try(exchange);
        }
        let captured = self.connection.worker.captured();
        let progress = Progress::new(exchange.head.len + arrived.count, lease.is_pinned, captured);
        let end = self
            .attempt(exchange, arrived.body, &lease, is_hedged, &progress)
            .await;
        if progress.is_request_complete.get() {
            match progress.has_streamed.get() {
                false => self.mirror(exchange, progress.in_input.get()),
                // Longer than what is kept of it.
                true => exchange.copies.drain(..).for_each(|copy| copy.dropped()),
            }
        }
        exchange.outcome.add(&lease, &progress);
        self.note_attempt(&end, &lease, &progress);
        hop.report_end(&end, &lease, &progress);
        let (next, failure) = match end {
            AttemptEnd::Answered(answer) => {
                // Read once for both: the clock costs more than the pool.
                exchange.outcome.ended = Some(Instant::now());
                self.answered(exchange, lease, &answer, &progress)
            }
            AttemptEnd::Tunnel => {
                // The hop is under way at its endpoint until here.
                let tunnel = self.tunnel(exchange, lease, &progress);
                return TryEnd::Tunnelled(Box::pin(tunnel).await);
            }
            AttemptEnd::Discarded(answer) => {
                let peer = lease.upstream.peer;
                self.connection.failed.answered(peer, answer.head.status);
                self.discard(exchange, lease, &answer, &progress);
                return exchange.again(&hop, answer.pause);
            }
            AttemptEnd::NoAnswer(kind)
                if again::may_repeat(kind, &exchange.head, &lease, &progress) =>
            {
                return TryEnd::Again(Through::Fresh(hop), Duration::ZERO);
            }
            AttemptEnd::NoAnswer(kind) => {
                let is_unconsumed =
                    || kind == io::ErrorKind::UnexpectedEof && lease.is_unconsumed();
                let fate = Fate::Reset {
                    has_left: progress.written.get() > 0 && !is_unconsumed(),
                };
                if let Some(pause) = exchange.pause_after(fate, &progress, self.rng()) {
                    let peer = lease.upstream.peer;
                    self.connection.failed.broke(peer, Failure::UpstreamClosed);
                    return exchange.again(&hop, pause);
                }
                match again::no_answer(kind, &lease, &progress) {
                    Ok(ended) => ended,
                    Err(failure) => return TryEnd::Refused(failure),
                }
            }
            AttemptEnd::TooLong(passed) => {
                reset_when_dropped(&lease.upstream.stream);
                if passed.is_of_try()
                    && progress.status.get().is_none()
                    && let Some(pause) = exchange.pause_after(Fate::TimedOut, &progress, self.rng())
                {
                    return exchange.again(&hop, pause);
                }
                match progress.status.get() {
                    None => return TryEnd::Refused(passed.failure()),
                    Some(_) => (Next::Reset, Some(passed.failure())),
                }
            }
            AttemptEnd::Incomplete => (Next::Reset, Some(Failure::UpstreamIncomplete)),
            AttemptEnd::ClientLost => {
                reset_when_dropped(&lease.upstream.stream);
                (Next::Reset, Some(Failure::ClientClosed))
            }
            AttemptEnd::Malformed(how) => {
                reset_when_dropped(&lease.upstream.stream);
                match progress.status.get() {
                    None => return TryEnd::Refused(Failure::BadRequest(how)),
                    Some(_) => (Next::Reset, Some(Failure::BadRequest(how))),
                }
            }
        };
        TryEnd::Over {
            next,
            failure,
            in_input: progress.in_input.get(),
        }
    }

    /// Waits before the next try.
    async fn pause(&self, policed: &Policed, pause: Duration) -> Result<(), Failure> {
        let gone = self.client.ready(Interest::ERROR);
        Box::pin(policed.pause(pause, gone)).await
    }

    /// Tells the endpoint which try of its request this is, where that is asked for.
    pub(super) fn number_try(&mut self, exchange: &mut Exchange) {
        if let Some(number) = exchange.policed.as_ref().and_then(|p| p.attempt()) {
            let number = number.to_string();
            let head = &mut exchange.head;
            head.set_line(&mut self.input, ATTEMPT_COUNT, &number);
        }
    }

    pub(super) fn rng(&self) -> &Rng {
        &self.connection.worker.rng
    }

    pub(super) fn arrived(&self, head: &RequestHead) -> Result<Arrived, &'static str> {
        let limits = &self.settings.limits;
        let mut body = Body::new(head.framing, limits.max_header_bytes);
        let count = body.take(&self.input.filled()[head.len..])?;
        Ok(Arrived { body, count })
    }

    async fn attempt(
        &mut self,
        exchange: &mut Exchange,
        body: Body,
        lease: &Lease,
        is_answered: bool,
        progress: &Progress,
    ) -> AttemptEnd {
        progress.has_answer_begun.set(is_answered);
        let policed = exchange.policed.as_deref();
        let attempt = Attempt {
            worker: &self.connection.worker,
            limits: self.settings.limits,
            client: &self.client,
            upstream: &lease.upstream.stream,
            request: &exchange.head,
            body,
            input: &mut self.input,
            overflow: &mut exchange.buffers.overflow,
            output: &mut exchange.buffers.output,
            edits: (exchange.outcome.routed.route.as_ref())
                .and_then(|r| r.response_headers.as_ref()),
            set_cookie: exchange.key.set_cookie.as_deref(),
            added: &exchange.added,
            policed,
            is_answered,
            progress,
        };
        // Large, so that there is one place for it, whether it has limits or not.
        let mut running = pin!(attempt.run());
        let Some(policed) = policed else {
            return running.await;
        };
        policed.deadlines.begin_try();
        let within = policed
            .deadlines
            .within(running.as_mut(), || progress.for_deadlines());
        let end = match within.await {
            Ok(end) => end,
            Err(passed) => {
                policed.passed(passed);
                AttemptEnd::TooLong(passed)
            }
        };
        policed.deadlines.end_try();
        end
    }
}
