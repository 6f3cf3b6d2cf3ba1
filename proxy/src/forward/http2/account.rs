//! What is told of one request when it is over, however it ends.

use std::{
    mem,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use h2::RecvStream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{HOST, USER_AGENT},
    request, response,
};

use outrigger_config::{HeaderOf, Headers};

use super::{
    edit::Asked, mirror::Copies, peers::Peers, request::Lines, sessions::Place, upload::Upload,
};
use crate::{
    cluster::Outcome,
    dispatch::Hop,
    failure::Failure,
    forward::{
        deadlines::{self, Passed},
        policed::{Policed, is_grpc},
    },
    observe::{
        Captured, FailedTries, FailedTry, Protocol, Record, RequestLine,
        trace::{Edit, Incoming, Trace},
    },
    retry::grpc,
    route::Routed,
};

/// Recorded when dropped: a request that nobody finished was cut at the end of the drain.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) peers: Rc<Peers>,
    pub(super) routed: Routed,
    /// The time limits and retries of its route.
    pub(super) policed: Option<Rc<Policed>>,
    /// Where it is being tried.
    pub(super) hop: Option<Hop>,
    pub(super) head: request::Parts,
    /// What the client asked for, if its route has changed that.
    pub(super) asked: Option<Box<Asked>>,
    /// To be sent when the request is whole.
    pub(super) copies: Option<Box<Copies>>,
    started: Instant,
    pub(super) failed: FailedTries,
    upstream: Option<SocketAddr>,
    upstream_local: Option<SocketAddr>,
    is_reused: bool,
    /// Over a connection; failed dials are counted apart.
    tries: u32,
    answered: Option<Instant>,
    captured: Option<Captured>,
    status: Option<u16>,
    failure: Option<Failure>,
    /// Of a gRPC call whose answer has begun: how it went is not known yet.
    awaits_status: bool,
    received: u64,
    sent: u64,
    /// If requests are traced; apart, for there may be a thousand streams.
    trace: Option<Box<Trace>>,
}

impl Account {
    pub(super) fn open(peers: Rc<Peers>, head: request::Parts) -> Self {
        let captured = peers.client.connection.worker.captured();
        Self {
            peers,
            captured,
            routed: Routed::default(),
            policed: None,
            hop: None,
            started: Instant::now(),
            failed: FailedTries::default(),
            upstream: None,
            upstream_local: None,
            is_reused: false,
            tries: 0,
            answered: None,
            status: None,
            failure: Some(Failure::Drained),
            awaits_status: false,
            received: size(&head.headers),
            sent: 0,
            trace: None,
            asked: None,
            copies: None,
            head,
        }
    }

    /// Begins the request's trace, when its route is known.
    pub(super) fn begin_trace(&mut self) {
        let worker = &self.peers.client.connection.worker;
        let settings = worker.settings();
        let Some(settings) = &settings.tracing else {
            return;
        };
        let mut incoming = Incoming::default();
        for (name, value) in &self.head.headers {
            incoming.visit(name.as_str().as_bytes(), value.as_bytes());
        }
        let route = self
            .routed
            .policy()
            .and_then(|route| route.tracing.as_ref());
        let ids = &worker.trace_ids;
        let trace = Trace::begin(settings, route, &incoming, ids, "2", self.started);
        self.trace = Some(Box::new(trace));
    }

    /// Writes the trace into what is about to be sent.
    pub(super) fn write_trace(&self, headers: &mut HeaderMap) {
        let Some(trace) = &self.trace else {
            return;
        };
        // A reload may have turned tracing off meanwhile.
        let settings = self.peers.client.connection.worker.settings();
        let Some(settings) = &settings.tracing else {
            return;
        };
        trace.each_edit(settings, |edit| match edit {
            Edit::Add(name, value) | Edit::Replace(name, value) => {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
            Edit::Remove(name) => {
                headers.remove(name);
            }
        });
    }

    /// An attempt came to no answer.
    pub(super) fn attempt_failed(&mut self, failure: Failure) {
        if let Some(trace) = &mut self.trace {
            trace.failed(failure);
        }
    }

    /// The attempt is over, and there is to be another one.
    pub(super) fn end_attempt(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.end_attempt(Instant::now());
        }
    }

