//! What the spans of a request say, by OpenTelemetry's semantic conventions 1.45 for HTTP
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>) and RPC
//! (<https://opentelemetry.io/docs/specs/semconv/rpc/>), as OTLP's `Span` messages.

use std::{
    net::SocketAddr,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    attributes::{Attributes, write_text, write_word},
    propagation::TRACESTATE,
    protobuf::Message,
    request::{Attempt, Trace},
    w3c,
};
use crate::{
    dispatch::without_port,
    failure::{Failure, Fault},
    observe::{
        Record, RequestLine,
        access_log::{mask_query, split_query, without_userinfo},
    },
};

/// The field of `ScopeSpans` that has the spans.
pub(super) const SPANS: u32 = 2;

/// `Span.kind`.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;

/// `Status.code`.
const ERROR: u64 = 2;

/// In `Span.flags`: whether the parent is known to be of another process, and whether it is.
const KNOWS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// In place of a query parameter's value, which may be a password (the conventions' own word).
const REDACTED: &[u8] = b"REDACTED";

/// What is taken from a request's headers only when its spans are made.
#[derive(Debug)]
pub(super) struct Seen<'h> {
    user_agent: Option<&'h [u8]>,
    tracestate: Vec<&'h [u8]>,
    keeps_tracestate: bool,
    clock: Clock,
}

/// The moment at which spans are made, on both clocks.
#[derive(Clone, Copy, Debug)]
struct Clock {
    wall: u64,
    monotonic: Instant,
}

impl Clock {
    /// Nanoseconds since 1970.
    fn nanos(self, at: Instant) -> u64 {
        let ago = self.monotonic.saturating_duration_since(at).as_nanos();
        self.wall.saturating_sub(ago as u64)
    }
}

impl<'h> Seen<'h> {
    pub(super) fn of(trace: &Trace) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            user_agent: None,
            tracestate: Vec::new(),
            keeps_tracestate: trace.keeps_tracestate(),
            clock: Clock {
                wall: wall.map_or(0, |since| since.as_nanos() as u64),
                monotonic: Instant::now(),
            },
        }
    }

    pub(super) fn visit(&mut self, name: &[u8], value: &'h [u8]) {
        match name.len() {
            10 if self.keeps_tracestate && name.eq_ignore_ascii_case(TRACESTATE.as_bytes()) => {
                if !self.tracestate.is_empty() {
                    self.tracestate.push(b",");
                }
                self.tracestate.push(value);
            }
            10 if name.eq_ignore_ascii_case(b"user-agent") => self.user_agent = Some(value),
            _ => {}
        }
    }
}

/// Whether the request counts as failed: by us, by its answer, or by the code of its gRPC call. What
/// we refuse for its client's fault does not, or a flood of such would be exported whole.
pub(super) fn has_failed(trace: &Trace, status: Option<u16>, failure: Option<Failure>) -> bool {
    failure.is_some_and(|f| f.status() >= 500 || f == Failure::ClientClosed)
        || status.is_some_and(|status| status >= 500)
        || trace.grpc_status.is_some_and(is_servers_error)
}

/// How many spans [`of_request`] appends.
pub(super) fn count(trace: &Trace, record: &Record<'_>) -> usize {
    1 + trace.earlier.len() + usize::from(was_attempted(trace, record))
}

/// Appends the spans of a request, each as a field of `ScopeSpans`.
pub(super) fn of_request(out: &mut Vec<u8>, trace: &Trace, record: &Record<'_>, seen: &Seen<'_>) {
    let Some(request) = &record.request else {
        return of_connection(out, trace, record, seen);
    };
    let http = Http {
        trace,
        record,
        request,
        seen,
        target: Target::of(request, record.original.0),
    };
    Message::new(out).nested(SPANS, |span| http.server(span));
    for (resends, attempt) in trace.earlier.iter().enumerate() {
        Message::new(out).nested(SPANS, |span| http.client(span, attempt, resends, false));
    }
    if was_attempted(trace, record) {
        let resends = trace.earlier.len();
        Message::new(out).nested(SPANS, |span| {
            http.client(span, &trace.attempt, resends, true);
        });
    }
}

