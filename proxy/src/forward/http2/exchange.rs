//! One stream of a client: a request, where it goes, and its response.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Version,
    header::{HOST, SET_COOKIE},
    request::Parts,
};
use outrigger_config::{Headers, HttpRequest};

use super::{
    account::Account,
    body::Body,
    peers::RunningExchange,
    relay::{Relay, Relayed, UpstreamStream, failure_of, reason_to_tell},
    session::Unsent,
    sessions::{Place, Sessions},
    upload::Upload,
};
use crate::{
    cluster::Outcome,
    dispatch::{Key, Tried, Way, without_port},
    failure::Failure,
    forward::respond,
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
        account.close(failure);
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
    match poll_fn(|cx| relay.poll(cx, upload, account)).await {
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
    }
}

/// Sends the request until an upstream answers it; nothing is left to relay if that is all.
async fn begin(
    upload: &mut Upload,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<Option<Relay>, Failure> {
    let mut replays = 0;
    let mut refused: Option<Place> = None;
    let mut tried = Tried::default();
    let key = route(account);
    // What its route answers itself or does not admit ends here.
    match way(account, &key).choose() {
        Ok(hop) => account.hop = Some(hop),
        Err(failure) => return Err(refuse(client, account, failure)),
    }
    loop {
        let sessions = match &account.hop {
            Some(hop) => account.peers.sessions(hop),
            None => return Err(refuse(client, account, Failure::Internal)),
        };
        let place = match place(refused.as_ref(), client, &sessions).await {
            Ok(place) => place,
            Err(Failure::ClientClosed) => return Err(Failure::ClientClosed),
            Err(failure) => match try_another(account, &key, failure, &mut tried) {
                Ok(()) => {
                    refused = None;
                    continue;
                }
                Err(failure) => return Err(refuse(client, account, failure)),
            },
        };
        let is_end = !upload.has_body();
        let (response, sink) = match place.session.send(outgoing(&account.head), is_end) {
            Ok(stream) => stream,
            Err(Unsent::SessionOver) => {
                sessions.retire(&place.session);
                continue;
            }
            Err(Unsent::Invalid(error)) => {
                tracing::debug!(%error, "request cannot be sent on");
                let failure = Failure::BadRequest("request has no valid HTTP/2 form");
                return Err(refuse(client, account, failure));
            }
        };
        account.sent_at(&place);
        let mut stream = UpstreamStream {
            response,
            sink,
            place,
        };
        let mut is_informed = false;
        let answer =
            poll_fn(|cx| poll_answer(cx, &mut stream, client, upload, account, &mut is_informed));
        let error = match answer.await {
            Answer::Response(mut response) => {
                account.report(Outcome::of_status(response.status().as_u16()));
                let cookie = key.set_cookie.as_deref().map(HeaderValue::try_from);
                if let Some(Ok(cookie)) = cookie {
                    response.headers_mut().append(SET_COOKIE, cookie);
                }
                return Relay::start(stream, response, client, upload, account);
            }
            Answer::ClientReset(reason) => {
                stream.sink.send_reset(reason);
                return Err(Failure::ClientClosed);
            }
            Answer::Failed(error) => error,
        };
        if error.is_go_away() {
            sessions.retire(&stream.place.session);
        }
        let is_unprocessed = is_unprocessed(&error);
        let may_replay = is_unprocessed
            // A reused connection may have been closed before the request came; a peer that has
            // processed it all the same does no harm if the method is idempotent.
            || error.is_io() && stream.place.is_reused && account.head.method.is_idempotent();
        if may_replay && !is_informed && replays < MAX_REPLAYS && upload.rewind() {
            replays += 1;
            refused = Some(stream.place);
            continue;
        }
        account.report(Outcome::LocalOriginFailure);
        if is_unprocessed {
            // The client may do what we could not.
            client.send_reset(Reason::REFUSED_STREAM);
            return Err(Failure::UpstreamClosed);
        }
        if error.is_reset() && error.is_remote() {
            client.send_reset(reason_to_tell(&error));
            return Err(Failure::UpstreamClosed);
        }
        return Err(refuse(client, account, failure_of(&error)));
    }
}

/// Where the routes send the request, and what chooses its endpoint there.
fn route(account: &mut Account) -> Key {
    let connection = &account.peers.client.connection;
    if !connection.worker.has_routes() {
        return Key::default();
    }
    let head = &account.head;
    let authority = head.uri.authority().map(|a| a.as_str().as_bytes());
    let host = head.headers.get(HOST).map(HeaderValue::as_bytes);
    let headers = Lines(&head.headers);
    let routed = connection.route_request(HttpRequest {
        host: authority.or(host).and_then(without_port),
        method: head.method.as_str(),
        path: head.uri.path_and_query().map(|p| p.as_str().as_bytes()),
        headers: &headers,
    });
    let client = connection.client.0.ip();
    let key = routed.target.key(&connection.worker, client, &headers);
    account.routed = routed;
    key
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

/// The endpoint took no connection.
fn try_another(
    account: &mut Account,
    key: &Key,
    failure: Failure,
    tried: &mut Tried,
) -> Result<(), Failure> {
    let hop = account.hop.take().ok_or(failure)?;
    account.failed.note(hop.peer, failure);
    hop.failed(failure, tried)?;
    account.hop = way(account, key).choose_after(tried)?;
    account.hop.is_some().then_some(()).ok_or(failure)
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

/// A place to send the request, not where it was `refused`.
async fn place(
    refused: Option<&Place>,
    client: &mut SendResponse<Bytes>,
    sessions: &Rc<Sessions>,
) -> Result<Place, Failure> {
    let avoid = refused.map(|p| &p.session);
    if let Some(place) = sessions.place(avoid) {
        return Ok(place);
    }
    let mut waiting = pin!(sessions.wait_for_place(avoid));
    poll_fn(|cx| match waiting.as_mut().poll(cx) {
        Poll::Ready(place) => Poll::Ready(place),
        Poll::Pending => poll_client_reset(cx, client).map(|_| Err(Failure::ClientClosed)),
    })
    .await
}

enum Answer {
    Response(Response<RecvStream>),
    ClientReset(Reason),
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
    poll_client_reset(cx, client).map(Answer::ClientReset)
}

/// Ready when the client has given up; a client that is gone counts as one that cancels.
fn poll_client_reset(cx: &mut Context<'_>, client: &mut SendResponse<Bytes>) -> Poll<Reason> {
    client
        .poll_reset(cx)
        .map(|reset| reset.unwrap_or(Reason::CANCEL))
}

/// The request as it is sent on: as it came. Cloned, because h2 does not give back what an upstream
/// refuses.
fn outgoing(head: &Parts) -> Request<()> {
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
    request
}

/// Whether the upstream has said that it did not process the request: by REFUSED_STREAM, or by a
/// GOAWAY whose last stream was an earlier one (h2 fails just those streams with it).
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

/// Answers in the upstream's place.
fn refuse(client: &mut SendResponse<Bytes>, account: &mut Account, failure: Failure) -> Failure {
    let (head, body) = respond::http2(failure);
    let is_head = account.head.method == Method::HEAD;
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
