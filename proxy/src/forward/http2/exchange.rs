//! One stream of a client: a request, where it goes, and its response.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::{Method, Request, Response, Version, request::Parts};

use super::{
    account::Account,
    body::{Body, Ended},
    respond,
    session::Unsent,
    sessions::{Place, Sessions},
};
use crate::failure::Failure;

/// How often a request that was not processed is sent again. A client whose request is refused this
/// often is told so, and may try again itself.
const MAX_REPLAYS: usize = 3;

/// Serves one request to its end.
pub(super) async fn run(
    sessions: Rc<Sessions>,
    request: Request<RecvStream>,
    mut client: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let mut account = Account::open(sessions.clone(), &head);
    let upload =
        (!body.is_end_stream()).then(|| Body::new(body, sessions.window.clone()).replayable());
    let forwarded = forward(&sessions, head, upload, &mut client, &mut account).await;
    account.close(forwarded.err());
}

async fn forward(
    sessions: &Rc<Sessions>,
    head: Parts,
    upload: Option<Body>,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<(), Failure> {
    let limits = &sessions.connection.worker.shared.settings.limits;
    if head.headers.len() > limits.max_headers {
        return Err(refuse(client, account, Failure::HeadTooLarge));
    }
    let mut upload = Upload::new(upload, account);
    let (mut stream, response) = begin(sessions, head, client, &mut upload).await?;

    let (head, body) = response.into_parts();
    upload.account.answered(&head);
    let is_end = body.is_end_stream();
    let Ok(mut client) = client.send_response(Response::from_parts(head, ()), is_end) else {
        stream.sink.send_reset(Reason::CANCEL);
        return Err(Failure::ClientClosed);
    };
    if is_end && upload.body.is_none() {
        return Ok(());
    }
    upload.forget();
    let mut download = (!is_end).then(|| Body::new(body, stream.place.session.window().clone()));
    let relayed = poll_fn(|cx| {
        poll_relay(
            cx,
            &mut download,
            &mut client,
            &mut upload,
            &mut stream.sink,
        )
    })
    .await;
    if let Some(download) = &download {
        upload.account.add_sent(download.received());
    }
    match relayed {
        Relayed::Complete => Ok(()),
        Relayed::ClientReset(reason) => {
            stream.sink.send_reset(reason);
            Err(Failure::ClientClosed)
        }
        Relayed::UpstreamFailed(error) => {
            // A reset drops what h2 has not sent yet: first let go what was answered before it.
            tokio::task::yield_now().await;
            client.send_reset(reason_to_tell(&error));
            Err(match failure_of(&error) {
                Failure::UpstreamClosed => Failure::UpstreamIncomplete,
                failure => failure,
            })
        }
    }
}

/// A stream opened on a session.
struct UpstreamStream {
    response: ResponseFuture,
    sink: SendStream<Bytes>,
    // Dropped last: the place is free when the stream is gone.
    place: Place,
}

/// The request's body, if it has one that still matters.
struct Upload<'a> {
    body: Option<Body>,
    /// Whether all of it has been sent on.
    is_sent: bool,
    account: &'a mut Account,
}

impl<'a> Upload<'a> {
    fn new(body: Option<Body>, account: &'a mut Account) -> Self {
        Self {
            is_sent: body.is_none(),
            body,
            account,
        }
    }

