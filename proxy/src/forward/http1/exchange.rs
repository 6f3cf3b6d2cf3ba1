//! One request of a client, from its head to the record: which upstream connection carries it,
//! whether it may be sent again when that one turns out dead, and what follows for both sides.

use std::{
    io, mem,
    time::{Duration, Instant},
};

use outrigger_config::Headers;
use tokio::io::Interest;

use super::{
    Next, OwnedLease, Session,
    admission::{Added, Denied},
    attempt::{Attempt, AttemptEnd},
    body::{Body, Framing},
    download::{Answer as Answered, Discarded},
    edit,
    hedge::{Lost, Race},
    io::read,
    mirror,
    progress::Progress,
    record::Outcome,
    request::{Method, RequestHead},
};
use crate::{
    accept::reset_when_dropped,
    buffer::Buffer,
    cluster::{self, Rng},
    dispatch::{Dialled, Hop, Key, Target, Tried, Way},
    failure::Failure,
    forward::{
        deadlines,
        opaque::{self, TunnelLimits},
        policed::{ATTEMPT_COUNT, Policed},
    },
    retry::Fate,
    route::{self, Answer, Copy, Routed},
    upstream::Lease,
    worker::Worker,
};

/// The buffers of one request beside the input; without capacity until they are needed.
#[derive(Default)]
struct Buffers {
    overflow: Buffer,
    output: Buffer,
}

/// A request's body, as far as it is in the input.
pub(super) struct Arrived {
    /// What is still to come.
    pub(super) body: Body,
    pub(super) count: usize,
}

/// One request under way.
struct Exchange {
    head: RequestHead,
    outcome: Outcome,
    key: Key,
    /// To the answer, by limits.
    added: Added,
    /// To be sent when the request is whole.
    copies: Vec<Copy>,
    policed: Option<Box<Policed>>,
    tried: Tried,
    buffers: Buffers,
}

/// How a try gets its upstream connection.
enum Through {
    /// Whichever the request may go over.
    Any,
    /// A fresh one, since an idle one to the same peer turned out dead.
    Fresh(Hop),
    /// Whichever to another endpoint, if there is one.
    Another,
}

