//! One finished request (HTTP) or connection (everything else), as metrics and the access log see
//! it. Borrowed throughout: nothing is copied where nobody logs.

use std::{cell::RefCell, net::SocketAddr, time::Duration};

use outrigger_config::Headers;

use super::{TraceIds, access_log::Captured};
use crate::{
    address::{ClientAddr, OriginalDst},
    failure::Failure,
    route::Routed,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    Http2,
    Tls,
    /// Bytes we do not understand, and do not need to.
    Opaque,
}

impl Protocol {
    pub fn label(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    pub method: &'a str,
    /// The request target as the client wrote it; bytes that are no UTF-8 are shown replaced.
    pub target: &'a [u8],
    /// `Host` or `:authority`.
    pub host: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub protocol: Protocol,
    pub is_http10: bool,
    /// The connection's number, unique while the process runs.
    pub connection: u64,
    pub client: ClientAddr,
    pub original: OriginalDst,
    pub routed: &'a Routed,
    /// Where the bytes went; none if no upstream was reached.
    pub upstream: Option<SocketAddr>,
    /// Our end of that connection.
    pub upstream_local: Option<SocketAddr>,
    /// Whether that was a connection used before.
    pub upstream_reused: bool,
    /// How often it was tried, dials that failed included.
    pub attempts: u32,
    /// The tries that came to nothing, in their order, as far as they are remembered.
    pub failed: &'a [FailedTry],
    pub request: Option<RequestLine<'a>>,
    /// The request's headers, if they are still there.
    pub headers: Option<&'a dyn Headers>,
    /// Headers kept because a log's format names them.
    pub captured: Option<&'a Captured>,
    /// The server name of a TLS ClientHello.
    pub sni: Option<&'a str>,
    /// The status code the client was sent; none outside HTTP, or when nothing was sent.
    pub status: Option<u16>,
    pub failure: Option<Failure>,
    /// Bytes read from the client for this request or connection, heads included.
    pub bytes_received: u64,
    /// Bytes written to the client, heads included.
    pub bytes_sent: u64,
    pub duration: Duration,
    /// From its beginning to the answer's head; known only if a log asks for it.
    pub answered: Option<Duration>,
    /// Of a request that is traced, exported or not.
    pub trace: Option<TraceIds>,
}

/// A switch of protocols is no answer that anyone waited for; what follows may last for hours.
const SWITCHING_PROTOCOLS: u16 = 101;

impl Record<'_> {
    /// Whether its duration is one that somebody waited for.
    pub(super) fn is_latency(&self) -> bool {
        matches!(self.protocol, Protocol::Http1 | Protocol::Http2)
            && self.status != Some(SWITCHING_PROTOCOLS)
    }
}

/// A try that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedTry {
    pub endpoint: SocketAddr,
    /// None: it was answered, and the answer not taken.
    pub failure: Option<Failure>,
    pub status: Option<u16>,
    /// Whether there was no connection.
    pub is_dial: bool,
}

impl FailedTry {
    /// How many of them there are.
    pub fn dials(tries: &[Self]) -> u32 {
        tries.iter().filter(|tried| tried.is_dial).count() as u32
    }
}

/// The failed tries of one request. Nothing is allocated while none fails.
#[derive(Debug, Default)]
pub struct FailedTries(RefCell<Vec<FailedTry>>);

/// Tries that are remembered; further ones are as good as told by the first.
const MAX_TRIES: usize = 16;

impl FailedTries {
    /// It took no connection.
    pub fn note(&self, endpoint: SocketAddr, failure: Failure) {
        self.push(FailedTry {
            endpoint,
            failure: Some(failure),
            status: None,
            is_dial: true,
        });
    }

    /// It did not answer.
    pub fn broke(&self, endpoint: SocketAddr, failure: Failure) {
        self.push(FailedTry {
            endpoint,
            failure: Some(failure),
            status: None,
            is_dial: false,
        });
    }

    /// It answered, and another try was made.
    pub fn answered(&self, endpoint: SocketAddr, status: u16) {
        self.push(FailedTry {
            endpoint,
            failure: None,
            status: Some(status),
            is_dial: false,
        });
    }

    fn push(&self, tried: FailedTry) {
        let mut tries = self.0.borrow_mut();
        if tries.len() < MAX_TRIES {
            tries.push(tried);
        }
    }

    pub fn take(&self) -> Vec<FailedTry> {
        self.0.take()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::dispatch::Target;

    static NO_ROUTE: Routed = Routed {
        target: Target::Original,
        route: None,
        limits: None,
    };

    /// An ordinary answered request, for tests to change what they are about.
    pub(crate) fn record() -> Record<'static> {
        Record {
            protocol: Protocol::Http1,
            is_http10: false,
            connection: 7,
            client: ClientAddr(SocketAddr::from(([127, 0, 0, 1], 40000))),
            original: OriginalDst(SocketAddr::from(([203, 0, 113, 7], 80))),
            routed: &NO_ROUTE,
            upstream: Some(SocketAddr::from(([203, 0, 113, 7], 80))),
            upstream_local: Some(SocketAddr::from(([192, 0, 2, 9], 50000))),
            upstream_reused: false,
            attempts: 1,
            failed: &[],
            request: Some(RequestLine {
                method: "GET",
                target: b"/",
                host: Some(b"example.test"),
            }),
            headers: None,
            captured: None,
            sni: None,
            status: Some(200),
            failure: None,
            bytes_received: 100,
            bytes_sent: 200,
            duration: Duration::from_micros(1500),
            answered: None,
            trace: None,
        }
    }
}