    /// The next attempt begins.
    pub(super) fn trace_again(&mut self) {
        let worker = &self.peers.client.connection.worker;
        if let Some(trace) = &mut self.trace {
            trace.again(&worker.trace_ids, Instant::now());
        }
    }

    /// An upstream answers with `head`.
    pub(super) fn note_answer(&mut self, status: StatusCode, headers: &HeaderMap) {
        if let Some(trace) = &mut self.trace {
            trace.answered(status.as_u16());
            if trace.is_grpc() {
                // Of a call that failed at once, there are no trailers.
                trace.note_grpc_status(headers);
            }
        }
    }

    /// What came after the answer's body.
    pub(super) fn note_trailers(&mut self, trailers: &HeaderMap) {
        if let Some(trace) = &mut self.trace {
            trace.note_grpc_status(trailers);
        }
        if let Some(captured) = &mut self.captured {
            let lines = Lines(trailers);
            captured.keep(HeaderOf::Trailer, |name, show| lines.each(name, show));
        }
    }

    /// Whether anybody wants to know an answer's trailers.
    pub(super) fn wants_trailers(&self) -> bool {
        self.trace.as_ref().is_some_and(|trace| trace.is_grpc())
            || (self.captured.as_ref()).is_some_and(|captured| captured.wanted().wants_trailers())
    }

    /// The request goes out at `place`.
    pub(super) fn sent_at(&mut self, place: &Place) {
        if let Some(trace) = &mut self.trace {
            trace.reached(place.session.peer);
        }
        if let Some(policed) = &self.policed {
            policed.deadlines.begin_try();
        }
        self.upstream = Some(place.session.peer);
        self.upstream_local = Some(place.session.local);
        self.tries += 1;
        self.is_reused = place.is_reused;
    }

    /// The request will not be sent again.
    pub(super) fn forget_headers(&mut self) {
        let headers = mem::take(&mut self.head.headers);
        if let Some(captured) = &mut self.captured {
            let lines = Lines(&headers);
            captured.keep(HeaderOf::Request, |name, show| lines.each(name, show));
        }
        // The record still wants to know the host.
        if self.head.uri.authority().is_none()
            && let Some(host) = headers.get(HOST)
        {
            self.head.headers.insert(HOST, host.clone());
        }
        if self.trace.is_some() {
            // So do its spans some more.
            for name in [USER_AGENT, HeaderName::from_static("tracestate")] {
                for value in headers.get_all(&name) {
                    self.head.headers.append(&name, value.clone());
                }
            }
        }
    }

    /// The client is answered with `head`.
    pub(super) fn answered(&mut self, head: &response::Parts) {
        self.status = Some(head.status.as_u16());
        self.sent += size(&head.headers);
        if let Some(captured) = &mut self.captured {
            if captured.wanted().wants_answer_time() {
                self.answered = Some(Instant::now());
            }
            let lines = Lines(&head.headers);
            captured.keep(HeaderOf::Response, |name, show| lines.each(name, show));
        }
    }

    /// Tells the endpoint's cluster; what comes after the first telling changes nothing.
    pub(super) fn report(&mut self, outcome: Outcome) {
        if let Some(hop) = &mut self.hop {
            hop.report(outcome, Instant::now());
        }
    }

    /// The endpoint answers. What became of a gRPC call is told by its last header block, which is this one
    /// only where there is no other.
    pub(super) fn report_answer(&mut self, answer: &Response<RecvStream>) {
        self.awaits_status = false;
        let Some(hop) = self.hop.as_mut().filter(|hop| hop.is_watched()) else {
            return;
        };
        let now = Instant::now();
        match outcome_of(answer) {
            Some(outcome) => hop.report(outcome, now),
            None => {
                hop.heard(now);
                self.awaits_status = true;
            }
        }
    }

    /// Whether the last header block is of interest.
    pub(super) fn awaits_status(&self) -> bool {
        self.awaits_status
    }

    /// The answer has ended. A call without a status is as bad as one with an error.
    pub(super) fn report_end(&mut self, trailers: Option<&HeaderMap>) {
        if self.awaits_status {
            let status = trailers.and_then(|trailers| grpc::status(&Lines(trailers)));
            self.report(status.map_or(Outcome::Error, Outcome::of_grpc));
        }
    }

    /// The answer has broken off.
    pub(super) fn report_broken(&mut self) {
        if self.awaits_status {
            self.report(Outcome::LocalOriginFailure);
        }
    }

