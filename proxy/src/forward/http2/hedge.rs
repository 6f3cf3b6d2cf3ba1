//! Tries of one request beside each other, each on a stream of its own, which is cancelled unless it
//! wins. What is raced for is the head of an answer; its relay is as ever.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use outrigger_config::Retry;

use super::{
    account::outcome_of,
    asking::{Asking, TryEnd, is_unprocessed},
    exchange::poll_client_reset,
    peers::Peers,
    relay::{Relay, UpstreamStream, failure_of},
    request::{Lines, outgoing},
    routing::way,
    session::Unsent,
    settings::STREAM_WINDOW,
};
use crate::{
    cluster::Outcome,
    dispatch::Hop,
    failure::Failure,
    forward::{
        deadlines::Passed,
        race::{Answered, Lap, Race},
    },
    retry::{AnswerHead, Fate},
};

/// A whole body.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub(super) chunks: Vec<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
}

impl Asking<'_> {
    /// Holds the whole body, if it is not too long: only a whole request can be hedged.
    pub(super) async fn collect(&mut self) -> Result<bool, Failure> {
        let Self {
            client,
            upload,
            account,
            ..
        } = self;
        let keeps = account.policed.as_ref().map_or(0, |p| p.keeps(None));
        // Beyond half of its window a client might wait for us.
        let most = keeps.min(STREAM_WINDOW as usize / 2);
        poll_fn(|cx| {
            if let Poll::Ready(collected) = upload.poll_collect(cx, most, account) {
                return Poll::Ready(collected.map_err(|_| Failure::ClientClosed));
            }
            if poll_client_reset(cx, client).is_ready() {
                return Poll::Ready(Err(Failure::ClientClosed));
            }
            let passed = account.poll_deadlines(cx, upload, false);
            passed.map(|passed| Err(account.passed(passed)))
        })
        .await
    }

    /// Tries at several endpoints beside each other.
    pub(super) async fn race(&mut self, delay: Duration) -> Result<Option<Relay>, TryEnd> {
        let Some((policed, hop)) = self.account.policed.clone().zip(self.account.hop.take()) else {
            return Err(TryEnd::Refused(Failure::Internal));
        };
        let body = self.upload.whole();
        policed.deadlines.begin_try();
        let ended = {
            let Self {
                client,
                upload,
                account,
                key,
                tried,
                ..
            } = self;
            let account = &**account;
            let race = Race {
                way: way(account, key),
                policed: &policed,
                delay,
            };
            let lap = |hop| -> Lap<'_, Leader, Lost> {
                Box::pin(lap(&account.peers, hop, outgoing(account), body.clone()))
            };
            let mut racing = pin!(race.run(hop, tried, lap));
            poll_fn(|cx| {
                if let Poll::Ready(ended) = racing.as_mut().poll(cx) {
                    return Poll::Ready(Ok(ended));
                }
                if poll_client_reset(cx, client).is_ready() {
                    return Poll::Ready(Err(Cut::ClientReset));
                }
                let passed = account.poll_deadlines(cx, upload, false);
                passed.map(|passed| Err(Cut::TooLong(passed)))
            })
            .await
        };
        match ended {
            Ok(Ok(Leader {
                hop,
                stream,
                response,
            })) => {
                self.account.sent_at(&stream.place);
                self.account.hop = Some(hop);
                self.answered(stream, response)
            }
            Ok(Err(Lost::Unreached(failure))) => {
                self.account.attempt_failed(failure);
                let rng = &self.account.peers.client.connection.worker.rng;
                Err(match policed.again_after(failure, true, rng) {
                    Some(pause) => TryEnd::Again(pause),
                    None => TryEnd::Refused(failure),
                })
            }
            Ok(Err(Lost::Invalid(error))) => {
                tracing::debug!(%error, "request cannot be sent on");
                let failure = Failure::BadRequest("request has no valid HTTP/2 form");
                Err(TryEnd::Refused(failure))
            }
            Ok(Err(Lost::NoAnswer(error))) => {
                self.account.attempt_failed(failure_of(&error));
                self.again(if is_unprocessed(&error) {
                    Fate::Refused
                } else {
                    Fate::Reset { has_left: true }
                })?;
                Err(TryEnd::Refused(failure_of(&error)))
            }
            Err(Cut::TooLong(passed)) => {
                let failure = self.account.passed(passed);
                self.account.attempt_failed(failure);
                if passed.is_of_try() {
                    self.again(Fate::TimedOut)?;
                }
                Err(TryEnd::Refused(failure))
            }
            Err(Cut::ClientReset) => Err(TryEnd::Over(Failure::ClientClosed)),
        }
    }
}

