//! How far one request and its answer have come: written by the two directions, read by whoever
//! decides what follows.

use std::cell::Cell;

use super::request::RequestHead;
use crate::forward::deadlines;

#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes at the start of the input buffer that are this request's.
    pub(super) in_input: Cell<usize>,
    /// Bytes of the body went through without staying in the input: they cannot be sent again.
    pub(super) has_streamed: Cell<bool>,
    /// Bytes of the request written upstream.
    pub(super) written: Cell<u64>,
    /// Bytes written to the client.
    pub(super) sent: Cell<u64>,
    /// The whole request has come from the client.
    pub(super) is_request_received: Cell<bool>,
    /// The whole request is written upstream.
    pub(super) is_request_complete: Cell<bool>,
    /// The client has closed its side; so the upstream's was closed for writing.
    pub(super) has_client_closed: Cell<bool>,
    /// Any byte has come from the upstream.
    pub(super) has_answer_begun: Cell<bool>,
    /// The status of the final answer, once it goes to the client.
    pub(super) status: Cell<Option<u16>>,
}

impl Progress {
    pub(super) fn new(in_input: usize) -> Self {
        Self {
            in_input: Cell::new(in_input),
            ..Self::default()
        }
    }

    /// Whether all of the request that has come is still there, and may be sent over any connection.
    pub(super) fn is_kept(&self, request: &RequestHead) -> bool {
        !self.has_streamed.get()
            && !self.has_client_closed.get()
            && !request.authenticates_connection
    }

    /// As time limits see it.
    pub(super) fn for_deadlines(&self) -> deadlines::Progress {
        deadlines::Progress {
            moved: self.written.get() + self.sent.get(),
            is_received: self.is_request_received.get(),
            is_answered: self.status.get().is_some(),
        }
    }

    pub(super) fn add_written(&self, count: usize) {
        self.written.set(self.written.get() + count as u64);
    }

    pub(super) fn add_sent(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
    }
}
