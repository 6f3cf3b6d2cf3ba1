//! Everything that can go wrong with a connection or request: what, whose fault, and what the
//! client is told.

use std::io;

/// Why a connection or request did not succeed. Small and flat on purpose: it is a metric label, a
/// word in the access log, and the `error` of a `Proxy-Status` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Nobody redirected this connection: the kernel knows no original destination, or it is our
    /// own listener.
    NotRedirected,
    /// The connection is one of our own coming back.
    Loop,
    ConnectionLimit,
    /// Out of file descriptors or memory.
    OutOfResources,
    /// The request is malformed or ambiguous; the text says how.
    BadRequest(&'static str),
    HeadTooLarge,
    HeadTimeout,
    /// The client went away before the end.
    ClientClosed,
    ConnectRefused,
    ConnectUnreachable,
    ConnectTimeout,
    /// The cluster has no endpoint for this request.
    NoEndpoint,
    /// The breakers of all endpoints are tripped.
    BreakerTripped,
    /// One of the cluster's `circuit_breaker` limits is reached.
    Overflow,
    /// Adaptive concurrency's limit is reached.
    Shed,
    /// Over one of the `rate_limits`.
    RateLimited,
    /// The rate limit service does not answer, and is to be denied then.
    RateLimitService,
    /// The route answers HTTP requests only, and this is no HTTP.
    NotHttp,
    /// The route's `fault`.
    FaultInjected,
    /// The upstream closed or reset the connection before it answered.
    UpstreamClosed,
    /// The upstream broke off within its answer.
    UpstreamIncomplete,
    /// What the upstream said is not the protocol it should speak.
    UpstreamProtocol,
    /// The request took longer than its route, or the client's own gRPC deadline, allows.
    RequestTimeout,
    /// The last try that the route allows took too long.
    TryTimeout,
    /// The request went on for longer than the route's `max_stream_duration`.
    StreamTimeout,
    /// Nothing moved for longer than the idle timeout.
    IdleTimeout,
    /// One side closed and the other said nothing more.
    HalfCloseTimeout,
    /// Cut at the end of the drain deadline.
    Drained,
    /// A fault of ours.
    Internal,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Client,
    Proxy,
    Upstream,
}

impl Fault {
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Proxy => "proxy",
            Self::Upstream => "upstream",
        }
    }
}