/// What ends a race that nobody has won.
enum Cut {
    ClientReset,
    TooLong(Passed),
}

/// A try whose answer has begun.
struct Leader {
    hop: Hop,
    stream: UpstreamStream,
    response: Response<RecvStream>,
}

/// Why nobody won.
enum Lost {
    Unreached(Failure),
    Invalid(h2::Error),
    /// The last try ended without an answer.
    NoAnswer(h2::Error),
}

impl Answered for Leader {
    fn is_reason(&self, retry: &Retry) -> bool {
        let headers = Lines(self.response.headers());
        let fate = Fate::Answered(AnswerHead {
            status: self.response.status().as_u16(),
            headers: &headers,
        });
        fate.is_reason(retry)
    }

    fn pass_over(mut self) {
        if let Some(outcome) = outcome_of(&self.response) {
            self.hop.report(outcome, Instant::now());
        }
    }
}

async fn lap(
    peers: &Peers,
    mut hop: Hop,
    request: Request<()>,
    body: Option<Whole>,
) -> Result<Leader, Lost> {
    let sessions = peers.sessions(&hop);
    let (response, sink, place) = loop {
        let place = match sessions.place(None) {
            Some(place) => place,
            None => match sessions.wait_for_place(None).await {
                Ok(place) => place,
                Err(failure) => {
                    hop.report(Outcome::LocalOriginFailure, Instant::now());
                    return Err(Lost::Unreached(failure));
                }
            },
        };
        match place.session.send(again(&request), body.is_none()) {
            Ok((response, sink)) => break (response, sink, place),
            Err(Unsent::SessionOver) => sessions.retire(&place.session),
            Err(Unsent::Invalid(error)) => return Err(Lost::Invalid(error)),
        }
    };
    let mut stream = UpstreamStream {
        response,
        sink,
        place,
    };
    match ask(&mut stream, body).await {
        Ok(response) => Ok(Leader {
            hop,
            stream,
            response,
        }),
        Err(error) => {
            if error.is_go_away() {
                sessions.retire(&stream.place.session);
            }
            hop.report(Outcome::LocalOriginFailure, Instant::now());
            Err(Lost::NoAnswer(error))
        }
    }
}

/// h2 does not give back what it could not send.
fn again(request: &Request<()>) -> Request<()> {
    let mut again = Request::new(());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.version_mut() = request.version();
    again
}

/// Sends the body and waits for the head of the answer, whichever comes first.
async fn ask(
    stream: &mut UpstreamStream,
    body: Option<Whole>,
) -> Result<Response<RecvStream>, h2::Error> {
    let UpstreamStream { response, sink, .. } = stream;
    let mut sending = pin!(send(sink, body));
    let mut is_sent = false;
    poll_fn(|cx| {
        // An endpoint that takes no more may have answered nevertheless.
        is_sent = is_sent || sending.as_mut().poll(cx).is_ready();
        // Interim answers are those of tries, and not of the request.
        while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            interim?;
        }
        Pin::new(&mut *response).poll(cx)
    })
    .await
}

async fn send(sink: &mut SendStream<Bytes>, body: Option<Whole>) -> Result<(), h2::Error> {
    let Some(body) = body else {
        return Ok(());
    };
    for mut chunk in body.chunks {
        while !chunk.is_empty() {
            sink.reserve_capacity(chunk.len());
            let Some(room) = poll_fn(|cx| sink.poll_capacity(cx)).await else {
                return Ok(());
            };
            let part = chunk.split_to(room?.min(chunk.len()));
            sink.send_data(part, false)?;
        }
    }
    match body.trailers {
        Some(trailers) => sink.send_trailers(trailers),
        None => sink.send_data(Bytes::new(), true),
    }
}