/// Whether the last attempt was one: it reached an upstream, or it was the upstream that it failed to
/// reach.
fn was_attempted(trace: &Trace, record: &Record<'_>) -> bool {
    let is_upstreams = |failure: Failure| match failure {
        Failure::NoEndpoint | Failure::BreakerTripped => false,
        failure => failure.fault() == Fault::Upstream,
    };
    record.request.is_some()
        && (trace.attempt.peer.is_some() || record.failure.is_some_and(is_upstreams))
}

/// Appends the one span of a connection that is no HTTP, as a field of `ScopeSpans`.
pub(super) fn of_connection(
    out: &mut Vec<u8>,
    trace: &Trace,
    record: &Record<'_>,
    seen: &Seen<'_>,
) {
    Message::new(out).nested(SPANS, |span| {
        begin(
            span,
            trace,
            seen,
            trace.attempt.span.number(),
            trace.parent.map(|p| p.number()),
        );
        span.nested(5, |name| write_word(name, record.protocol.label()));
        span.varint(6, CLIENT);
        time(span, seen.clock, trace.started, seen.clock.monotonic);
        let mut attributes = attributes(span);
        attributes.word("network.transport", "tcp");
        let original = record.original.0;
        match record.sni {
            Some(name) => attributes.text("server.address", &[name.as_bytes()]),
            None => attributes.word("server.address", original.ip().to_canonical()),
        }
        attributes.number("server.port", original.port().into());
        if let Some(peer) = record.upstream {
            network_peer(&mut attributes, peer);
        }
        attributes.word("client.address", record.client.0.ip().to_canonical());
        attributes.number("client.port", record.client.0.port().into());
        ours(&mut attributes, record);
        attributes.number("outrigger.bytes_received", record.bytes_received);
        attributes.number("outrigger.bytes_sent", record.bytes_sent);
        if let Some(failure) = record.failure {
            attributes.word("error.type", failure.label());
        }
        status(span, record.failure.is_some(), record.failure);
        end(span, trace, false);
    });
}

/// A request, and the parts of its target.
struct Http<'a> {
    trace: &'a Trace,
    record: &'a Record<'a>,
    request: &'a RequestLine<'a>,
    seen: &'a Seen<'a>,
    target: Target<'a>,
}