impl Failure {
    /// Sorts the error of a dial.
    pub fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectRefused,
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                Self::UpstreamClosed
            }
            _ => match error.raw_os_error() {
                Some(
                    libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOMEM
                    | libc::ENOBUFS
                    | libc::EADDRNOTAVAIL,
                ) => Self::OutOfResources,
                _ => Self::ConnectUnreachable,
            },
        }
    }

    /// The label in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotRedirected => "not_redirected",
            Self::Loop => "loop",
            Self::ConnectionLimit => "connection_limit",
            Self::OutOfResources => "out_of_resources",
            Self::BadRequest(_) => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::ClientClosed => "client_closed",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectUnreachable => "connect_unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoEndpoint => "no_endpoint",
            Self::BreakerTripped => "breaker_tripped",
            Self::Overflow => "overflow",
            Self::Shed => "shed",
            Self::RateLimited => "rate_limited",
            Self::RateLimitService => "rate_limit_service",
            Self::NotHttp => "not_http",
            Self::FaultInjected => "fault_injected",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamIncomplete => "upstream_incomplete",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::RequestTimeout => "request_timeout",
            Self::TryTimeout => "per_try_timeout",
            Self::StreamTimeout => "max_stream_duration",
            Self::IdleTimeout => "idle_timeout",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::Drained => "drained",
            Self::Internal => "internal",
        }
    }

    pub fn fault(self) -> Fault {
        match self {
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::HeadTimeout
            | Self::ClientClosed
            | Self::RateLimited
            | Self::NotHttp => Fault::Client,
            Self::NotRedirected
            | Self::Loop
            | Self::ConnectionLimit
            | Self::OutOfResources
            | Self::Overflow
            | Self::Shed
            | Self::RateLimitService
            | Self::FaultInjected
            | Self::Drained
            | Self::Internal => Fault::Proxy,
            Self::NoEndpoint
            | Self::BreakerTripped
            | Self::ConnectRefused
            | Self::ConnectUnreachable
            | Self::ConnectTimeout
            | Self::UpstreamClosed
            | Self::UpstreamIncomplete
            | Self::UpstreamProtocol
            | Self::RequestTimeout
            | Self::TryTimeout
            | Self::StreamTimeout
            | Self::IdleTimeout
            | Self::HalfCloseTimeout => Fault::Upstream,
        }
    }

    /// The status code of a response made by the proxy for this failure.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::NotHttp => 400,
            Self::HeadTimeout => 408,
            Self::RateLimited => 429,
            Self::HeadTooLarge => 431,
            Self::ClientClosed => 499,
            Self::Internal | Self::RateLimitService => 500,
            Self::NotRedirected
            | Self::Loop
            | Self::ConnectRefused
            | Self::ConnectUnreachable
            | Self::UpstreamClosed
            | Self::UpstreamIncomplete
            | Self::UpstreamProtocol => 502,
            Self::ConnectionLimit
            | Self::OutOfResources
            | Self::NoEndpoint
            | Self::BreakerTripped
            | Self::Overflow
            | Self::Shed
            | Self::FaultInjected
            | Self::Drained => 503,
            Self::ConnectTimeout
            | Self::RequestTimeout
            | Self::TryTimeout
            | Self::StreamTimeout
            | Self::IdleTimeout
            | Self::HalfCloseTimeout => 504,
        }
    }

    /// The proxy error type of RFC 9209, section 2.3.
    pub fn proxy_error(self) -> &'static str {
        match self {
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::HeadTimeout
            | Self::ClientClosed
            | Self::NotHttp => "http_request_error",
            Self::NotRedirected
            | Self::Internal
            | Self::OutOfResources
            | Self::RateLimitService
            | Self::FaultInjected
            | Self::Drained => "proxy_internal_error",
            Self::RateLimited => "http_request_denied",
            Self::Loop => "proxy_loop_detected",
            Self::ConnectionLimit | Self::Overflow | Self::Shed => "connection_limit_reached",
            Self::NoEndpoint | Self::BreakerTripped => "destination_unavailable",
            Self::ConnectRefused => "connection_refused",
            Self::ConnectUnreachable => "destination_ip_unroutable",
            Self::ConnectTimeout => "connection_timeout",
            Self::UpstreamClosed => "connection_terminated",
            Self::UpstreamIncomplete => "http_response_incomplete",
            Self::UpstreamProtocol => "http_protocol_error",
            Self::RequestTimeout | Self::TryTimeout | Self::StreamTimeout => {
                "http_response_timeout"
            }
            Self::IdleTimeout | Self::HalfCloseTimeout => "connection_read_timeout",
        }
    }

    /// What a person at 3 a.m. should know, as `Proxy-Status` details and in logs.
    pub fn details(self) -> &'static str {
        match self {
            Self::BadRequest(how) => how,
            Self::NotRedirected => "connection reached the proxy without being redirected",
            Self::Loop => "the proxy met its own connection",
            Self::ConnectionLimit => "the proxy's connection limit is reached",
            Self::OutOfResources => "the proxy is out of descriptors, ports or memory",
            Self::HeadTooLarge => "request head exceeds the header limits",
            Self::HeadTimeout => "request head did not arrive in time",
            Self::ClientClosed => "client closed before the end",
            Self::ConnectRefused => "destination refused the connection",
            Self::ConnectUnreachable => "destination is unreachable",
            Self::ConnectTimeout => "connecting to the destination timed out",
            Self::NoEndpoint => "the cluster has no endpoint for this request",
            Self::BreakerTripped => "the breakers of all endpoints are tripped",
            Self::Overflow => "a limit of the cluster's circuit_breaker is reached",
            Self::Shed => "the cluster's adaptive_concurrency limit is reached",
            Self::NotHttp => "the route answers HTTP requests only",
            Self::FaultInjected => "the route asks for this fault",
            Self::RateLimited => "over a rate limit",
            Self::RateLimitService => "the rate limit service does not answer",
            Self::UpstreamClosed => "destination closed before it answered",
            Self::UpstreamIncomplete => "destination broke off within its answer",
            Self::UpstreamProtocol => "destination answered with something else",
            Self::RequestTimeout => "the answer took longer than the request's timeout",
            Self::TryTimeout => "no answer began within the timeout of one try",
            Self::StreamTimeout => "the request went on for its longest duration",
            Self::IdleTimeout => "nothing moved for the idle timeout",
            Self::HalfCloseTimeout => "one side closed and the other stayed silent",
            Self::Drained => "the proxy is shutting down",
            Self::Internal => "internal error of the proxy",
        }
    }
}