    /// Relays; ready when the client has reset the stream.
    fn poll(&mut self, cx: &mut Context<'_>, sink: &mut SendStream<Bytes>) -> Poll<Reason> {
        if self.is_sent {
            return Poll::Pending;
        }
        let Some(body) = &mut self.body else {
            return Poll::Pending;
        };
        match body.poll_relay(cx, sink) {
            Poll::Ready(Ended::Complete) => self.is_sent = true,
            // Why is told by the response. What still comes is not wanted, and must not stay in h2.
            Poll::Ready(Ended::SinkClosed) => self.drop_body(),
            Poll::Ready(Ended::SourceFailed(error)) => {
                return Poll::Ready(error.reason().unwrap_or(Reason::CANCEL));
            }
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Starts again; false if that is not possible.
    fn rewind(&mut self) -> bool {
        match &mut self.body {
            None => self.is_sent,
            Some(body) => {
                self.is_sent = false;
                body.rewind()
            }
        }
    }

    fn forget(&mut self) {
        if let Some(body) = &mut self.body {
            body.forget();
        }
    }

    fn drop_body(&mut self) {
        if let Some(body) = self.body.take() {
            self.account.add_received(body.received());
        }
    }

    fn is_under_way(&self) -> bool {
        self.body.is_some() && !self.is_sent
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        self.drop_body();
    }
}

/// Sends the request until an upstream answers it.
async fn begin(
    sessions: &Rc<Sessions>,
    head: Parts,
    client: &mut SendResponse<Bytes>,
    upload: &mut Upload<'_>,
) -> Result<(UpstreamStream, Response<RecvStream>), Failure> {
    let mut replays = 0;
    let mut refused: Option<Place> = None;
    loop {
        let avoid = refused.as_ref().map(|p| &p.session);
        let place = match sessions.place(avoid) {
            Some(place) => place,
            None => {
                let mut waiting = pin!(sessions.wait_for_place(avoid));
                let waited = poll_fn(|cx| match waiting.as_mut().poll(cx) {
                    Poll::Ready(place) => Poll::Ready(Ok(place)),
                    Poll::Pending => poll_client_reset(cx, client).map(Err),
                });
                match waited.await {
                    Ok(Ok(place)) => place,
                    Ok(Err(failure)) => return Err(refuse(client, upload.account, failure)),
                    Err(_) => return Err(Failure::ClientClosed),
                }
            }
        };
        let is_end = upload.body.is_none();
        let (response, sink) = match place.session.send(outgoing(&head), is_end) {
            Ok(stream) => stream,
            Err(Unsent::SessionOver) => {
                sessions.retire(&place.session);
                continue;
            }
            Err(Unsent::Invalid(error)) => {
                tracing::debug!(%error, "request cannot be sent on");
                let failure = Failure::BadRequest("request has no valid HTTP/2 form");
                return Err(refuse(client, upload.account, failure));
            }
        };
        upload.account.sent_at(&place);
        let mut stream = UpstreamStream {
            response,
            sink,
            place,
        };
        let mut is_informed = false;
        let answer = poll_fn(|cx| poll_answer(cx, &mut stream, client, upload, &mut is_informed));
        let error = match answer.await {
            Answer::Response(response) => return Ok((stream, response)),
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
            || error.is_io() && stream.place.is_reused && head.method.is_idempotent();
        if may_replay && !is_informed && replays < MAX_REPLAYS && upload.rewind() {
            replays += 1;
            refused = Some(stream.place);
            continue;
        }
        if is_unprocessed {
            // The client may do what we could not.
            client.send_reset(Reason::REFUSED_STREAM);
            return Err(Failure::UpstreamClosed);
        }
        if error.is_reset() && error.is_remote() {
            client.send_reset(reason_to_tell(&error));
            return Err(Failure::UpstreamClosed);
        }
        return Err(refuse(client, upload.account, failure_of(&error)));
    }
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
    upload: &mut Upload<'_>,
    is_informed: &mut bool,
) -> Poll<Answer> {
    if let Poll::Ready(reason) = upload.poll(cx, &mut stream.sink) {
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

enum Relayed {
    Complete,
    ClientReset(Reason),
    UpstreamFailed(h2::Error),
}

/// Relays both directions once the response has begun.
fn poll_relay(
    cx: &mut Context<'_>,
    download: &mut Option<Body>,
    client: &mut SendStream<Bytes>,
    upload: &mut Upload<'_>,
    upstream: &mut SendStream<Bytes>,
) -> Poll<Relayed> {
    let mut is_answered = true;
    if let Some(body) = download {
        match body.poll_relay(cx, client) {
            Poll::Ready(Ended::Complete) => {
                upload.account.add_sent(body.received());
                *download = None;
            }
            Poll::Ready(Ended::SourceFailed(error)) => {
                return Poll::Ready(Relayed::UpstreamFailed(error));
            }
            // The client's reset is seen below.
            Poll::Ready(Ended::SinkClosed) | Poll::Pending => is_answered = false,
        }
    }
    if let Poll::Ready(reason) = upload.poll(cx, upstream) {
        return Poll::Ready(Relayed::ClientReset(reason));
    }
    if is_answered && !upload.is_under_way() {
        return Poll::Ready(Relayed::Complete);
    }
    if let Poll::Ready(reset) = client.poll_reset(cx) {
        return Poll::Ready(Relayed::ClientReset(reset.unwrap_or(Reason::CANCEL)));
    }
    // An upstream that has answered may say that it wants no more of the request. What the client
    // then gets is h2's own reset, after the answer, with NO_ERROR.
    if is_answered && upstream.poll_reset(cx).is_ready() {
        return Poll::Ready(Relayed::Complete);
    }
    Poll::Pending
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

fn failure_of(error: &h2::Error) -> Failure {
    if error.is_library() {
        Failure::UpstreamProtocol
    } else {
        Failure::UpstreamClosed
    }
}

/// The upstream's own code, or INTERNAL_ERROR if it gave none.
fn reason_to_tell(error: &h2::Error) -> Reason {
    match error.reason() {
        Some(reason) if error.is_remote() => reason,
        _ => Reason::INTERNAL_ERROR,
    }
}

/// Answers in the upstream's place.
fn refuse(client: &mut SendResponse<Bytes>, account: &mut Account, failure: Failure) -> Failure {
    let (head, ()) = respond::refusal(failure).into_parts();
    account.answered(&head);
    // Fails only if the client is gone, and then nobody wants it.
    let _ = client.send_response(Response::from_parts(head, ()), true);
    failure
}
