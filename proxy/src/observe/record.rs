//! One finished request (HTTP) or connection (everything else), as metrics and the access log see
//! it. Borrowed throughout: nothing is copied where nobody logs.

use std::{net::SocketAddr, time::Duration};

use super::TraceIds;
use crate::{
    address::{ClientAddr, OriginalDst},
    failure::Failure,
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
    pub client: ClientAddr,
    pub original: OriginalDst,
    /// The cluster that a route led to.
    pub cluster: Option<&'a str>,
    /// Where the bytes went; none if no upstream was reached.
    pub upstream: Option<SocketAddr>,
    /// Whether that was a connection used before.
    pub upstream_reused: bool,
    pub request: Option<RequestLine<'a>>,
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ordinary answered request, for tests to change what they are about.
    pub(crate) fn record() -> Record<'static> {
        Record {
            protocol: Protocol::Http1,
            client: ClientAddr(SocketAddr::from(([127, 0, 0, 1], 40000))),
            original: OriginalDst(SocketAddr::from(([203, 0, 113, 7], 80))),
            cluster: None,
            upstream: Some(SocketAddr::from(([203, 0, 113, 7], 80))),
            upstream_reused: false,
            request: Some(RequestLine {
                method: "GET",
                target: b"/",
                host: Some(b"example.test"),
            }),
            sni: None,
            status: Some(200),
            failure: None,
            bytes_received: 100,
            bytes_sent: 200,
            duration: Duration::from_micros(1500),
            trace: None,
        }
    }
}
