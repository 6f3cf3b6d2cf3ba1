//! Whether a request is sent again, and what its client is told if it is not.

use std::{io, time::Duration};

use super::{
    Next,
    exchange::{Exchange, TryEnd},
    progress::Progress,
    reach::Through,
    request::RequestHead,
};
use crate::{
    cluster::Rng, dispatch::Hop, failure::Failure, retry::Fate, upstream::Lease, worker::Worker,
};

impl Exchange {
    /// There was no connection.
    pub(super) fn unreached(&mut self, failure: Failure, worker: &Worker) -> TryEnd {
        let is_kept = !self.head.authenticates_connection;
        let again = self.policed.as_ref();
        match again.and_then(|p| p.again_after(failure, is_kept, &worker.rng)) {
            Some(pause) => {
                self.tried.begin_again(None);
                TryEnd::Again(Through::Another, pause)
            }
            None => TryEnd::Refused(failure),
        }
    }

    /// The pause before the next try, if a try that came to `fate` is to be repeated.
    pub(super) fn pause_after(
        &self,
        fate: Fate<'_>,
        progress: &Progress,
        rng: &Rng,
    ) -> Option<Duration> {
        let is_kept = progress.is_kept(&self.head);
        self.policed.as_ref()?.again(fate, is_kept, rng)
    }

    /// The next try had better not go where the last one went.
    pub(super) fn again(&mut self, last: &Hop, pause: Duration) -> TryEnd {
        // What has come of an answer that never became whole.
        self.buffers.output.clear();
        self.tried.begin_again(Some(last.peer));
        TryEnd::Again(Through::Another, pause)
    }
}

/// Whether the request may be sent once more, over a fresh connection: either it provably had no
/// effect or a second effect is none, and all of it is still there.
pub(super) fn may_repeat(
    kind: io::ErrorKind,
    head: &RequestHead,
    lease: &Lease,
    progress: &Progress,
) -> bool {
    // After a reset, what was not acknowledged may have been read all the same.
    let is_unconsumed = || kind == io::ErrorKind::UnexpectedEof && lease.is_unconsumed();
    lease.is_reused
        && !lease.is_pinned
        && !progress.has_answer_begun.get()
        && !progress.has_streamed.get()
        && (head.is_idempotent() || is_unconsumed())
}

/// What follows when the upstream closed or failed before its final answer; or the failure that
/// the client is told.
pub(super) fn no_answer(
    kind: io::ErrorKind,
    lease: &Lease,
    progress: &Progress,
) -> Result<(Next, Option<Failure>), Failure> {
    if progress.has_client_closed.get() {
        Ok((Next::Close, Some(Failure::ClientClosed)))
    } else if progress.has_answer_begun.get() {
        Err(Failure::UpstreamIncomplete)
    } else if lease.is_reused {
        // The client meets the end of a connection that was idle, as it would have without us, and
        // decides for itself whether to send the request again.
        let next = match kind {
            io::ErrorKind::UnexpectedEof => Next::Close,
            _ => Next::Reset,
        };
        Ok((next, Some(Failure::UpstreamClosed)))
    } else {
        Err(Failure::UpstreamClosed)
    }
}
