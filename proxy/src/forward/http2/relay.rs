//! Both directions of an exchange once its response has begun.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::Response;

use super::{
    account::Account,
    body::{Body, Ended},
    sessions::Place,
    upload::Upload,
};
use crate::{failure::Failure, forward::deadlines::Passed};

pub(super) struct Relay {
    download: Option<Body>,
    pub(super) client: SendStream<Bytes>,
    pub(super) upstream: UpstreamStream,
}

pub(super) enum Relayed {
    Complete,
    ClientReset(Reason),
    /// The code for the client, and what is recorded.
    UpstreamFailed(Reason, Failure),
    /// A time limit of the route.
    TooLong(Passed),
}

impl Relay {
    /// Sends the head of the response; none if nothing is to follow.
    pub(super) fn start(
        mut upstream: UpstreamStream,
        response: Response<RecvStream>,
        client: &mut SendResponse<Bytes>,
        upload: &mut Upload,
        account: &mut Account,
    ) -> Result<Option<Self>, Failure> {
        upload.forget();
        account.forget_headers();
        let (head, body) = response.into_parts();
        account.answered(&head);
        let is_end = body.is_end_stream();
        let Ok(client) = client.send_response(Response::from_parts(head, ()), is_end) else {
            upstream.sink.send_reset(Reason::CANCEL);
            return Err(Failure::ClientClosed);
        };
        if is_end {
            account.report_end(None);
        }
        if is_end && !upload.is_under_way() {
            return Ok(None);
        }
        let window = upstream.place.session.window().clone();
        Ok(Some(Self {
            download: (!is_end).then(|| {
                let mut body = Body::new(body, window);
                if account.wants_trailers() || account.awaits_status() {
                    body.keep_trailers();
                }
                body
            }),
            client,
            upstream,
        }))
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload,
        account: &mut Account,
    ) -> Poll<Relayed> {
        if let Some(body) = &mut self.download {
            let before = body.received();
            let relayed = body.poll_relay(cx, &mut self.client);
            account.add_sent(body.received() - before);
            match relayed {
                Poll::Ready(Ended::Complete) => {
                    account.report_end(body.trailers());
                    if let Some(trailers) = body.trailers() {
                        account.note_trailers(trailers);
                    }
                    self.download = None;
                }
                Poll::Ready(Ended::SourceFailed(error)) => {
                    account.report_broken();
                    let failure = match failure_of(&error) {
                        Failure::UpstreamClosed => Failure::UpstreamIncomplete,
                        failure => failure,
                    };
                    return Poll::Ready(Relayed::UpstreamFailed(reason_to_tell(&error), failure));
                }
                // The client's reset is seen below.
                Poll::Ready(Ended::SinkClosed) | Poll::Pending => {}
            }
        }
        let is_answered = self.download.is_none();
        if let Poll::Ready(reason) = upload.poll(cx, &mut self.upstream.sink, account) {
            return Poll::Ready(Relayed::ClientReset(reason));
        }
        if !upload.is_under_way() {
            if is_answered {
                return Poll::Ready(Relayed::Complete);
            }
            // What still comes is not wanted, and must not stay in h2.
            upload.forget();
        }
        if let Poll::Ready(reset) = self.client.poll_reset(cx) {
            return Poll::Ready(Relayed::ClientReset(reset.unwrap_or(Reason::CANCEL)));
        }
        // An upstream that has answered may say that it wants no more of the request. What the
        // client then gets is h2's own reset, after the answer, with NO_ERROR.
        if is_answered && self.upstream.sink.poll_reset(cx).is_ready() {
            upload.stop();
            return Poll::Ready(Relayed::Complete);
        }
        Poll::Pending
    }
}

/// A stream opened on a session.
pub(super) struct UpstreamStream {
    pub(super) response: ResponseFuture,
    pub(super) sink: SendStream<Bytes>,
    // Dropped last: the place is free when the stream is gone.
    pub(super) place: Place,
}

pub(super) fn failure_of(error: &h2::Error) -> Failure {
    if error.is_library() {
        Failure::UpstreamProtocol
    } else {
        Failure::UpstreamClosed
    }
}

/// The upstream's own code, or INTERNAL_ERROR if it gave none.
pub(super) fn reason_to_tell(error: &h2::Error) -> Reason {
    match error.reason() {
        Some(reason) if error.is_remote() => reason,
        _ => Reason::INTERNAL_ERROR,
    }
}