impl Http<'_> {
    fn server(&self, span: &mut Message<'_>) {
        let Self {
            trace,
            record,
            seen,
            ..
        } = self;
        begin(
            span,
            trace,
            seen,
            trace.server.number(),
            trace.parent.map(|p| p.number()),
        );
        self.name(span);
        span.varint(6, SERVER);
        time(span, seen.clock, trace.started, seen.clock.monotonic);
        let mut attributes = attributes(span);
        self.common(&mut attributes);
        attributes.word("url.scheme", "http");
        attributes.text("url.path", &[self.target.path]);
        if !self.target.query.is_empty() {
            attributes.text("url.query", &self.target.query);
        }
        attributes.word("client.address", record.client.0.ip().to_canonical());
        network_peer(&mut attributes, record.client.0);
        if let Some(user_agent) = seen.user_agent {
            attributes.text("user_agent.original", &[user_agent]);
        }
        if let Some(status) = record.status {
            attributes.number("http.response.status_code", status.into());
        }
        self.rpc_status(&mut attributes, trace.grpc_status);
        ours(&mut attributes, record);
        let is_error = has_failed(trace, record.status, record.failure);
        if is_error {
            self.error_type(&mut attributes, record.status, record.failure);
        }
        status(span, is_error, record.failure);
        end(span, trace, trace.parent.is_some());
    }

    fn client(&self, span: &mut Message<'_>, attempt: &Attempt, resends: usize, is_last: bool) {
        let Self {
            trace,
            record,
            seen,
            ..
        } = self;
        let failure = record.failure.filter(|_| is_last).or(attempt.failure);
        let grpc_status = trace.grpc_status.filter(|_| is_last);
        begin(
            span,
            trace,
            seen,
            attempt.span.number(),
            Some(trace.server.number()),
        );
        self.name(span);
        span.varint(6, CLIENT);
        let ended = attempt.ended.unwrap_or(seen.clock.monotonic);
        time(span, seen.clock, attempt.started, ended);
        let mut attributes = attributes(span);
        self.common(&mut attributes);
        let mut full = vec![&b"http://"[..], self.target.authority, self.target.path];
        if !self.target.query.is_empty() {
            full.push(b"?");
            full.extend(&self.target.query);
        }
        attributes.text("url.full", &full);
        if let Some(peer) = attempt.peer {
            network_peer(&mut attributes, peer);
        }
        if let Some(status) = attempt.status {
            attributes.number("http.response.status_code", status.into());
        }
        self.rpc_status(&mut attributes, grpc_status);
        if resends > 0 {
            attributes.number("http.request.resend_count", resends as u64);
        }
        ours(&mut attributes, record);
        // A client has every 4xx for an error too, a server only its own.
        let is_error = failure.is_some()
            || attempt.status.is_some_and(|status| status >= 400)
            || grpc_status.is_some_and(|status| status != 0);
        if is_error {
            self.error_type(&mut attributes, attempt.status, failure);
        }
        status(span, is_error, failure);
        end(span, trace, false);
    }

    /// The call's method of gRPC, else the request's: nothing of which there is one for each user.
    fn name(&self, span: &mut Message<'_>) {
        match self.rpc_method() {
            Some(method) => span.nested(5, |name| write_text(name, &[method])),
            None => span.bytes(
                5,
                known_method(self.request.method)
                    .unwrap_or("HTTP")
                    .as_bytes(),
            ),
        }
    }

    fn common(&self, attributes: &mut Attributes<'_, '_>) {
        let method = self.request.method;
        match known_method(method) {
            Some(method) => attributes.word("http.request.method", method),
            None => {
                attributes.word("http.request.method", "_OTHER");
                attributes.text("http.request.method_original", &[method.as_bytes()]);
            }
        }
        match self.target.name {
            Some(name) => attributes.text("server.address", &[name.as_bytes()]),
            None => {
                let ip = self.record.original.0.ip().to_canonical();
                attributes.word("server.address", ip);
            }
        }
        attributes.number("server.port", self.target.port.into());
        attributes.word("network.protocol.version", self.trace.version);
        if let Some(method) = self.rpc_method() {
            attributes.word("rpc.system.name", "grpc");
            attributes.text("rpc.method", &[method]);
        }
    }

    /// `package.Service/Method`.
    fn rpc_method(&self) -> Option<&[u8]> {
        let path = self.target.path.strip_prefix(b"/")?;
        self.trace.is_grpc.then_some(path)
    }

    fn rpc_status(&self, attributes: &mut Attributes<'_, '_>, status: Option<u8>) {
        if let Some(status) = status {
            attributes.word("rpc.response.status_code", grpc_name(status));
        }
    }

    fn error_type(
        &self,
        attributes: &mut Attributes<'_, '_>,
        status: Option<u16>,
        failure: Option<Failure>,
    ) {
        match (failure, self.trace.grpc_status, status) {
            (Some(failure), ..) => attributes.word("error.type", failure.label()),
            (None, Some(status @ 1..), _) => attributes.word("error.type", grpc_name(status)),
            (None, _, Some(status)) => attributes.word("error.type", status),
            (None, _, None) => attributes.word("error.type", "_OTHER"),
        }
    }
}

/// The parts of a request target and its host, without what may be secret.
struct Target<'a> {
    path: &'a [u8],
    /// In pieces, values redacted.
    query: Vec<&'a [u8]>,
    /// Host and port as they were written.
    authority: &'a [u8],
    /// None: the address that was dialled.
    name: Option<&'a str>,
    port: u16,
}

