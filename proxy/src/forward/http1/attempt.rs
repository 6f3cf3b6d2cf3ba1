//! One try at one request over one upstream connection: both directions in one task.

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Instant,
};

use outrigger_config::Limits;
use tokio::net::TcpStream;

use super::{
    admission::Added,
    body::{Body, Framing},
    download::{Answer, Discarded, Download, DownloadEnd},
    progress::Progress,
    request::RequestHead,
    upload::{Upload, UploadEnd},
};
use crate::{
    buffer::Buffer,
    cluster,
    dispatch::Hop,
    forward::{deadlines::Passed, policed::Policed},
    route::HeaderEdits,
    upstream::{Lease, poll_disturbed},
    worker::Worker,
};

pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Worker,
    pub(super) limits: Limits,
    pub(super) client: &'a TcpStream,
    pub(super) upstream: &'a TcpStream,
    pub(super) request: &'a RequestHead,
    /// Of the request, what is in the input counted as taken.
    pub(super) body: Body,
    pub(super) input: &'a mut Buffer,
    pub(super) overflow: &'a mut Buffer,
    pub(super) output: &'a mut Buffer,
    /// What the route changes in the answer.
    pub(super) edits: Option<&'a HeaderEdits>,
    pub(super) set_cookie: Option<&'a str>,
    pub(super) added: &'a Added,
    pub(super) policed: Option<&'a Policed>,
    /// The request has been sent, and the output begins with its answer.
    pub(super) is_answered: bool,
    pub(super) progress: &'a Progress,
}

#[derive(Debug)]
pub(super) enum AttemptEnd {
    /// The answer was relayed whole; whether the request was, `Progress` tells.
    Answered(Answer),
    Tunnel,
    /// The request is to be sent again; the client has seen nothing of this answer.
    Discarded(Box<Discarded>),
    /// The upstream closed or failed before the final answer.
    NoAnswer(io::ErrorKind),
    /// The upstream broke off within the answer.
    Incomplete,
    /// A time limit of the route has passed.
    TooLong(Passed),
    ClientLost,
    /// The request's body turned out malformed.
    Malformed(&'static str),
}

impl Hop {
    /// Tells the endpoint's cluster how an attempt went. A connection that died idle tells nothing:
    /// whatever is wrong shows when another one is dialled.
    pub(super) fn report_end(&mut self, end: &AttemptEnd, lease: &Lease, progress: &Progress) {
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

impl Attempt<'_> {
    pub(super) async fn run(self) -> AttemptEnd {
        let (client, upstream, progress) = (self.client, self.upstream, self.progress);
        let upload = pin!(
            Upload {
                worker: self.worker,
                client,
                upstream,
                input: self.input,
                overflow: self.overflow,
                keeps: (self.policed).map_or(0, |policed| {
                    let length = match self.request.framing {
                        Framing::Length(length) => Some(length),
                        Framing::Chunked | Framing::UntilClose => None,
                    };
                    self.request.len + policed.keeps(length)
                }),
                is_sent: self.is_answered,
                body: self.body,
                progress,
            }
            .run()
        );
        let download = Download {
            worker: self.worker,
            limits: self.limits,
            client,
            upstream,
            output: self.output,
            request: self.request,
            edits: self.edits,
            set_cookie: self.set_cookie,
            added: self.added,
            policed: self.policed,
            progress,
        };
        let mut uploading = Uploading {
            upload,
            is_over: false,
        };
        let answered = answer(&mut uploading, download).await;
        match answered {
            Err(end) => end,
            Ok(answer) => match rest(&mut uploading, upstream, progress).await {
                Err(end) => end,
                Ok(()) => AttemptEnd::Answered(answer),
            },
        }
    }
}

/// Both directions, until the answer is complete.
async fn answer(
    uploading: &mut Uploading<'_, impl Future<Output = UploadEnd>>,
    download: Download<'_>,
) -> Result<Answer, AttemptEnd> {
    let mut download = pin!(download.run());
    let mut is_first = true;
    let end = poll_fn(|cx| {
        // First the request goes out. From then on it is the answer that is waited for, and the
        // client is looked at only when there is none yet.
        let is_sending = mem::take(&mut is_first);
        if is_sending {
            uploading.poll(cx)?;
        }
        let answered = download.as_mut().poll(cx);
        if answered.is_pending() && !is_sending {
            uploading.poll(cx)?;
        }
        answered.map(Ok)
    });
    match end.await? {
        DownloadEnd::Complete(answer) => Ok(answer),
        DownloadEnd::Tunnel => Err(AttemptEnd::Tunnel),
        DownloadEnd::Discarded(answer) => Err(AttemptEnd::Discarded(Box::new(answer))),
        DownloadEnd::NoAnswer(kind) => Err(AttemptEnd::NoAnswer(kind)),
        DownloadEnd::Incomplete => Err(AttemptEnd::Incomplete),
        DownloadEnd::ClientLost => Err(AttemptEnd::ClientLost),
    }
}

/// After an early answer: the rest of the request, until the upstream takes no more of it.
async fn rest(
    uploading: &mut Uploading<'_, impl Future<Output = UploadEnd>>,
    upstream: &TcpStream,
    progress: &Progress,
) -> Result<(), AttemptEnd> {
    poll_fn(|cx| {
        if !progress.is_request_complete.get() {
            uploading.poll(cx)?;
        }
        if progress.is_request_complete.get() || uploading.is_over {
            return Poll::Ready(Ok(()));
        }
        poll_disturbed(cx, upstream).map(Ok)
    })
    .await
}

/// The request's direction, of which some ends are no end of the attempt.
struct Uploading<'a, F> {
    upload: Pin<&'a mut F>,
    is_over: bool,
}

impl<F: Future<Output = UploadEnd>> Uploading<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), AttemptEnd> {
        if self.is_over {
            return Ok(());
        }
        let Poll::Ready(end) = self.upload.as_mut().poll(cx) else {
            return Ok(());
        };
        self.is_over = true;
        match end {
            UploadEnd::ClientClosed | UploadEnd::Refused => Ok(()),
            UploadEnd::ClientLost => Err(AttemptEnd::ClientLost),
            UploadEnd::Malformed(how) => Err(AttemptEnd::Malformed(how)),
        }
    }
}
