//! A request until its answer begins: a try at one endpoint after the other.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderName, HeaderValue, Response, StatusCode, header::SET_COOKIE};

use super::{
    account::Account,
    edit,
    exchange::poll_client_reset,
    relay::{Relay, UpstreamStream, failure_of, reason_to_tell},
    request::{Lines, outgoing},
    routing::way,
    session::Unsent,
    sessions::{Place, Sessions},
    upload::Upload,
};
use crate::{
    cluster::Outcome,
    dispatch::{Key, Tried},
    failure::Failure,
    forward::deadlines::Passed,
    retry::{AnswerHead, Fate},
};

/// How often a request that was not processed is sent again; then its client is told, and may try
/// again itself. Against an nginx that ends each connection after 100 requests, with 128 streams
/// at a time, 3 replays were too few for 4 of 230,000 requests and 8 for none.
pub(super) const MAX_REPLAYS: usize = 8;

/// A request until its answer begins.
pub(super) struct Asking<'a> {
    pub(super) upload: &'a mut Upload,
    pub(super) client: &'a mut SendResponse<Bytes>,
    pub(super) account: &'a mut Account,
    pub(super) key: Key,
    /// To the answer, by limits.
    pub(super) added: Vec<(HeaderName, HeaderValue)>,
    pub(super) replays: usize,
    /// Where it was not processed.
    pub(super) refused: Option<Place>,
    pub(super) tried: Tried,
    /// After how long another try begins beside the one under way; the request is whole then.
    pub(super) hedge_delay: Option<Duration>,
}

/// Why a try did not become an exchange.
pub(super) enum TryEnd {
    /// The client knows it already, or is gone.
    Over(Failure),
    /// There is no answer but our own.
    Refused(Failure),
    /// The next try can begin at once.
    Elsewhere,
    /// The route's policy asks for another try, after this pause.
    Again(Duration),
}

