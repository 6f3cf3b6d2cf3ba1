//! One stream of a client: a request, where it goes, and its response.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{HOST, SET_COOKIE},
    request::Parts,
};
use outrigger_config::{Headers, HttpRequest};

use super::{
    account::Account,
    admission,
    body::Body,
    edit,
    hedge::{Leader, Lost, Race},
    mirror::{Copies, Recorded},
    peers::RunningExchange,
    relay::{Relay, Relayed, UpstreamStream, failure_of, reason_to_tell},
    session::Unsent,
    sessions::{Place, Sessions},
    settings::STREAM_WINDOW,
    upload::Upload,
};
use crate::{
    cluster::Outcome,
    dispatch::{Key, Tried, Way, without_port},
    failure::Failure,
    forward::{
        deadlines::Passed,
        policed::{ATTEMPT_COUNT, Policed, is_grpc},
        respond,
    },
    retry::{AnswerHead, Fate, grpc},
    route,
};

/// How often a request that was not processed is sent again; then its client is told, and may try
/// again itself. Against an nginx that ends each connection after 100 requests, with 128 streams
/// at a time, 3 replays were too few for 4 of 230,000 requests and 8 for none.
pub(super) const MAX_REPLAYS: usize = 8;

/// Serves one request to its end. What outlives the first poll is prepared here, so that the task
/// holds (and moves) no more than that: there may be a thousand for each client.
pub(super) fn run(
    running: RunningExchange,
    request: Request<RecvStream>,
    mut client: SendResponse<Bytes>,
) -> impl Future<Output = ()> + use<> {
    let (head, body) = request.into_parts();
    let peers = running.peers();
    let mut upload = Upload::new(
        (!body.is_end_stream())
            .then(|| Box::new(Body::new(body, peers.client.window.clone()).replayable())),
    );
    let mut account = Account::open(peers.clone(), head);
    async move {
        let failure = forward(&mut upload, &mut client, &mut account).await.err();
        if let Some(copies) = account.copies.take() {
            copies.send(&account.peers);
        }
        account.close(failure);
        upload.read_off().await;
        drop(running);
    }
}

