//! `retry`: when a failed request is sent again, how often, and how soon. Words and meanings are
//! Envoy's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Span;

/// Sends a request again that failed before the client had anything of an answer. Never one that an
/// endpoint may have seen and whose repetition might do more than the request itself (RFC 9110,
/// section 9.2.2), unless `non_idempotent` says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Any of these is reason enough. Default `connect-failure`, `refused-stream`, `reset` and
    /// `gateway-error`: what another endpoint, or the next moment, may do better.
    pub on: Vec<RetryOn>,
    /// How often a request is sent again at most. Default 1, Envoy's.
    pub num_retries: u32,
    /// How long one try may take until its answer begins, counted from when it goes out whole.
    /// Default `null`: as long as the route's `timeout`.
    pub per_try_timeout: Option<Span>,
    /// How long one try may stand still, no byte moving either way. Default `null`: no limit.
    pub per_try_idle_timeout: Option<Span>,
    pub back_off: BackOff,
    pub rate_limited: RateLimited,
    /// The statuses of `retriable-status-codes`. Default: none.
    pub retriable_status_codes: Vec<u16>,
    /// The headers of `retriable-headers`; one is enough. Default: none.
    pub retriable_headers: Vec<RetriableHeader>,
    /// Whether requests are repeated too that an endpoint may have seen and acted upon: POST, PATCH,
    /// everything of gRPC. Default `false`: a second payment costs more than a failed one.
    pub non_idempotent: bool,
    /// Bytes of a request's body that are kept to be sent again. A longer body is relayed as ever,
    /// and its request not repeated. Default 64 KiB: nearly every call's, and a thousand of them at
    /// once still are no more than 64 MiB.
    pub max_body_bytes: usize,
    /// Prefers endpoints that have not been tried yet (Envoy's `previous_hosts`). Default `true`: the
    /// one that failed is the likeliest to fail again.
    pub other_endpoint: bool,
    /// Whether each try carries its number, from 1, in `x-envoy-attempt-count`. Default `false`:
    /// nothing is added to requests that nobody asked for.
    pub attempt_count: bool,
    /// Tries beside each other instead of one after another. Default: none.
    pub hedge: Option<Hedge>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            on: vec![
                RetryOn::ConnectFailure,
                RetryOn::RefusedStream,
                RetryOn::Reset,
                RetryOn::GatewayError,
            ],
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            back_off: BackOff::default(),
            rate_limited: RateLimited::default(),
            retriable_status_codes: Vec::new(),
            retriable_headers: Vec::new(),
            non_idempotent: false,
            max_body_bytes: 64 * 1024,
            other_endpoint: true,
            attempt_count: false,
            hedge: None,
        }
    }
}

/// A reason to send a request again: Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// A status of 500 to 599, or no answer at all: reset, refused, not connected, timed out.
    #[serde(rename = "5xx")]
    Status5xx,
    /// 502, 503 or 504, or no answer at all.
    GatewayError,
    /// No answer: the connection or stream ended, or `per_try_timeout` passed.
    Reset,
    /// The same, before a byte of the request had left.
    ResetBeforeRequest,
    /// No connection to the endpoint.
    ConnectFailure,
    /// The answer has `x-envoy-ratelimited`; without this condition such an answer is never a reason.
    EnvoyRatelimited,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// HTTP/2: the endpoint said that it did not process the request (REFUSED_STREAM, GOAWAY).
    RefusedStream,
    /// One of `retriable_status_codes`.
    RetriableStatusCodes,
    /// One of `retriable_headers` is in the answer.
    RetriableHeaders,
    /// Known so that policies can be carried over from Envoy; never met, for no endpoint is spoken to
    /// in HTTP/3.
    Http3PostConnectFailure,
    /// gRPC status 1, in an answer that is nothing but trailers.
    Cancelled,
    /// gRPC status 4, likewise.
    DeadlineExceeded,
    /// gRPC status 13, likewise.
    Internal,
    /// gRPC status 8, likewise.
    ResourceExhausted,
    /// gRPC status 14, likewise.
    Unavailable,
}

impl RetryOn {
    /// Whether it can only be met by a gRPC request, which is a POST.
    pub fn is_grpc(self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::DeadlineExceeded
                | Self::Internal
                | Self::ResourceExhausted
                | Self::Unavailable
        )
    }
}

/// How long to wait before a retry: a time drawn evenly from nothing to a bound, which is `base`
/// before the first and more than doubles with each next one (Envoy's "full jitter": base × (2ⁿ − 1)),
/// so that those who failed together do not come back together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackOff {
    /// Default 25 ms, Envoy's.
    pub base_interval: Span,
    /// The bound never exceeds this. Default `null`: ten times the base, Envoy's.
    pub max_interval: Option<Span>,
}

impl Default for BackOff {
    fn default() -> Self {
        Self {
            base_interval: Span::from_millis(25),
            max_interval: None,
        }
    }
}

/// Answers that say when to come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimited {
    /// The headers that say so; the first that an answer has counts. Default `retry-after`.
    pub reset_headers: Vec<ResetHeader>,
    /// An answer that says later than this is not waited for and goes to the client. Default 10 s:
    /// a client learns sooner from the answer than from our silence.
    pub max_interval: Span,
}

impl Default for RateLimited {
    fn default() -> Self {
        Self {
            reset_headers: vec![ResetHeader {
                name: "retry-after".into(),
                format: ResetFormat::Seconds,
            }],
            max_interval: Span::from_secs(10),
        }
    }
}

/// A header that says when to come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetHeader {
    /// Required.
    pub name: String,
    /// Default `seconds`.
    #[serde(default)]
    pub format: ResetFormat,
}

/// How such a header is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResetFormat {
    /// Seconds from now, or an HTTP date, as `Retry-After` may have either.
    #[default]
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

/// A header of an answer that makes it worth another try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetriableHeader {
    /// Required; case does not count.
    pub name: String,
    /// Its value, byte for byte. Default: whatever it is.
    #[serde(default)]
    pub exact: Option<String>,
    /// What its value begins with. Default: whatever it is.
    #[serde(default)]
    pub prefix: Option<String>,
}

/// A try that is slow goes on while the next one begins elsewhere; the first good answer wins and the
/// others are cancelled. `num_retries`, the budget and `non_idempotent` hold as for retries. A request
/// with a body is sent once the whole body has arrived; one too long to be kept is not hedged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// A try that passes `per_try_timeout` is not cancelled. Default `false`, Envoy's.
    pub on_per_try_timeout: bool,
    /// The next try begins when none has answered for this long. Default `null`: never by itself.
    pub delay: Option<Span>,
}