    /// Ready when a time limit has passed.
    pub(super) fn poll_deadlines(
        &self,
        cx: &mut Context<'_>,
        upload: &Upload,
        is_answered: bool,
    ) -> Poll<Passed> {
        let Some(policed) = &self.policed else {
            return Poll::Pending;
        };
        let progress = deadlines::Progress {
            moved: self.received + self.sent,
            is_received: upload.is_received(),
            is_answered,
        };
        policed.deadlines.poll(cx, progress)
    }

    /// Counts a limit that has passed.
    pub(super) fn passed(&self, passed: Passed) -> Failure {
        let policed = self.policed.as_ref();
        policed.map_or_else(|| passed.failure(), |policed| policed.passed(passed))
    }

    /// Whether the client has heard `100 Continue` already; it has from here on.
    pub(super) fn has_continued(&self) -> bool {
        self.policed.as_ref().is_some_and(|p| !p.first_continue())
    }

    /// After how long without an answer another try begins beside the one under way, if the request may
    /// be hedged; what differs by endpoint, or becomes a tunnel, is not.
    pub(super) fn hedge_delay(&self) -> Option<Duration> {
        let delay = self.policed.as_ref()?.hedge_delay()?;
        let rewrite = self.routed.policy().and_then(|p| p.rewrite.as_ref());
        let may_be_hedged =
            self.head.method != Method::CONNECT && !rewrite.is_some_and(|r| r.auto_host);
        may_be_hedged.then_some(delay)
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.policed.as_ref().is_some_and(|p| p.is_grpc())
    }

    pub(super) fn add_received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    pub(super) fn add_sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    pub(super) fn close(mut self, failure: Option<Failure>) {
        self.failure = failure;
    }
}

/// What the head of an answer tells of its endpoint; none of a gRPC call that tells it later.
pub(super) fn outcome_of(answer: &Response<RecvStream>) -> Option<Outcome> {
    let status = answer.status();
    if status != StatusCode::OK || !is_grpc(&Lines(answer.headers())) {
        return Some(Outcome::of_status(status.as_u16()));
    }
    grpc::status(&Lines(answer.headers())).map(Outcome::of_grpc)
}

impl Drop for Account {
    fn drop(&mut self) {
        let connection = &self.peers.client.connection;
        let uri = self
            .asked
            .as_ref()
            .map_or(&self.head.uri, |asked| &asked.uri);
        let authority = uri.authority().map(|a| a.as_str().as_bytes());
        let target = match uri.path_and_query() {
            Some(path) => path.as_str().as_bytes(),
            None => authority.unwrap_or_default(),
        };
        let host = match &self.asked {
            Some(asked) => asked.host.as_ref(),
            None => self.head.headers.get(HOST),
        };
        let host = host.map(HeaderValue::as_bytes);
        let failed = self.failed.take();
        let lines = Lines(&self.head.headers);
        let trace = self.trace.take();
        let record = Record {
            protocol: Protocol::Http2,
            is_http10: false,
            connection: connection.listed.entry.number,
            client: connection.client,
            original: connection.original,
            routed: &self.routed,
            upstream: self.upstream,
            upstream_local: self.upstream_local,
            attempts: self.tries + FailedTry::dials(&failed),
            failed: &failed,
            headers: Some(&lines),
            captured: self.captured.as_ref(),
            answered: self.answered.map(|at| at - self.started),
            upstream_reused: self.is_reused,
            request: Some(RequestLine {
                method: self.head.method.as_str(),
                target,
                host: authority.or(host),
            }),
            sni: None,
            status: self.status,
            failure: self.failure,
            bytes_received: self.received,
            bytes_sent: self.sent,
            duration: self.started.elapsed(),
            trace: (trace.as_ref()).map(|trace| trace.ids(self.status, self.failure)),
        };
        connection.record(&record);
        if let Some(trace) = trace {
            connection.trace(&trace, &record, |visit| {
                for (name, value) in &self.head.headers {
                    visit(name.as_str().as_bytes(), value.as_bytes());
                }
            });
        }
    }
}

/// Bytes of a header list before compression, names and values only.
fn size(headers: &HeaderMap) -> u64 {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().len() + value.len()) as u64)
        .sum()
}
