//! What is told of one request when it is over, however it ends.

use std::{mem, net::SocketAddr, rc::Rc, time::Instant};

use http::{HeaderMap, HeaderValue, header::HOST, request, response};

use outrigger_config::{HeaderOf, Headers};

use super::{exchange::Lines, peers::Peers, sessions::Place};
use crate::{
    cluster::Outcome,
    dispatch::Hop,
    failure::Failure,
    observe::{Captured, FailedTries, Protocol, Record, RequestLine},
    route::Routed,
};

/// Recorded when dropped: a request that nobody finished was cut at the end of the drain.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) peers: Rc<Peers>,
    pub(super) routed: Routed,
    /// Where it is being tried.
    pub(super) hop: Option<Hop>,
    pub(super) head: request::Parts,
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
}

impl Account {
    pub(super) fn open(peers: Rc<Peers>, head: request::Parts) -> Self {
        let captured = peers.client.connection.worker.captured();
        Self {
            peers,
            captured,
            routed: Routed::default(),
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
            head,
        }
    }

    /// The request goes out at `place`.
    pub(super) fn sent_at(&mut self, place: &Place) {
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

    pub(super) fn wants_trailers(&self) -> bool {
        (self.captured.as_ref()).is_some_and(|captured| captured.wanted().wants_trailers())
    }

    /// What the answer ended with.
    pub(super) fn note_trailers(&mut self, trailers: Option<&HeaderMap>) {
        if let (Some(captured), Some(trailers)) = (&mut self.captured, trailers) {
            let lines = Lines(trailers);
            captured.keep(HeaderOf::Trailer, |name, show| lines.each(name, show));
        }
    }

    /// Tells the endpoint's cluster; what comes after the first telling changes nothing.
    pub(super) fn report(&mut self, outcome: Outcome) {
        if let Some(hop) = &mut self.hop {
            hop.report(outcome, Instant::now());
        }
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
        let uri = &self.head.uri;
        let authority = uri.authority().map(|a| a.as_str().as_bytes());
        let target = match uri.path_and_query() {
            Some(path) => path.as_str().as_bytes(),
            None => authority.unwrap_or_default(),
        };
        let host = self.head.headers.get(HOST).map(HeaderValue::as_bytes);
        let failed = self.failed.take();
        let lines = Lines(&self.head.headers);
        connection.record(&Record {
            protocol: Protocol::Http2,
            is_http10: false,
            connection: connection.listed.entry.number,
            client: connection.client,
            original: connection.original,
            routed: &self.routed,
            upstream: self.upstream,
            upstream_local: self.upstream_local,
            attempts: self.tries + failed.len() as u32,
            failed: &failed,
            headers: Some(&lines),
            captured: self.captured.as_ref(),
            trace_id: None,
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
        });
    }
}

/// Bytes of a header list before compression, names and values only.
fn size(headers: &HeaderMap) -> u64 {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().len() + value.len()) as u64)
        .sum()
}
