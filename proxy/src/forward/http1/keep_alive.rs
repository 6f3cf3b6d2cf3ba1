//! What becomes of the connections on both sides, and of the buffers, when an answer has ended.

use std::{mem, time::Instant};

use super::{
    Next, OwnedLease, Session,
    download::{Answer, Discarded},
    exchange::{Buffers, Exchange},
    progress::Progress,
};
use crate::{failure::Failure, upstream::Lease};

impl Session {
    /// What follows a whole answer, for both sides.
    pub(super) fn answered(
        &mut self,
        exchange: &Exchange,
        mut lease: Lease,
        answer: &Answer,
        progress: &Progress,
    ) -> (Next, Option<Failure>) {
        let Exchange {
            head,
            outcome,
            buffers,
            policed,
            ..
        } = exchange;
        if let Some(policed) = policed {
            policed.settle(answer.head.status);
        }
        let is_complete = progress.is_request_complete.get();
        let has_client_closed = progress.has_client_closed.get();
        let is_reusable = answer.head.keeps_alive
            && is_complete
            && !has_client_closed
            && buffers.output.is_empty();
        let pins = lease.is_pinned
            || head.authenticates_connection
            || answer.head.authenticates_connection;
        let keeps_client = answer.keeps_client && is_complete && (is_reusable || !pins);

        self.peers.note_used(lease.id);
        if is_reusable {
            lease.note_answered(progress.written.get(), answer.head.keeps_for);
            lease.is_pinned = pins;
            if !pins {
                let worker = &self.connection.worker;
                let now = outcome.ended.unwrap_or_else(Instant::now);
                self.peers.idle().check_in(worker, lease, now);
            } else if keeps_client {
                self.pinned = Some(OwnedLease {
                    lease,
                    target: outcome.routed.target.clone(),
                });
            }
        }

        let failure = (has_client_closed && !is_complete).then_some(Failure::ClientClosed);
        let is_last = self.input.len() == progress.in_input.get() && buffers.overflow.is_empty();
        let next = if keeps_client {
            Next::Request
        } else if has_client_closed || (is_complete && !head.keeps_alive && is_last) {
            Next::Close
        } else {
            Next::Linger
        };
        (next, failure)
    }

    /// Leaves an answer behind that the client does not get.
    pub(super) fn discard(
        &mut self,
        exchange: &mut Exchange,
        mut lease: Lease,
        answer: &Discarded,
        progress: &Progress,
    ) {
        let worker = &self.connection.worker;
        worker.buffers.give(mem::take(&mut exchange.buffers.output));
        // What is still to come of it would have to be read off.
        let is_reusable =
            answer.is_whole && answer.head.keeps_alive && progress.is_request_complete.get();
        if is_reusable && !answer.head.authenticates_connection {
            lease.note_answered(progress.written.get(), answer.head.keeps_for);
            self.peers.idle().check_in(worker, lease, Instant::now());
        }
    }

    /// Leaves the request behind: the input begins with what the client sent after it.
    pub(super) fn advance(&mut self, in_input: usize, buffers: Buffers) {
        let pool = &self.connection.worker.buffers;
        if buffers.overflow.capacity() > 0 {
            // The input held nothing but the request.
            pool.give(mem::replace(&mut self.input, buffers.overflow));
        } else {
            self.input.consume(in_input);
        }
        pool.give(buffers.output);
    }
}