impl Asking<'_> {
    pub(super) async fn try_once(&mut self) -> Result<Option<Relay>, TryEnd> {
        if let Some(delay) = self.hedge_delay {
            return Box::pin(self.race(delay)).await;
        }
        let Some(hop) = &self.account.hop else {
            return Err(TryEnd::Refused(Failure::Internal));
        };
        let sessions = self.account.peers.sessions(hop);
        let place = match self.place(&sessions).await {
            Ok(place) => place,
            Err(Failure::ClientClosed) => return Err(TryEnd::Over(Failure::ClientClosed)),
            Err(failure) => return Err(self.unreached(failure)),
        };
        if let Some(host) = self.account.routed.auto_host(place.session.peer) {
            edit::set_host(self.account, &host);
        }
        let is_end = !self.upload.has_body();
        let (response, sink) = match place.session.send(outgoing(self.account), is_end) {
            Ok(stream) => stream,
            Err(Unsent::SessionOver) => {
                sessions.retire(&place.session);
                return Err(TryEnd::Elsewhere);
            }
            Err(Unsent::Invalid(error)) => {
                tracing::debug!(%error, "request cannot be sent on");
                let failure = Failure::BadRequest("request has no valid HTTP/2 form");
                return Err(TryEnd::Refused(failure));
            }
        };
        self.account.sent_at(&place);
        let mut stream = UpstreamStream {
            response,
            sink,
            place,
        };
        let mut is_informed = false;
        let Self {
            client,
            upload,
            account,
            ..
        } = self;
        let answer =
            poll_fn(|cx| poll_answer(cx, &mut stream, client, upload, account, &mut is_informed));
        match answer.await {
            Answer::Response(response) => self.answered(stream, response),
            Answer::ClientReset(reason) => {
                stream.sink.send_reset(reason);
                Err(TryEnd::Over(Failure::ClientClosed))
            }
            Answer::TooLong(passed) => {
                stream.sink.send_reset(Reason::CANCEL);
                if passed.tells_of_endpoint(self.upload.is_received()) {
                    self.account.report(Outcome::LocalOriginFailure);
                }
                let failure = self.account.passed(passed);
                self.account.attempt_failed(failure);
                if passed.is_of_try() {
                    self.again(Fate::TimedOut)?;
                }
                Err(TryEnd::Refused(failure))
            }
            Answer::Failed(error) => {
                if error.is_go_away() {
                    sessions.retire(&stream.place.session);
                }
                Err(self.failed(stream, &error, is_informed))
            }
        }
    }

    /// A place to send the request, not where it was refused.
    async fn place(&mut self, sessions: &Rc<Sessions>) -> Result<Place, Failure> {
        let avoid = self.refused.as_ref().map(|p| &p.session);
        if let Some(place) = sessions.place(avoid) {
            return Ok(place);
        }
        let mut waiting = pin!(sessions.wait_for_place(avoid));
        let Self {
            client,
            upload,
            account,
            ..
        } = self;
        poll_fn(|cx| {
            if let Poll::Ready(place) = waiting.as_mut().poll(cx) {
                return Poll::Ready(place);
            }
            if poll_client_reset(cx, client).is_ready() {
                return Poll::Ready(Err(Failure::ClientClosed));
            }
            let passed = account.poll_deadlines(cx, upload, false);
            passed.map(|passed| Err(account.passed(passed)))
        })
        .await
    }

    /// The endpoint took no connection: another one, or another try, or none.
    fn unreached(&mut self, failure: Failure) -> TryEnd {
        self.account.attempt_failed(failure);
        let Some(hop) = self.account.hop.take() else {
            return TryEnd::Refused(failure);
        };
        self.account.failed.note(hop.peer, failure);
        let next = hop.failed(failure, &mut self.tried).and_then(|()| {
            let next = way(self.account, &self.key).choose_after(&self.tried)?;
            next.ok_or(failure)
        });
        match next {
            Ok(hop) => {
                self.account.hop = Some(hop);
                self.refused = None;
                TryEnd::Elsewhere
            }
            Err(failure) => {
                let connection = &self.account.peers.client.connection;
                let rng = &connection.worker.rng;
                let policed = self.account.policed.as_ref();
                match policed.and_then(|p| p.again_after(failure, true, rng)) {
                    Some(pause) => TryEnd::Again(pause),
                    None => TryEnd::Refused(failure),
                }
            }
        }
    }

    /// The head of an answer is there: the client gets it, or another try is made in its place.
    pub(super) fn answered(
        &mut self,
        mut stream: UpstreamStream,
        mut response: Response<RecvStream>,
    ) -> Result<Option<Relay>, TryEnd> {
        let status = response.status().as_u16();
        self.account.report_answer(&response);
        (self.account).note_answer(response.status(), response.headers());
        let headers = Lines(response.headers());
        let fate = Fate::Answered(AnswerHead {
            status,
            headers: &headers,
        });
        if let Err(again) = self.again(fate) {
            self.account
                .failed
                .answered(stream.place.session.peer, status);
            stream.sink.send_reset(Reason::CANCEL);
            return Err(again);
        }
        if let Some(policed) = &self.account.policed {
            policed.settle(status);
        }
        if self.hedge_delay.is_some() {
            self.upload.finish();
        }
        let route = self.account.routed.route.as_ref();
        if let Some(edits) = route.and_then(|r| r.response_headers.as_ref()) {
            edits.apply(response.headers_mut());
        }
        let cookie = self.key.set_cookie.as_deref().map(HeaderValue::try_from);
        if let Some(Ok(cookie)) = cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        for (name, value) in self.added.drain(..) {
            response.headers_mut().append(name, value);
        }
        Relay::start(stream, response, self.client, self.upload, self.account).map_err(TryEnd::Over)
    }

    /// There was no answer.
    fn failed(&mut self, stream: UpstreamStream, error: &h2::Error, is_informed: bool) -> TryEnd {
        self.account.attempt_failed(failure_of(error));
        (self.account.failed).broke(stream.place.session.peer, failure_of(error));
        let is_unprocessed = is_unprocessed(error);
        let may_replay = is_unprocessed
            // A reused connection may have been closed before the request came; a peer that has
            // processed it all the same does no harm if the method is idempotent.
            || error.is_io() && stream.place.is_reused && self.account.head.method.is_idempotent();
        if may_replay && !is_informed && self.replays < MAX_REPLAYS && self.upload.rewind() {
            self.replays += 1;
            self.refused = Some(stream.place);
            return TryEnd::Elsewhere;
        }
        self.account.report(Outcome::LocalOriginFailure);
        let fate = if is_unprocessed {
            Fate::Refused
        } else {
            Fate::Reset { has_left: true }
        };
        if let Err(again) = self.again(fate) {
            return again;
        }
        if is_unprocessed {
            // The client may do what we could not.
            self.client.send_reset(Reason::REFUSED_STREAM);
            return TryEnd::Over(Failure::UpstreamClosed);
        }
        if error.is_reset() && error.is_remote() {
            self.client.send_reset(reason_to_tell(error));
            return TryEnd::Over(Failure::UpstreamClosed);
        }
        TryEnd::Refused(failure_of(error))
    }

    /// # Errors
    /// Another try, if the route's policy asks for one.
    pub(super) fn again(&mut self, fate: Fate<'_>) -> Result<(), TryEnd> {
        let Some(policed) = &self.account.policed else {
            return Ok(());
        };
        let rng = &self.account.peers.client.connection.worker.rng;
        match policed.again(fate, self.upload.is_kept(), rng) {
            Some(pause) if self.upload.rewind() => Err(TryEnd::Again(pause)),
            _ => Ok(()),
        }
    }

    /// Waits, and chooses where to try next.
    pub(super) async fn another(&mut self, pause: Duration) -> Result<(), Failure> {
        let last = self.account.hop.take();
        self.tried.begin_again(last.as_ref().map(|hop| hop.peer));
        // It is not under way there any more.
        drop(last);
        self.refused = None;
        let Some(policed) = self.account.policed.clone() else {
            return Err(Failure::Internal);
        };
        policed.deadlines.end_try();
        let client_gone = poll_fn(|cx| poll_client_reset(cx, self.client));
        policed.pause(pause, client_gone).await?;
        let way = way(self.account, &self.key);
        let hop = way.choose_another(&self.tried, policed.prefers_others())?;
        self.account.hop = Some(hop);
        Ok(())
    }
}