/// What comes of one try.
enum TryEnd {
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
            match Box::pin(self.admit(&mut head, &outcome.routed)).await {
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
            policed: Policed::begin(&outcome.routed, head.is_idempotent(), &lines, &mut self.timer).map(Box::new),
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
        let hedge_delay = exchange.hedge_delay(&arrived);
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
        let progress = Progress::new(exchange.head.len + arrived.count, captured);
        let end = self
            .attempt(exchange, arrived.body, &lease, is_hedged, &progress)
            .await;
        if progress.is_request_complete.get() && !progress.has_streamed.get() {
            self.mirror(exchange, progress.in_input.get());
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
            AttemptEnd::NoAnswer(kind) if may_repeat(kind, &exchange.head, &lease, &progress) => {
                return TryEnd::Again(Through::Fresh(hop), Duration::ZERO);
            }
            AttemptEnd::NoAnswer(kind) => {
                let is_unconsumed =
                    || kind == io::ErrorKind::UnexpectedEof && lease.is_unconsumed();
                let fate = Fate::Reset {
                    has_left: progress.written.get() > 0 && !is_unconsumed(),
                };
                if let Some(pause) = exchange.pause_after(fate, &lease, &progress, self.rng()) {
                    let peer = lease.upstream.peer;
                    self.connection.failed.broke(peer, Failure::UpstreamClosed);
                    return exchange.again(&hop, pause);
                }
                match no_answer(kind, &lease, &progress) {
                    Ok(ended) => ended,
                    Err(failure) => return TryEnd::Refused(failure),
                }
            }
            AttemptEnd::TooLong(passed) => {
                reset_when_dropped(&lease.upstream.stream);
                if passed.is_of_try()
                    && progress.status.get().is_none()
                    && let Some(pause) =
                        exchange.pause_after(Fate::TimedOut, &lease, &progress, self.rng())
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

    /// Tries at several endpoints beside each other; the answer that wins is in the output.
    async fn race(
        &mut self,
        exchange: &mut Exchange,
        through: Through,
        delay: Duration,
    ) -> Result<(Lease, Hop), Lost> {
        self.number_try(exchange);
        let Exchange {
            head,
            outcome,
            key,
            policed,
            tried,
            buffers,
            ..
        } = exchange;
        let Some(policed) = policed.as_deref() else {
            return Err(Lost::Unreached(Failure::Internal));
        };
        let arrived = self.arrived(head);
        let count = arrived.map_or(0, |arrived| arrived.count);
        let way = self.way(&outcome.routed.target, key);
        let first = match through {
            Through::Any | Through::Another => way.choose_another(tried, policed.prefers_others()),
            Through::Fresh(hop) => Ok(hop),
        };
        let race = Race {
            worker: &self.connection.worker,
            way,
            limits: self.settings.limits,
            client: &self.client,
            policed,
            head,
            request: &self.input.filled()[..head.len + count],
        };
        let racing = race.run(first.map_err(Lost::Unreached)?, delay, tried);
        policed.deadlines.begin_try();
        let received = || deadlines::Progress {
            is_received: true,
            ..Default::default()
        };
        let won = match policed.deadlines.within(racing, received).await {
            Ok(won) => won?,
            Err(passed) => {
                let failure = policed.passed(passed);
                return Err(match passed.is_of_try() {
                    true => Lost::TimedOut,
                    false => Lost::Unreached(failure),
                });
            }
        };
        let pool = &self.connection.worker.http1_pool;
        self.peers.turn_to(pool, won.hop.peer);
        buffers.output = won.output;
        Ok((won.lease, won.hop))
    }

    /// Reads the rest of a body that fits what is kept of it: only a whole request can be hedged.
    async fn collect(&mut self, head: &RequestHead, policed: &Policed) -> Result<(), Failure> {
        let keeps = head.len
            + policed.keeps(match head.framing {
                Framing::Length(length) => Some(length),
                Framing::Chunked | Framing::UntilClose => None,
            });
        loop {
            let arrived = self.arrived(head).map_err(Failure::BadRequest)?;
            if arrived.body.is_done() || self.input.len() >= keeps {
                return Ok(());
            }
            if self.input.space().is_empty() {
                let doubled = self.input.capacity() * 2;
                self.input.grow(doubled.min(keeps + 1));
            }
            match read(&self.client, &mut self.input).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(Failure::ClientClosed),
            }
        }
    }

    /// Tells the endpoint which try of its request this is, where that is asked for.
    fn number_try(&mut self, exchange: &mut Exchange) {
        if let Some(number) = exchange.policed.as_ref().and_then(|p| p.attempt()) {
            let number = number.to_string();
            let head = &mut exchange.head;
            head.set_line(&mut self.input, ATTEMPT_COUNT, &number);
        }
    }

    fn rng(&self) -> &Rng {
        &self.connection.worker.rng
    }

    /// Where the routes send the request.
    fn route(&self, head: &RequestHead) -> (Routed, Key) {
        let worker = &self.connection.worker;
        if !worker.has_routes() {
            return Default::default();
        }
        let lines = head.lines(self.input.filled());
        let mut routed = self.connection.route_request(lines.as_request());
        if let Some(pinned) = &self.pinned {
            routed.stay_with(&pinned.target);
        }
        let client = self.connection.client.0.ip();
        let key = routed.target.key(worker, client, &lines);
        (routed, key)
    }

    /// What the request's route answers in an upstream's place, after the delay that it may ask for.
    async fn answer_of_route(
        &self,
        head: &RequestHead,
        routed: &Routed,
    ) -> Result<Option<Answer>, Failure> {
        if routed.route.is_none() {
            return Ok(None);
        }
        let bytes = self.input.filled();
        let lines = head.lines(bytes);
        let fault = routed.fault(Some(&lines), &self.connection.worker.rng);
        if let Some(delay) = fault.as_ref().and_then(|fault| fault.delay) {
            // Seldom, and large while it lasts.
            Box::pin(route::wait(delay, &self.client)).await?;
        }
        if let Some(abort) = fault.and_then(|fault| fault.abort) {
            return Ok(Some(abort));
        }
        if !routed.answers_itself() {
            return Ok(None);
        }
        let original = self.connection.original.0.to_string();
        let authority = head.host(bytes).unwrap_or(original.as_bytes());
        Ok(routed.answer(&lines.as_request(), authority))
    }

    /// Makes of the head what the route wants sent on, and tells of which copies are to be made. So
    /// that they can be, a body that is yet to come stays in the input.
    fn prepare(&mut self, head: &mut RequestHead, arrived: &Arrived, routed: &Routed) -> Vec<Copy> {
        let Some(route) = &routed.route else {
            return Vec::new();
        };
        if route.edits_request() {
            edit::request(head, route, &mut self.input);
        }
        if !mirror::can_be_copied(head) {
            return Vec::new();
        }
        let mut copies = routed.copies(&self.connection.worker.rng);
        if let Framing::Length(length) = head.framing {
            copies.retain(|copy| length <= copy.max_body_bytes as u64);
        }
        let largest = copies.iter().map(|copy| copy.max_body_bytes).max();
        if let Some(largest) = largest.filter(|_| !arrived.body.is_done()) {
            let length = match head.framing {
                Framing::Length(length) => length as usize,
                Framing::Chunked | Framing::UntilClose => largest,
            };
            // One byte more than all of it, for there is space while more is read.
            self.input.grow(head.len + length + 1);
        }
        copies
    }

    /// Sends the copies of a request that is whole within the first `len` bytes of the input.
    fn mirror(&self, exchange: &mut Exchange, len: usize) {
        for copy in exchange.copies.drain(..) {
            let request = &self.input.filled()[..len];
            let head = &exchange.head;
            mirror::send(&self.connection, self.settings.limits, &copy, head, request);
        }
    }

    /// An upstream connection that may carry the request, which `is_whole` if nothing of it is still
    /// to come.
    async fn reach(
        &mut self,
        exchange: &mut Exchange,
        through: Through,
        is_whole: bool,
    ) -> Result<(Lease, Hop), Failure> {
        let Exchange {
            head,
            outcome,
            key,
            policed,
            tried,
            ..
        } = exchange;
        let policed = policed.as_deref();
        let target = &outcome.routed.target;
        let reaching = async {
            let hop = match through {
                Through::Any => {
                    if let Some(reached) = self.at_hand(target, outcome.started) {
                        return Ok(reached);
                    }
                    self.way(target, key).choose()?
                }
                Through::Fresh(hop) => return self.dial(target, key, hop, tried).await,
                Through::Another => {
                    let prefers_others = policed.is_none_or(Policed::prefers_others);
                    self.way(target, key)
                        .choose_another(tried, prefers_others)?
                }
            };
            let pool = &self.connection.worker.http1_pool;
            self.peers.turn_to(pool, hop.peer);
            // A request that can be sent again may go over any idle connection, which might die under
            // it. Every other goes over the one that this client used last, whose death it would have
            // met without us too, or over a fresh one.
            let is_any_good = head.is_idempotent() && is_whole && !head.authenticates_connection;
            match self.peers.check_out(is_any_good, outcome.started) {
                Some(lease) => Ok((lease, hop)),
                None => self.dial(target, key, hop, tried).await,
            }
        };
        let Some(policed) = policed else {
            return reaching.await;
        };
        let progress = || deadlines::Progress {
            is_received: is_whole,
            ..Default::default()
        };
        // Large while under way, and only where limits are asked for.
        match Box::pin(policed.deadlines.within(reaching, progress)).await {
            Ok(reached) => reached,
            Err(passed) => Err(policed.passed(passed)),
        }
    }

    /// A connection that this client has already, if it leads to `target`.
    fn at_hand(&mut self, target: &Target, now: Instant) -> Option<(Lease, Hop)> {
        if let Some(pinned) = self.pinned.take_if(|p| p.target.is_same(target)) {
            let hop = Hop::to(pinned.lease.upstream.peer);
            return Some((pinned.lease, hop));
        }
        let Dialled { upstream, hop } = self.dialled.take()?;
        let worker = &self.connection.worker;
        let pool = &worker.http1_pool;
        let lease = pool.lease(upstream);
        if hop.is_towards(target) {
            self.peers.turn_to(pool, hop.peer);
            return Some((lease, hop));
        }
        // The host that the request names leads elsewhere.
        pool.destination(hop.peer).check_in(worker, lease, now);
        None
    }

    /// A fresh connection to where `hop` leads, or to another endpoint.
    async fn dial(
        &mut self,
        target: &Target,
        key: &Key,
        hop: Hop,
        tried: &mut Tried,
    ) -> Result<(Lease, Hop), Failure> {
        // Large while under way, and rare.
        let failed = &self.connection.failed;
        let dialled = Box::pin(
            self.way(target, key)
                .connect(hop, &self.client, tried, failed),
        )
        .await;
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
        let Some(policed) = policed else {
            return attempt.run().await;
        };
        policed.deadlines.begin_try();
        let within = policed
            .deadlines
            .within(attempt.run(), || progress.for_deadlines());
        // Large, and only where limits are asked for.
        let end = match Box::pin(within).await {
            Ok(end) => end,
            Err(passed) => {
                policed.passed(passed);
                AttemptEnd::TooLong(passed)
            }
        };
        policed.deadlines.end_try();
        end
    }

    /// What follows a whole answer, for both sides.
    fn answered(
        &mut self,
        exchange: &Exchange,
        mut lease: Lease,
        answer: &Answered,
        progress: &Progress,
    ) -> (Next, Option<Failure>) {
        let Exchange {
            head,
            outcome,
            buffers,
            policed,
            ..
        } = exchange;
        if let Some(policed) = policed {
            policed.settle(answer.head.status);
        }
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
    async fn tunnel(&mut self, exchange: &mut Exchange, lease: Lease, progress: &Progress) -> Next {
        let Exchange {
            head,
            outcome,
            policed,
            ..
        } = exchange;
        let mut buffers = mem::take(&mut exchange.buffers);
        let mut limits = TunnelLimits::of(&self.connection, &outcome.routed);
        if let Some(policed) = policed {
            limits.end = policed.deadlines.tunnel_end();
            policed.settle(progress.status.get().unwrap_or_default());
        }
        if progress.has_streamed.get() && !progress.is_request_complete.get() {
            // Part of the body may be inside a pipe that is gone.
            reset_when_dropped(&lease.upstream.stream);
            outcome.failure = Some(Failure::UpstreamProtocol);
            self.record(Some(head), outcome);
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
            limits,
        )
        .await;
        outcome.received += relayed.received;
        outcome.sent += relayed.sent;
        outcome.failure = relayed.failure;
        self.record(Some(head), outcome);
        Next::Close
    }

    /// Leaves an answer behind that the client does not get.
    fn discard(
        &mut self,
        exchange: &mut Exchange,
        mut lease: Lease,
        answer: &Discarded,
        progress: &Progress,
    ) {
        let worker = &self.connection.worker;
        worker.buffers.give(mem::take(&mut exchange.buffers.output));
        // What is still to come of it would have to be read off.
        let is_reusable =
            answer.is_whole && answer.head.keeps_alive && progress.is_request_complete.get();
        if is_reusable && !answer.head.authenticates_connection {
            lease.note_answered(progress.written.get(), answer.head.keeps_for);
            self.peers.idle().check_in(worker, lease, Instant::now());
        }
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

impl Exchange {
    /// After how long another try begins beside this one. What is not whole, or differs by endpoint, is
    /// not hedged.
    fn hedge_delay(&self, arrived: &Arrived) -> Option<Duration> {
        let delay = self.policed.as_ref()?.hedge_delay()?;
        let rewrite = self
            .outcome
            .routed
            .policy()
            .and_then(|p| p.rewrite.as_ref());
        let may_be_hedged = arrived.body.is_done()
            && !self.head.authenticates_connection
            && self.head.method != Method::Connect
            && !rewrite.is_some_and(|r| r.auto_host);
        may_be_hedged.then_some(delay)
    }

    /// No try of a race was answered in time.
    fn raced_too_long(&self, rng: &Rng) -> TryEnd {
        let policed = self.policed.as_ref();
        match policed.and_then(|p| p.again(Fate::TimedOut, true, rng)) {
            Some(pause) => TryEnd::Again(Through::Another, pause),
            None => TryEnd::Refused(Failure::TryTimeout),
        }
    }

    fn expects_continue(&self, head: &[u8]) -> bool {
        let mut expects = false;
        self.head
            .lines(head)
            .each("expect", &mut |_| expects = true);
        expects
    }

    /// There was no connection.
    fn unreached(&mut self, failure: Failure, worker: &Worker) -> TryEnd {
        let is_kept = !self.head.authenticates_connection;
        let again = self.policed.as_ref();
        match again.and_then(|p| p.again_after(failure, is_kept, &worker.rng)) {
            Some(pause) => {
                self.tried.begin_again(None);
                TryEnd::Again(Through::Another, pause)
            }
            None => TryEnd::Refused(failure),
        }
    }

    /// The pause before the next try, if a try that came to `fate` is to be repeated.
    fn pause_after(
        &self,
        fate: Fate<'_>,
        lease: &Lease,
        progress: &Progress,
        rng: &Rng,
    ) -> Option<Duration> {
        let is_kept = progress.is_kept(&self.head) && !lease.is_pinned;
        self.policed.as_ref()?.again(fate, is_kept, rng)
    }

    /// The next try had better not go where the last one went.
    fn again(&mut self, last: &Hop, pause: Duration) -> TryEnd {
        // What has come of an answer that never became whole.
        self.buffers.output.clear();
        self.tried.begin_again(Some(last.peer));
        TryEnd::Again(Through::Another, pause)
    }
}

impl Hop {
    /// Tells the endpoint's cluster how an attempt went. A connection that died idle tells nothing:
    /// whatever is wrong shows when another one is dialled.
    fn report_end(&mut self, end: &AttemptEnd, lease: &Lease, progress: &Progress) {
        let outcome = match (end, progress.status.get()) {
            (AttemptEnd::Incomplete, _) => cluster::Outcome::LocalOriginFailure,
            (AttemptEnd::TooLong(passed), None) => {
                if !passed.tells_of_endpoint(progress.is_request_received.get()) {
                    return;
                }
                cluster::Outcome::LocalOriginFailure
            }
            (AttemptEnd::Discarded(answer), _) => cluster::Outcome::of_status(answer.head.status),
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
