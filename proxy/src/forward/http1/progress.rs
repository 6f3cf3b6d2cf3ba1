//! How far one request and its answer have come: written by the two directions, read by whoever
//! decides what follows.

use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

use outrigger_config::HeaderOf;

use super::head;
use crate::observe::Captured;

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
    /// The upstream connection is authenticated, and this client's alone.
    is_pinned: bool,
    /// The status of the final answer, once it goes to the client.
    pub(super) status: Cell<Option<u16>>,
    /// When the final answer's head was there; known only if an access log asks.
    pub(super) answered: Cell<Option<Instant>>,
    /// Headers that an access log names.
    pub(super) captured: RefCell<Option<Captured>>,
}

impl Progress {
    pub(super) fn new(in_input: usize, is_pinned: bool, captured: Option<Captured>) -> Self {
        Self {
            is_pinned,
            in_input: Cell::new(in_input),
            captured: RefCell::new(captured),
            ..Self::default()
        }
    }

    /// Whether all of the request that has come is still there, and may be sent over any connection.
    pub(super) fn is_kept(&self, request: &RequestHead) -> bool {
        !self.has_streamed.get()
            && !self.has_client_closed.get()
            && !self.is_pinned
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

    /// The final answer's head begins `output`, as the upstream sent it.
    pub(super) fn note_answer(&self, output: &[u8]) {
        if let Some(captured) = &mut *self.captured.borrow_mut() {
            if captured.wanted().wants_answer_time() {
                self.answered.set(Some(Instant::now()));
            }
            captured.keep(HeaderOf::Response, |name, show| {
                head::each_value(output, name, show);
            });
        }
    }

    pub(super) fn wants_trailers(&self) -> bool {
        let captured = self.captured.borrow();
        (captured.as_ref()).is_some_and(|captured| captured.wanted().wants_trailers())
    }

    /// The answer's trailer section, with the empty line after it.
    pub(super) fn note_trailers(&self, section: &[u8]) {
        if let Some(captured) = &mut *self.captured.borrow_mut() {
            captured.keep(HeaderOf::Trailer, |name, show| {
                head::each_line_value(section, 0, name, show);
            });
        }
    }

    pub(super) fn add_sent(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
    }
}
