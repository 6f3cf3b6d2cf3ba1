//! How a request went, told once it is over; and refusals, which are told to the client as well.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use outrigger_config::Headers;

use super::{
    Next, Session,
    head::Version,
    io::write_some,
    progress::Progress,
    request::{self, RequestHead},
};
use crate::{
    failure::Failure,
    forward::respond,
    observe::{Captured, Protocol, Record},
    route::Routed,
    upstream::Lease,
};

/// How long a client may take to accept a response of ours, which fits every socket buffer that is
/// not full already.
const REFUSAL_TAKES: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) started: Instant,
    /// None: now.
    pub(super) ended: Option<Instant>,
    pub(super) failure: Option<Failure>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) routed: Routed,
    upstream: Option<SocketAddr>,
    upstream_local: Option<SocketAddr>,
    is_upstream_reused: bool,
    status: Option<u16>,
    /// Over a connection; failed dials are counted apart.
    tries: u32,
    answered: Option<Instant>,
    captured: Option<Captured>,
}

impl Outcome {
    /// Of a request whose head has `received` bytes.
    pub(super) fn begin(received: usize) -> Self {
        Self {
            started: Instant::now(),
            ended: None,
            failure: None,
            received: received as u64,
            sent: 0,
            routed: Routed::default(),
            upstream: None,
            upstream_local: None,
            is_upstream_reused: false,
            status: None,
            tries: 0,
            answered: None,
            captured: None,
        }
    }

    /// Adds what one attempt has come to.
    pub(super) fn add(&mut self, lease: &Lease, progress: &Progress) {
        self.received = self.received.max(progress.written.get());
        self.sent += progress.sent.get();
        self.upstream = Some(lease.upstream.peer);
        self.upstream_local = Some(lease.upstream.local());
        self.tries += 1;
        self.answered = progress.answered.get();
        self.captured = progress.captured.take();
        self.is_upstream_reused = lease.is_reused;
        self.status = progress.status.get();
    }
}

impl Session {
    /// Tells the client of a failure before any byte of a final answer, and records it. `head` is
    /// known if it could be parsed.
    pub(super) async fn refuse(
        &mut self,
        head: Option<&RequestHead>,
        failure: Failure,
        mut outcome: Outcome,
    ) -> Next {
        outcome.failure = Some(failure);
        let next = if failure == Failure::ClientClosed {
            Next::Close
        } else {
            outcome.status = Some(failure.status());
            outcome.sent += self.tell(failure).await;
            Next::Linger
        };
        self.record(head, &outcome);
        next
    }

    async fn tell(&self, failure: Failure) -> u64 {
        let is_head = self.input.filled().starts_with(b"HEAD ");
        let response = respond::http1(failure, is_head);
        let written =
            tokio::time::timeout(REFUSAL_TAKES, write_some(&self.client, &response)).await;
        // A client that is gone, or takes nothing, need not be told.
        written.map_or(0, |written| written.unwrap_or(0)) as u64
    }

    /// Records the request under way, of which nothing is left but its head in the input.
    pub(super) fn record_cut(&mut self) {
        let limits = &self.settings.limits;
        let head = request::parse(self.input.filled(), limits).ok().flatten();
        let mut outcome = Outcome::begin(head.as_ref().map_or(0, |head| head.len));
        outcome.failure = Some(Failure::Drained);
        self.record(head.as_ref(), &outcome);
    }

    /// `head`, if known, begins the input.
    pub(super) fn record(&mut self, head: Option<&RequestHead>, outcome: &Outcome) {
        self.is_under_way = false;
        let connection = &self.connection;
        let failed = connection.failed.take();
        let lines = head.map(|head| head.lines(self.input.filled()));
        connection.record(&Record {
            protocol: Protocol::Http1,
            is_http10: head.is_some_and(|head| head.version == Version::Http10),
            connection: connection.listed.entry.number,
            client: connection.client,
            original: connection.original,
            routed: &outcome.routed,
            upstream: outcome.upstream,
            upstream_local: outcome.upstream_local,
            attempts: outcome.tries + failed.len() as u32,
            failed: &failed,
            headers: lines.as_ref().map(|lines| lines as &dyn Headers),
            captured: outcome.captured.as_ref(),
            trace_id: None,
            answered: outcome.answered.map(|at| at - outcome.started),
            upstream_reused: outcome.is_upstream_reused,
            request: head.map(|head| head.line(self.input.filled())),
            sni: None,
            status: outcome.status,
            failure: outcome.failure,
            bytes_received: outcome.received,
            bytes_sent: outcome.sent,
            duration: outcome.ended.unwrap_or_else(Instant::now) - outcome.started,
        });
    }
}