enum Answer {
    Response(Response<RecvStream>),
    ClientReset(Reason),
    TooLong(Passed),
    Failed(h2::Error),
}

/// Relays the request's body and interim responses until the response begins.
fn poll_answer(
    cx: &mut Context<'_>,
    stream: &mut UpstreamStream,
    client: &mut SendResponse<Bytes>,
    upload: &mut Upload,
    account: &mut Account,
    is_informed: &mut bool,
) -> Poll<Answer> {
    if let Poll::Ready(reason) = upload.poll(cx, &mut stream.sink, account) {
        return Poll::Ready(Answer::ClientReset(reason));
    }
    loop {
        match stream.response.poll_informational(cx) {
            Poll::Ready(Some(Ok(interim))) => {
                // Which a client hears once, however often its request is sent.
                if interim.status() == StatusCode::CONTINUE && account.has_continued() {
                    continue;
                }
                *is_informed = true;
                // Fails only if the client has reset the stream, which is seen below.
                let _ = client.send_informational(interim);
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Answer::Failed(error)),
            Poll::Ready(None) => {
                if let Poll::Ready(response) = Pin::new(&mut stream.response).poll(cx) {
                    return Poll::Ready(match response {
                        Ok(response) => Answer::Response(response),
                        Err(error) => Answer::Failed(error),
                    });
                }
                break;
            }
            Poll::Pending => break,
        }
    }
    if let Poll::Ready(reason) = poll_client_reset(cx, client) {
        return Poll::Ready(Answer::ClientReset(reason));
    }
    account
        .poll_deadlines(cx, upload, false)
        .map(Answer::TooLong)
}

/// Whether the upstream has said that it did not process the request: by REFUSED_STREAM, or by a
/// GOAWAY whose last stream was an earlier one (h2 fails just those streams with it).
pub(super) fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}