impl<'a> Target<'a> {
    fn of(request: &RequestLine<'a>, original: SocketAddr) -> Self {
        let (scheme, rest) = without_userinfo(request.target);
        let (with_path, query) = split_query(rest);
        let path = with_path.strip_suffix(b"?").unwrap_or(with_path);
        let (in_target, path) = if scheme.is_empty() {
            (None, path)
        } else {
            // An absolute target: its authority comes before its path.
            let end = memchr::memchr(b'/', path).unwrap_or(path.len());
            let (authority, path) = path.split_at(end);
            (Some(authority), path)
        };
        let mut pieces = Vec::new();
        mask_query(query, REDACTED, &mut pieces);
        let host = request.host.map(|host| without_userinfo(host).1);
        let authority = in_target.or(host).unwrap_or_default();
        let name = without_port(authority).filter(|name| !name.is_empty());
        Self {
            path,
            query: pieces,
            authority,
            name,
            port: match name {
                Some(_) => port_of(authority).unwrap_or(80),
                None => original.port(),
            },
        }
    }
}

fn port_of(authority: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(authority).ok()?;
    let (host, port) = text.rsplit_once(':')?;
    // Of an address in brackets what follows a colon inside is no port.
    let is_port = !host.starts_with('[') || host.ends_with(']');
    is_port.then(|| port.parse().ok())?
}

fn begin(span: &mut Message<'_>, trace: &Trace, seen: &Seen<'_>, id: u64, parent: Option<u64>) {
    span.bytes(1, &trace.trace.number().to_be_bytes());
    span.bytes(2, &id.to_be_bytes());
    if !seen.tracestate.is_empty() {
        span.nested(3, |state| write_text(state, &seen.tracestate));
    }
    if let Some(parent) = parent {
        span.bytes(4, &parent.to_be_bytes());
    }
}

fn time(span: &mut Message<'_>, clock: Clock, started: Instant, ended: Instant) {
    span.fixed64(7, clock.nanos(started));
    span.fixed64(8, clock.nanos(ended));
}

fn attributes<'m, 'b>(span: &'m mut Message<'b>) -> Attributes<'m, 'b> {
    Attributes {
        message: span,
        field: 9,
    }
}

fn network_peer(attributes: &mut Attributes<'_, '_>, peer: SocketAddr) {
    attributes.word("network.peer.address", peer.ip().to_canonical());
    attributes.number("network.peer.port", peer.port().into());
}

/// What no convention has a name for.
fn ours(attributes: &mut Attributes<'_, '_>, record: &Record<'_>) {
    attributes.word("outrigger.original_destination", record.original);
    if let Some(cluster) = record.cluster {
        attributes.text("outrigger.cluster", &[cluster.as_bytes()]);
    }
}

fn status(span: &mut Message<'_>, is_error: bool, failure: Option<Failure>) {
    if is_error {
        span.nested(15, |status| {
            if let Some(failure) = failure {
                status.bytes(2, failure.details().as_bytes());
            }
            status.varint(3, ERROR);
        });
    }
}

fn end(span: &mut Message<'_>, trace: &Trace, has_remote_parent: bool) {
    let remote = if has_remote_parent { IS_REMOTE } else { 0 };
    let flags = u32::from(w3c::flags_byte(trace.flags));
    span.fixed32(16, flags | KNOWS_REMOTE | remote);
}

/// A method that the conventions know by name; every other one is a client's invention.
fn known_method(method: &str) -> Option<&'static str> {
    [
        "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT", "TRACE", "QUERY",
    ]
    .into_iter()
    .find(|known| *known == method)
}

/// <https://grpc.io/docs/guides/status-codes/>
fn grpc_name(status: u8) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(usize::from(status)).copied().unwrap_or("_OTHER")
}

/// Codes that are an error on the server's side: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL,
/// UNAVAILABLE, DATA_LOSS; the others are its client's.
fn is_servers_error(status: u8) -> bool {
    matches!(status, 2 | 4 | 12..=15)
}
