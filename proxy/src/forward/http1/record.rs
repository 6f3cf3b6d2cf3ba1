//! How a request went, told once it is over; and refusals, which are told to the client as well.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Next, Session,
    exchange::Arrived,
    head::{self, Version},
    io::write_some,
    progress::Progress,
    request::{self, Method, RequestHead},
};
use crate::{
    failure::Failure,
    forward::respond,
    observe::{Protocol, Record},
    route::{Answer, Routed},
    upstream::Lease,
};

/// How long a client may take to accept a response of ours, which fits every socket buffer that is
/// not full already.
pub(super) const REFUSAL_TAKES: Duration = Duration::from_secs(1);

/// The same for an answer of a route's, which may be larger than a socket buffer.
const ANSWER_TAKES: Duration = Duration::from_secs(15);

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
    is_upstream_reused: bool,
    pub(super) status: Option<u16>,
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
            is_upstream_reused: false,
            status: None,
        }
    }

    /// Adds what one attempt has come to.
    pub(super) fn add(&mut self, lease: &Lease, progress: &Progress) {
        self.received = self.received.max(progress.written.get());
        self.sent += progress.sent.get();
        self.upstream = Some(lease.upstream.peer);
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

    /// Answers the request that begins the input in an upstream's place, and records it.
    pub(super) async fn answer(
        &mut self,
        head: RequestHead,
        arrived: &Arrived,
        answer: Answer,
        mut outcome: Outcome,
    ) -> Next {
        let keeps_client = head.keeps_alive
            && head.version == Version::Http11
            && arrived.body.is_done()
            && !self.connection.worker.drain.has_started();
        let is_head = head.method == Method::Head;
        let response = respond::http1_answer(&answer, is_head, keeps_client);
        outcome.failure = answer.failure;
        outcome.status = Some(answer.status.as_u16());
        let sent = tokio::time::timeout(ANSWER_TAKES, async {
            let mut sent = 0;
            while sent < response.len() {
                sent += write_some(&self.client, &response[sent..]).await?;
                outcome.sent = sent as u64;
            }
            io::Result::Ok(())
        });
        let is_sent = matches!(sent.await, Ok(Ok(())));
        if !is_sent {
            outcome.failure = Some(Failure::ClientClosed);
        }
        self.record(Some(&head), &outcome);
        match (is_sent, keeps_client) {
            (false, _) => Next::Reset,
            (true, true) => {
                self.input.consume(head.len + arrived.count);
                Next::Request
            }
            (true, false) => Next::Linger,
        }
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
        let record = Record {
            protocol: Protocol::Http1,
            client: connection.client,
            original: connection.original,
            cluster: outcome.routed.target.cluster(),
            upstream: outcome.upstream,
            upstream_reused: outcome.is_upstream_reused,
            request: head.map(|head| head.line(self.input.filled())),
            sni: None,
            status: outcome.status,
            failure: outcome.failure,
            bytes_received: outcome.received,
            bytes_sent: outcome.sent,
            duration: outcome.ended.unwrap_or_else(Instant::now) - outcome.started,
            trace: (self.trace.as_ref()).map(|trace| trace.ids(outcome.status, outcome.failure)),
        };
        connection.record(&record);
        if let Some(trace) = &self.trace {
            let lines = head.map_or(&[][..], |head| &self.input.filled()[..head.len]);
            connection.trace(trace, &record, |visit| {
                head::each_line(lines, |line| visit(line.name, line.value));
            });
            self.trace = None;
        }
    }
}
