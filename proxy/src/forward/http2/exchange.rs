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
    session::Unsent,
    sessions::{Place, RunningExchange, Sessions},
};
use crate::{failure::Failure, forward::respond};

/// How often a request that was not processed is sent again; then its client is told, and may try
/// again itself. Against an nginx that ends each connection after 100 requests, with 128 streams
/// at a time, 3 replays were too few for 4 of 230,000 requests and 8 for none.
pub(super) const MAX_REPLAYS: usize = 8;

/// Serves one request to its end.
pub(super) async fn run(
    running: RunningExchange,
    request: Request<RecvStream>,
    mut client: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let sessions = running.sessions();
    let upload = (!body.is_end_stream())
        .then(|| Box::new(Body::new(body, sessions.window.clone()).replayable()));
    let mut account = Account::open(sessions.clone(), head);
    let failure = forward(&mut Upload::new(upload), &mut client, &mut account)
        .await
        .err();
    account.close(failure);
}

async fn forward(
    upload: &mut Upload,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<(), Failure> {
    let limits = &account.sessions.connection.worker.shared.settings.limits;
    if account.head.headers.len() > limits.max_headers {
        return Err(refuse(client, account, Failure::HeadTooLarge));
    }
    let (mut stream, response) = begin(upload, client, account).await?;
    upload.forget();
    account.forget_headers();

    let (head, body) = response.into_parts();
    account.answered(&head);
    let is_end = body.is_end_stream();
    let Ok(mut client) = client.send_response(Response::from_parts(head, ()), is_end) else {
        stream.sink.send_reset(Reason::CANCEL);
        return Err(Failure::ClientClosed);
    };
    if is_end && !upload.is_under_way() {
        return Ok(());
    }
    let window = stream.place.session.window().clone();
    let mut download = (!is_end).then(|| Body::new(body, window));
    let relayed = poll_fn(|cx| {
        poll_relay(
            cx,
            &mut download,
            &mut client,
            upload,
            &mut stream.sink,
            account,
        )
    })
    .await;
    if let Some(download) = &download {
        account.add_sent(download.received());
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

/// The request's body.
struct Upload {
    /// None if there is none, or nobody wants it any more. Apart, since most requests have none.
    body: Option<Box<Body>>,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    UnderWay,
    /// All of it has been sent on.
    Sent,
    /// The upstream takes no more; why is told by its response.
    Stopped,
}

impl Upload {
    fn new(body: Option<Box<Body>>) -> Self {
        let progress = match body {
            Some(_) => Progress::UnderWay,
            None => Progress::Sent,
        };
        Self { body, progress }
    }

    /// Relays; ready when the client has reset the stream.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut SendStream<Bytes>,
        account: &mut Account,
    ) -> Poll<Reason> {
        let is_under_way = self.is_under_way();
        let Some(body) = self.body.as_mut().filter(|_| is_under_way) else {
            return Poll::Pending;
        };
        let before = body.received();
        let relayed = body.poll_relay(cx, sink);
        account.add_received(body.received() - before);
        match relayed {
            Poll::Ready(Ended::Complete) => self.progress = Progress::Sent,
            Poll::Ready(Ended::SinkClosed) => self.progress = Progress::Stopped,
            Poll::Ready(Ended::SourceFailed(error)) => {
                return Poll::Ready(error.reason().unwrap_or(Reason::CANCEL));
            }
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Starts again; false if that is not possible.
    fn rewind(&mut self) -> bool {
        let Some(body) = &mut self.body else {
            return true;
        };
        self.progress = Progress::UnderWay;
        body.rewind()
    }

    /// It will not be sent again.
    fn forget(&mut self) {
        match &mut self.body {
            Some(body) if self.progress == Progress::UnderWay => body.forget(),
            _ => self.body = None,
        }
    }

    fn is_under_way(&self) -> bool {
        self.progress == Progress::UnderWay
    }
}

/// Sends the request until an upstream answers it.
async fn begin(
    upload: &mut Upload,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<(UpstreamStream, Response<RecvStream>), Failure> {
    let mut replays = 0;
    let mut refused: Option<Place> = None;
    loop {
        let place = match place(refused.as_ref(), client, &account.sessions).await {
            Ok(place) => place,
            Err(Failure::ClientClosed) => return Err(Failure::ClientClosed),
            Err(failure) => return Err(refuse(client, account, failure)),
        };
        let is_end = upload.body.is_none();
        let (response, sink) = match place.session.send(outgoing(&account.head), is_end) {
            Ok(stream) => stream,
            Err(Unsent::SessionOver) => {
                account.sessions.retire(&place.session);
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
            Answer::Response(response) => return Ok((stream, response)),
            Answer::ClientReset(reason) => {
                stream.sink.send_reset(reason);
                return Err(Failure::ClientClosed);
            }
            Answer::Failed(error) => error,
        };
        if error.is_go_away() {
            account.sessions.retire(&stream.place.session);
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
    upload: &mut Upload,
    upstream: &mut SendStream<Bytes>,
    account: &mut Account,
) -> Poll<Relayed> {
    let mut is_answered = true;
    if let Some(body) = download {
        match body.poll_relay(cx, client) {
            Poll::Ready(Ended::Complete) => {
                account.add_sent(body.received());
                *download = None;
            }
            Poll::Ready(Ended::SourceFailed(error)) => {
                return Poll::Ready(Relayed::UpstreamFailed(error));
            }
            // The client's reset is seen below.
            Poll::Ready(Ended::SinkClosed) | Poll::Pending => is_answered = false,
        }
    }
    if let Poll::Ready(reason) = upload.poll(cx, upstream, account) {
        return Poll::Ready(Relayed::ClientReset(reason));
    }
    if !upload.is_under_way() {
        if is_answered {
            return Poll::Ready(Relayed::Complete);
        }
        // What still comes is not wanted, and must not stay in h2.
        upload.forget();
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