async fn forward(
    upload: &mut Upload,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<(), Failure> {
    let limits = account.peers.client.connection.worker.settings().limits;
    if account.head.headers.len() > limits.max_headers {
        return Err(refuse(client, account, Failure::HeadTooLarge));
    }
    let Some(mut relay) = begin(upload, client, account).await? else {
        return Ok(());
    };
    let relayed = poll_fn(|cx| match relay.poll(cx, upload, account) {
        Poll::Pending => account
            .poll_deadlines(cx, upload, true)
            .map(Relayed::TooLong),
        ready => ready,
    });
    match relayed.await {
        Relayed::Complete => Ok(()),
        Relayed::ClientReset(reason) => {
            relay.upstream.sink.send_reset(reason);
            Err(Failure::ClientClosed)
        }
        Relayed::UpstreamFailed(reason, failure) => {
            // A reset drops what h2 has not sent yet: first let go what was answered before it.
            tokio::task::yield_now().await;
            relay.client.send_reset(reason);
            Err(failure)
        }
        Relayed::TooLong(passed) => {
            let failure = account.passed(passed);
            relay.upstream.sink.send_reset(Reason::CANCEL);
            // A call can be told its status behind what it has got; everything else is cut off.
            let is_told = account.is_grpc()
                && relay
                    .client
                    .send_trailers(respond::grpc_trailers(failure))
                    .is_ok();
            if !is_told {
                tokio::task::yield_now().await;
                relay.client.send_reset(Reason::INTERNAL_ERROR);
            }
            Err(failure)
        }
    }
}

/// Sends the request until an upstream answers it; nothing is left to relay if that is all.
async fn begin(
    upload: &mut Upload,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<Option<Relay>, Failure> {
    let key = route(account);
    account.begin_trace();
    // What its route answers itself or does not admit ends here.
    let mut added = Vec::new();
    if account.routed.has_rate_limits() {
        match Box::pin(admission::admit(client, account)).await? {
            Ok(lines) => added = lines,
            Err(answer) => return send_answer(client, account, *answer),
        }
    }
    if account.routed.route.is_some() {
        if let Some(mut answer) = answer_of_route(client, account).await? {
            answer.headers.extend(added);
            return send_answer(client, account, answer);
        }
        prepare(upload, account);
    }
    if let Some(policed) = &account.policed {
        upload.keep(policed.keeps(None));
    }
    match way(account, &key).choose() {
        Ok(hop) => account.hop = Some(hop),
        Err(failure) => return Err(refuse(client, account, failure)),
    }
    let mut asking = Asking {
        upload,
        client,
        account,
        key,
        added,
        replays: 0,
        refused: None,
        tried: Tried::default(),
        hedge_delay: None,
    };
    if let Some(delay) = asking.account.hedge_delay() {
        // Large while under way, and rare.
        asking.hedge_delay = match Box::pin(asking.collect()).await {
            Ok(is_whole) => is_whole.then_some(delay),
            Err(Failure::ClientClosed) => return Err(Failure::ClientClosed),
            Err(failure) => return Err(refuse(asking.client, asking.account, failure)),
        };
    }
    loop {
        let again = match asking.try_once().await {
            Ok(relay) => return Ok(relay),
            Err(TryEnd::Over(failure)) => return Err(failure),
            Err(TryEnd::Refused(failure)) => Err(failure),
            Err(TryEnd::Elsewhere) => Ok(()),
            Err(TryEnd::Again(pause)) => {
                asking.account.end_attempt();
                Box::pin(asking.another(pause)).await
            }
        };
        match again {
            Ok(()) => asking.account.trace_again(),
            Err(Failure::ClientClosed) => return Err(Failure::ClientClosed),
            Err(failure) => return Err(refuse(asking.client, asking.account, failure)),
        }
    }
}

/// A request until its answer begins.
struct Asking<'a> {
    upload: &'a mut Upload,
    client: &'a mut SendResponse<Bytes>,
    account: &'a mut Account,
    key: Key,
    /// To the answer, by limits.
    added: Vec<(HeaderName, HeaderValue)>,
    replays: usize,
    /// Where it was not processed.
    refused: Option<Place>,
    tried: Tried,
    /// After how long another try begins beside the one under way; the request is whole then.
    hedge_delay: Option<Duration>,
}

/// Why a try did not become an exchange.
enum TryEnd {
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
    async fn try_once(&mut self) -> Result<Option<Relay>, TryEnd> {
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

    /// Holds the whole body, if it is not too long: only a whole request can be hedged.
    async fn collect(&mut self) -> Result<bool, Failure> {
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
    async fn race(&mut self, delay: Duration) -> Result<Option<Relay>, TryEnd> {
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
                peers: &account.peers,
                way: way(account, key),
                policed: &policed,
                request: &|| outgoing(account),
                body,
            };
            let mut racing = pin!(race.run(hop, delay, tried));
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
    fn answered(
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
    fn again(&mut self, fate: Fate<'_>) -> Result<(), TryEnd> {
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
    async fn another(&mut self, pause: Duration) -> Result<(), Failure> {
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

/// Where the routes send the request, and what chooses its endpoint there.
fn route(account: &mut Account) -> Key {
    let connection = &account.peers.client.connection;
    if !connection.worker.has_routes() {
        return Key::default();
    }
    let headers = Lines(&account.head.headers);
    let routed = connection.route_request(as_request(&account.head, &headers));
    let client = connection.client.0.ip();
    let key = routed.target.key(&connection.worker, client, &headers);
    let is_idempotent = account.head.method.is_idempotent();
    account.policed = Policed::begin(&routed, is_idempotent, &headers, &mut None).map(Rc::new);
    account.routed = routed;
    key
}

/// As routes see it.
pub(super) fn as_request<'a>(head: &'a Parts, headers: &'a Lines<'a>) -> HttpRequest<'a> {
    HttpRequest {
        host: authority(head).and_then(without_port),
        method: head.method.as_str(),
        path: head.uri.path_and_query().map(|p| p.as_str().as_bytes()),
        headers,
    }
}

/// The host that a request names, with its port.
fn authority(head: &Parts) -> Option<&[u8]> {
    let authority = head.uri.authority().map(|a| a.as_str().as_bytes());
    authority.or(head.headers.get(HOST).map(HeaderValue::as_bytes))
}

/// What the request's route answers in an upstream's place, after the delay that it may ask for.
async fn answer_of_route(
    client: &mut SendResponse<Bytes>,
    account: &Account,
) -> Result<Option<route::Answer>, Failure> {
    let connection = &account.peers.client.connection;
    let headers = Lines(&account.head.headers);
    let fault = account.routed.fault(Some(&headers), &connection.worker.rng);
    if let Some(delay) = fault.as_ref().and_then(|fault| fault.delay) {
        let mut slept = Box::pin(tokio::time::sleep(delay));
        let waited = poll_fn(|cx| match slept.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => poll_client_reset(cx, client).map(|_| Err(Failure::ClientClosed)),
        });
        waited.await?;
    }
    if let Some(abort) = fault.and_then(|fault| fault.abort) {
        return Ok(Some(abort));
    }
    if !account.routed.answers_itself() {
        return Ok(None);
    }
    let original = connection.original.0.to_string();
    let authority = authority(&account.head).unwrap_or(original.as_bytes());
    let request = as_request(&account.head, &headers);
    Ok(account.routed.answer(&request, authority))
}

/// Answers in an upstream's place, as the route wants it.
fn send_answer(
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
    answer: route::Answer,
) -> Result<Option<Relay>, Failure> {
    let is_end = account.head.method == Method::HEAD || answer.body.is_empty();
    let (head, ()) = respond::http2_answer(&answer).into_parts();
    account.answered(&head);
    let Ok(mut client) = client.send_response(Response::from_parts(head, ()), is_end) else {
        return Err(Failure::ClientClosed);
    };
    if !is_end {
        account.add_sent(answer.body.len() as u64);
        // Fails only if the client is gone, and then nobody wants it.
        let _ = client.send_data(answer.body, true);
    }
    answer.failure.map_or(Ok(None), Err)
}

/// Makes of the request what its route wants sent on, and tells of which copies are to be made.
fn prepare(upload: &mut Upload, account: &mut Account) {
    let Some(route) = account.routed.route.clone() else {
        return;
    };
    if route.edits_request() {
        edit::request(account, &route);
    }
    let copies = account
        .routed
        .copies(&account.peers.client.connection.worker.rng);
    let largest = copies.iter().map(|copy| copy.max_body_bytes).max();
    let Some(largest) = largest.filter(|_| account.head.method != Method::CONNECT) else {
        return;
    };
    let body = upload.has_body().then(|| Recorded::up_to(largest));
    let copies = Copies {
        copies,
        request: outgoing(account),
        body: body.clone(),
    };
    match body {
        None => copies.send(&account.peers),
        Some(body) => {
            upload.copy_to(body);
            account.copies = Some(Box::new(copies));
        }
    }
}

/// The header lines as routes see them.
#[derive(Debug)]
pub(super) struct Lines<'a>(pub(super) &'a HeaderMap);

impl Headers for Lines<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for value in self.0.get_all(name) {
            visit(value.as_bytes());
        }
    }
}

fn way<'a>(account: &'a Account, key: &'a Key) -> Way<'a> {
    let connection = &account.peers.client.connection;
    Way {
        worker: &connection.worker,
        original: connection.original,
        target: &account.routed.target,
        key,
    }
}

/// What ends a race that nobody has won.
enum Cut {
    ClientReset,
    TooLong(Passed),
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

/// Ready when the client has given up; a client that is gone counts as one that cancels.
pub(super) fn poll_client_reset(
    cx: &mut Context<'_>,
    client: &mut SendResponse<Bytes>,
) -> Poll<Reason> {
    client
        .poll_reset(cx)
        .map(|reset| reset.unwrap_or(Reason::CANCEL))
}

/// The request as it is sent on: as it came, but for what its route's policy tells the endpoint. Cloned,
/// because h2 does not give back what an upstream refuses.
fn outgoing(account: &Account) -> Request<()> {
    let head = &account.head;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    // Without `:authority` h2 takes requests of an older version only, and gives them the scheme.
    let is_without_authority = head.uri.authority().is_none() && head.method != Method::CONNECT;
    *request.version_mut() = if is_without_authority {
        Version::HTTP_11
    } else {
        Version::HTTP_2
    };
    if let Some(protocol) = head.extensions.get::<h2::ext::Protocol>() {
        request.extensions_mut().insert(protocol.clone());
    }
    if let Some(policed) = &account.policed {
        let timeout = policed.grpc_timeout();
        let attempt = policed.attempt().map(|attempt| attempt.to_string());
        for (name, value) in [(grpc::TIMEOUT, timeout), (ATTEMPT_COUNT, attempt)] {
            if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
                request.headers_mut().insert(name, value);
            }
        }
    }
    account.write_trace(request.headers_mut());
    request
}

/// Whether the upstream has said that it did not process the request: by REFUSED_STREAM, or by a
/// GOAWAY whose last stream was an earlier one (h2 fails just those streams with it).
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

/// Answers in the upstream's place.
fn refuse(client: &mut SendResponse<Bytes>, account: &mut Account, failure: Failure) -> Failure {
    let is_grpc = is_grpc(&Lines(&account.head.headers));
    let (head, body) = if is_grpc {
        (respond::grpc(failure), Bytes::new())
    } else {
        respond::http2(failure)
    };
    // Nothing follows the head of either.
    let is_head = is_grpc || account.head.method == Method::HEAD;
    let (head, ()) = head.into_parts();
    account.answered(&head);
    // Each fails only if the client is gone, and then nobody wants it.
    if let Ok(mut client) = client.send_response(Response::from_parts(head, ()), is_head)
        && !is_head
    {
        account.add_sent(body.len() as u64);
        let _ = client.send_data(body, true);
    }
    failure
}
