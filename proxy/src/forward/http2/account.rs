//! What is told of one request when it is over, however it ends.

use std::{
    mem,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{HOST, USER_AGENT},
    request, response,
};

use outrigger_config::{HeaderOf, Headers};

use super::{
    edit::Asked, exchange::Lines, mirror::Copies, peers::Peers, sessions::Place, upload::Upload,
};
use crate::{
    cluster::Outcome,
    dispatch::Hop,
    failure::Failure,
    forward::{
        deadlines::{self, Passed},
        policed::Policed,
    },
    observe::{
        Captured, FailedTries, FailedTry, Protocol, Record, RequestLine,
        trace::{Edit, Incoming, Trace},
    },
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
    pub(super) fn write_trace(&mut self, headers: &mut HeaderMap) {
        let settings = match &self.trace {
            Some(_) => self.peers.client.connection.worker.settings(),
            None => return,
        };
        // A reload may have turned tracing off meanwhile.
        if let (Some(trace), Some(settings)) = (&mut self.trace, &settings.tracing) {
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
