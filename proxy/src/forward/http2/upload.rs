//! The request's side of an exchange.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use tokio::time::timeout;

use super::{
    account::Account,
    body::{Body, Ended},
    hedge::Whole,
    mirror::Recorded,
};

/// How much, and for how long, is still read of a request that was answered without it: what small
/// bodies and slow clients need, and no more than one stream's share of memory or patience.
const READ_OFF: usize = 64 * 1024;
const READ_OFF_WITHIN: Duration = Duration::from_secs(5);

/// The request's body.
pub(super) struct Upload {
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
    pub(super) fn new(body: Option<Box<Body>>) -> Self {
        let progress = match body {
            Some(_) => Progress::UnderWay,
            None => Progress::Sent,
        };
        Self { body, progress }
    }

    pub(super) fn has_body(&self) -> bool {
        self.body.is_some()
    }

    /// Keeps at least `bytes` of it to be sent again.
    pub(super) fn keep(&mut self, bytes: usize) {
        if let Some(body) = &mut self.body {
            body.keep(bytes);
        }
    }

    /// Reads all of it, holding it; false when that is more than `most` bytes. Its client's reset is an
    /// error.
    pub(super) fn poll_collect(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        account: &mut Account,
    ) -> Poll<Result<bool, h2::Error>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(Ok(true));
        };
        let before = body.received();
        let collected = body.poll_collect(cx, most);
        account.add_received(body.received() - before);
        collected
    }

    /// A body that has been collected.
    pub(super) fn whole(&mut self) -> Option<Whole> {
        self.body.as_mut().map(|body| body.whole())
    }

    /// It has been sent by somebody else.
    pub(super) fn finish(&mut self) {
        if let Some(mut body) = self.body.take() {
            body.finish();
        }
        self.progress = Progress::Sent;
    }

    /// Whether [`Self::rewind`] would do.
    pub(super) fn is_kept(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_kept())
    }

    /// Whether all of it has come from the client.
    pub(super) fn is_received(&self) -> bool {
        !self.is_under_way() || self.body.as_ref().is_none_or(|body| body.is_received())
    }

    /// Has `copy` see all of the body.
    pub(super) fn copy_to(&mut self, copy: Rc<RefCell<Recorded>>) {
        if let Some(body) = &mut self.body {
            body.copy_to(copy);
        }
    }

    /// Relays; ready when the client has reset the stream.
    pub(super) fn poll(
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
    pub(super) fn rewind(&mut self) -> bool {
        let Some(body) = &mut self.body else {
            return true;
        };
        self.progress = Progress::UnderWay;
        body.rewind()
    }

    /// It will not be sent again.
    pub(super) fn forget(&mut self) {
        match &mut self.body {
            Some(body) if self.progress == Progress::UnderWay => body.forget(),
            _ => self.body = None,
        }
    }

    /// The upstream wants no more of it.
    pub(super) fn stop(&mut self) {
        self.progress = Progress::Stopped;
        self.body = None;
    }

    /// Reads off what the client still sends of a request that was answered without it, within
    /// limits: what it gets otherwise is h2's reset, and clients in the midst of a body take even one
    /// with NO_ERROR for a failure, as curl 7.88 does.
    pub(super) async fn read_off(&mut self) {
        if let Some(mut body) = self.body.take() {
            // Either way the client has had its chance.
            let _ = timeout(READ_OFF_WITHIN, body.read_off(READ_OFF)).await;
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.progress == Progress::UnderWay
    }
}
