//! Tries of one request beside each other: the first good answer wins, and the other streams are
//! cancelled. What is raced for is the head of an answer; its relay is as ever.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::time::sleep;

use super::{account::outcome_of, peers::Peers, relay::UpstreamStream, session::Unsent};
use crate::{
    cluster::Outcome,
    dispatch::{Hop, Tried, Way},
    failure::Failure,
    forward::policed::Policed,
    retry::{AnswerHead, Fate},
};

/// A whole body.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub(super) chunks: Vec<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
}

pub(super) struct Race<'a> {
    pub(super) peers: &'a Rc<Peers>,
    pub(super) way: Way<'a>,
    pub(super) policed: &'a Policed,
    /// The request as it goes to the next endpoint.
    pub(super) request: &'a dyn Fn() -> Request<()>,
    /// None if it has none.
    pub(super) body: Option<Whole>,
}

/// A try whose answer has begun.
pub(super) struct Leader {
    pub(super) hop: Hop,
    pub(super) stream: UpstreamStream,
    pub(super) response: Response<RecvStream>,
}

/// Why nobody won.
pub(super) enum Lost {
    Unreached(Failure),
    Invalid(h2::Error),
    /// The last try ended without an answer.
    NoAnswer(h2::Error),
}

#[expect(clippy::large_enum_variant, reason = "taken apart where it is made")]
enum Event {
    Ended(Result<Leader, Lost>),
    Due,
}

type Lap = Pin<Box<dyn Future<Output = Result<Leader, Lost>>>>;

impl Race<'_> {
    /// Tries at `first`, and each `delay` at another endpoint, until there is an answer or nobody is left.
    pub(super) async fn run(
        &self,
        first: Hop,
        delay: Duration,
        tried: &mut Tried,
    ) -> Result<Leader, Lost> {
        tried.begin_again(Some(first.peer));
        let mut laps = vec![self.lap(first)];
        let mut due = Box::pin(sleep(delay));
        let mut may_hedge = true;
        loop {
            let event = poll_fn(|cx| {
                for place in 0..laps.len() {
                    if let Poll::Ready(ended) = laps[place].as_mut().poll(cx) {
                        drop(laps.swap_remove(place));
                        return Poll::Ready(Event::Ended(ended));
                    }
                }
                if may_hedge && due.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::Due);
                }
                Poll::Pending
            });
            match event.await {
                Event::Due => {
                    may_hedge = match self.begin_another(tried) {
                        Some(lap) => {
                            laps.push(lap);
                            due = Box::pin(sleep(delay));
                            true
                        }
                        None => false,
                    };
                }
                Event::Ended(Ok(leader)) if laps.is_empty() || !self.is_reason(&leader) => {
                    return Ok(leader);
                }
                // The others may do better.
                Event::Ended(Ok(mut leader)) => {
                    if let Some(outcome) = outcome_of(&leader.response) {
                        leader.hop.report(outcome, Instant::now());
                    }
                }
                Event::Ended(Err(lost)) if laps.is_empty() => return Err(lost),
                Event::Ended(Err(_)) => {}
            }
        }
    }

    fn begin_another(&self, tried: &mut Tried) -> Option<Lap> {
        if !self.policed.hedge() {
            return None;
        }
        let prefers_others = self.policed.prefers_others();
        let hop = self.way.choose_another(tried, prefers_others).ok()?;
        tried.begin_again(Some(hop.peer));
        Some(self.lap(hop))
    }

    fn lap(&self, hop: Hop) -> Lap {
        Box::pin(lap(
            self.peers.clone(),
            hop,
            (self.request)(),
            self.body.clone(),
        ))
    }

    /// Whether the answer would have the request sent again, were it the only one.
    fn is_reason(&self, leader: &Leader) -> bool {
        let headers = super::exchange::Lines(leader.response.headers());
        let fate = Fate::Answered(AnswerHead {
            status: leader.response.status().as_u16(),
            headers: &headers,
        });
        self.policed.retry().is_some_and(|r| fate.is_reason(r))
    }
}

async fn lap(
    peers: Rc<Peers>,
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
