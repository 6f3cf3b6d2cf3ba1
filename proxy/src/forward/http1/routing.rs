//! What a request's route makes of it before it is tried.

use super::{
    Session,
    body::Framing,
    edit,
    exchange::{Arrived, Exchange},
    mirror,
    request::RequestHead,
};
use crate::{
    dispatch::Key,
    failure::Failure,
    route::{self, Answer, Copy, Routed},
};

impl Session {
    /// Where the routes send the request.
    pub(super) fn route(&self, head: &RequestHead) -> (Routed, Key) {
        let worker = &self.connection.worker;
        if !worker.has_routes() {
            return Default::default();
        }
        let lines = head.lines(self.input.filled());
        let mut routed = self.connection.route_request(lines.as_request());
        if let Some(pinned) = &self.pinned {
            routed.stay_with(&pinned.target);
        }
        let client = self.connection.client.0.ip();
        let key = routed.target.key(worker, client, &lines);
        (routed, key)
    }

    /// What the request's route answers in an upstream's place, after the delay that it may ask for.
    pub(super) async fn answer_of_route(
        &self,
        head: &RequestHead,
        routed: &Routed,
    ) -> Result<Option<Answer>, Failure> {
        if routed.route.is_none() {
            return Ok(None);
        }
        let bytes = self.input.filled();
        let lines = head.lines(bytes);
        let fault = routed.fault(Some(&lines), &self.connection.worker.rng);
        if let Some(delay) = fault.as_ref().and_then(|fault| fault.delay) {
            // Seldom, and large while it lasts.
            Box::pin(route::wait(delay, &self.client)).await?;
        }
        if let Some(abort) = fault.and_then(|fault| fault.abort) {
            return Ok(Some(abort));
        }
        if !routed.answers_itself() {
            return Ok(None);
        }
        let original = self.connection.original.0.to_string();
        let authority = head.host(bytes).unwrap_or(original.as_bytes());
        Ok(routed.answer(&lines.as_request(), authority))
    }

    /// Makes of the head what the route wants sent on, and tells of which copies are to be made. So
    /// that they can be, a body that is yet to come stays in the input.
    pub(super) fn prepare(
        &mut self,
        head: &mut RequestHead,
        arrived: &Arrived,
        routed: &Routed,
    ) -> Vec<Copy> {
        let Some(route) = &routed.route else {
            return Vec::new();
        };
        if route.edits_request() {
            edit::request(head, route, &mut self.input);
        }
        if !mirror::can_be_copied(head) {
            return Vec::new();
        }
        let mut copies = routed.copies(&self.connection.worker.rng);
        if let Framing::Length(length) = head.framing {
            copies.retain(|copy| {
                let fits = length <= copy.max_body_bytes as u64;
                if !fits {
                    copy.dropped();
                }
                fits
            });
        }
        let largest = copies.iter().map(|copy| copy.max_body_bytes).max();
        if let Some(largest) = largest.filter(|_| !arrived.body.is_done()) {
            let length = match head.framing {
                Framing::Length(length) => length as usize,
                Framing::Chunked | Framing::UntilClose => largest,
            };
            // One byte more than all of it, for there is space while more is read.
            self.input.grow(head.len + length + 1);
        }
        copies
    }

    /// Sends the copies of a request that is whole within the first `len` bytes of the input.
    pub(super) fn mirror(&self, exchange: &mut Exchange, len: usize) {
        for copy in exchange.copies.drain(..) {
            let request = &self.input.filled()[..len];
            let head = &exchange.head;
            mirror::send(&self.connection, self.settings.limits, &copy, head, request);
        }
    }
}
