//! What is told of one request when it is over, however it ends.

use std::{mem, net::SocketAddr, rc::Rc, time::Instant};

use http::{HeaderMap, HeaderValue, header::HOST, request, response};

use super::{peers::Peers, sessions::Place};
use crate::{
    cluster::Outcome,
    dispatch::Hop,
    failure::Failure,
    observe::{Protocol, Record, RequestLine},
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
    upstream: Option<SocketAddr>,
    is_reused: bool,
    status: Option<u16>,
    failure: Option<Failure>,
    received: u64,
    sent: u64,
}

impl Account {
    pub(super) fn open(peers: Rc<Peers>, head: request::Parts) -> Self {
        Self {
            peers,
            routed: Routed::default(),
            hop: None,
            started: Instant::now(),
            upstream: None,
            is_reused: false,
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
        self.is_reused = place.is_reused;
    }

    /// The request will not be sent again.
    pub(super) fn forget_headers(&mut self) {
        let headers = mem::take(&mut self.head.headers);
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
        connection.record(&Record {
            protocol: Protocol::Http2,
            client: connection.client,
            original: connection.original,
            cluster: self.routed.target.cluster(),
            upstream: self.upstream,
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
