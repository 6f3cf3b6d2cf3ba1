//! Tries of one request beside each other, each over a connection of its own, with which it ends unless
//! it wins. What is raced for is the head of an answer; its relay is an ordinary attempt's.

use std::{
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use outrigger_config::{Headers, Limits, Retry};
use tokio::{io::Interest, net::TcpStream};

use super::{
    Session,
    body::Framing,
    exchange::{Arrived, Exchange, TryEnd},
    io::{read, write_some},
    reach::Through,
    request::{Method, RequestHead},
    response::{self, Response, ResponseHead},
};
use crate::{
    buffer::Buffer,
    cluster::{Outcome, Rng},
    dispatch::Hop,
    failure::Failure,
    forward::{
        deadlines,
        policed::Policed,
        race::{Answered, Lap, Race},
    },
    retry::{AnswerHead, Fate},
    upstream::Lease,
    worker::Worker,
};

impl Session {
    /// Tries at several endpoints beside each other; the answer that wins is in the output.
    pub(super) async fn race(
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
        let first = first.map_err(Lost::Unreached)?;
        let asking = Asking {
            worker: &self.connection.worker,
            limits: self.settings.limits,
            client: &self.client,
            policed,
            head,
            request: &self.input.filled()[..head.len + count],
        };
        let race = Race {
            way,
            policed,
            delay,
        };
        let lap = |hop| -> Lap<'_, Leader, Lost> { Box::pin(asking.lap(hop)) };
        let racing = async {
            tokio::select! {
                biased;
                won = race.run(first, tried, lap) => won,
                _ = self.client.ready(Interest::ERROR) => {
                    Err(Lost::Unreached(Failure::ClientClosed))
                }
            }
        };
        policed.deadlines.begin_try();
        let received = || deadlines::Progress {
            is_received: true,
            ..Default::default()
        };
        let raced = policed.deadlines.within(racing, received).await;
        policed.deadlines.end_try();
        let won = match raced {
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
    pub(super) async fn collect(
        &mut self,
        head: &RequestHead,
        policed: &Policed,
    ) -> Result<(), Failure> {
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
}

impl Exchange {
    /// After how long another try begins beside this one. What is not whole, or differs by endpoint, is
    /// not hedged.
    pub(super) fn hedge_delay(&self, arrived: &Arrived) -> Option<Duration> {
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
    pub(super) fn raced_too_long(&self, rng: &Rng) -> TryEnd {
        let policed = self.policed.as_ref();
        match policed.and_then(|p| p.again(Fate::TimedOut, true, rng)) {
            Some(pause) => TryEnd::Again(Through::Another, pause),
            None => TryEnd::Refused(Failure::TryTimeout),
        }
    }

    pub(super) fn expects_continue(&self, head: &[u8]) -> bool {
        let mut expects = false;
        self.head
            .lines(head)
            .each("expect", &mut |_| expects = true);
        expects
    }
}

/// What the tries of a race ask.
struct Asking<'a> {
    worker: &'a Rc<Worker>,
    limits: Limits,
    client: &'a TcpStream,
    policed: &'a Policed,
    head: &'a RequestHead,
    /// All of the request, the first try's.
    request: &'a [u8],
}

/// A try whose answer has begun.
struct Leader {
    lease: Lease,
    hop: Hop,
    /// What there is of the answer: its final head at least, or bytes that are no HTTP.
    output: Buffer,
    /// None if it is no HTTP.
    head: Option<(ResponseHead, usize)>,
}

/// Why nobody won.
pub(super) enum Lost {
    Unreached(Failure),
    TimedOut,
    /// The last try ended without an answer.
    NoAnswer {
        hop: Hop,
        has_left: bool,
    },
}

impl Answered for Leader {
    fn is_reason(&self, retry: &Retry) -> bool {
        let Some((head, at)) = &self.head else {
            return false;
        };
        let lines = head.lines(&self.output.filled()[*at..]);
        let fate = Fate::Answered(AnswerHead {
            status: head.status,
            headers: &lines,
        });
        fate.is_reason(retry)
    }

    fn pass_over(mut self) {
        if let Some((head, _)) = &self.head {
            self.hop
                .report(Outcome::of_status(head.status), Instant::now());
        }
    }
}

impl Asking<'_> {
    /// The request with the number of the try that begins now, if tries carry theirs: the line ends the
    /// head.
    fn numbered(&self) -> Vec<u8> {
        let mut request = self.request.to_vec();
        if let Some(number) = self.policed.attempt() {
            let end = self.head.len - b"\r\n\r\n".len();
            let digits = request[..end].iter().rev();
            let old = digits.take_while(|b| b.is_ascii_digit()).count();
            request.splice(end - old..end, number.to_string().into_bytes());
        }
        request
    }

    async fn lap(&self, mut hop: Hop) -> Result<Leader, Lost> {
        let request = self.numbered();
        let pool = &self.worker.http1_pool;
        let mut idle = pool.check_out(hop.peer, Instant::now());
        loop {
            let lease = match idle.take() {
                Some(lease) => lease,
                None => match hop.dial(self.worker, Some(self.client)).await {
                    Ok(upstream) => pool.lease(upstream),
                    Err(failure) => {
                        hop.report(Outcome::LocalOriginFailure, Instant::now());
                        return Err(Lost::Unreached(failure));
                    }
                },
            };
            let error = match self.ask(&lease, &request).await {
                Ok((output, head)) => {
                    return Ok(Leader {
                        lease,
                        hop,
                        output,
                        head,
                    });
                }
                Err(error) => error,
            };
            if lease.is_reused {
                // An idle connection that died; what is raced may be repeated.
                continue;
            }
            hop.report(Outcome::LocalOriginFailure, Instant::now());
            let is_unconsumed = error == io::ErrorKind::UnexpectedEof && lease.is_unconsumed();
            return Err(Lost::NoAnswer {
                hop,
                has_left: !is_unconsumed,
            });
        }
    }

    /// Sends the request and reads until a final head is there. Interim ones stay before it.
    async fn ask(
        &self,
        lease: &Lease,
        request: &[u8],
    ) -> Result<(Buffer, Option<(ResponseHead, usize)>), io::ErrorKind> {
        let stream = &lease.upstream.stream;
        let mut sent = 0;
        while sent < request.len() {
            match write_some(stream, &request[sent..]).await {
                Ok(count) => sent += count,
                // It may have answered nevertheless.
                Err(_) => break,
            }
        }
        let mut output = self.worker.buffers.take();
        let mut at = 0;
        loop {
            match response::parse(&output.filled()[at..], self.head, &self.limits) {
                Response::Head(head) if head.is_interim() => {
                    at += head.len;
                    // They may come without end.
                    if at > self.limits.max_header_bytes {
                        output.consume(at);
                        at = 0;
                    }
                    continue;
                }
                Response::Head(head) => return Ok((output, Some((head, at)))),
                Response::Odd => return Ok((output, None)),
                Response::Partial => {}
            }
            if output.space().is_empty() {
                output.grow(output.capacity() + self.limits.max_header_bytes);
            }
            match read(stream, &mut output).await {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof),
                Ok(_) => {}
                Err(error) => return Err(error.kind()),
            }
        }
    }
}
