//! What a limit adds to requests and responses: the quota that is left (`RateLimit` and
//! `RateLimit-Policy` as in draft-ietf-httpapi-ratelimit-headers-11), when to come back, and what a
//! service wants said.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header::RETRY_AFTER};
use outrigger_config::{RESERVED_HEADERS, RateLimit};

use super::bucket::{Left, Rate};
use crate::failure::Failure;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Headers that a service may have added to one message: far more than any does.
const MAX_ADDED: usize = 32;

pub(super) type Headers = Vec<(HeaderName, HeaderValue)>;

/// What is to be added to what passes.
#[derive(Debug, Default)]
pub struct Told {
    /// To the request, as a service wants it.
    pub request: Vec<(HeaderName, HeaderValue)>,
    /// To the response.
    pub response: Vec<(HeaderName, HeaderValue)>,
}

/// What is turned away.
#[derive(Debug)]
pub struct Refusal {
    pub failure: Failure,
    pub status: u16,
    /// Of a gRPC call.
    pub grpc_status: u8,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What a service wants said, instead of the proxy's own words.
    pub body: Option<Bytes>,
}

/// The quota under one limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Requests in each window of so many seconds.
    pub(super) allocated: u64,
    pub(super) window: u64,
    pub(super) available: u64,
    /// Until there are more.
    pub(super) reset: Duration,
}

/// UNAVAILABLE and RESOURCE_EXHAUSTED.
const GRPC_UNAVAILABLE: u8 = 14;
const GRPC_RESOURCE_EXHAUSTED: u8 = 8;
/// INTERNAL, what a 500 is to gRPC.
const GRPC_INTERNAL: u8 = 13;

impl Quota {
    /// Of a bucket. Its window is a whole number of seconds, the least in which it fills, so that
    /// what is available never exceeds what is allocated.
    pub(super) fn of_bucket(rate: Rate, left: Left, reset: Duration) -> Self {
        let (per_second, burst) = (rate.per_second(), rate.max_tokens());
        let window = rate.fills_in_seconds();
        Self {
            allocated: burst.max((per_second * window as f64).round() as u64),
            window,
            available: left.tokens,
            reset,
        }
    }

    pub(super) fn write(&self, limit: &RateLimit, to: &mut Headers) {
        let Self {
            allocated,
            window,
            available,
            ..
        } = self;
        let name = &limit.name;
        let reset = seconds(self.reset);
        push(to, POLICY, format!("\"{name}\";q={allocated};w={window}"));
        push(to, LIMIT, format!("\"{name}\";r={available};t={reset}"));
        if limit.x_ratelimit_headers {
            push(to, X_LIMIT, allocated.to_string());
            push(to, X_REMAINING, available.to_string());
            push(to, X_RESET, reset.to_string());
        }
    }
}

impl Refusal {
    /// Of what is over `limit`.
    pub(super) fn of(limit: &RateLimit, quota: Option<Quota>) -> Box<Self> {
        let mut headers = Headers::new();
        if let Some(quota) = quota {
            if limit.headers != outrigger_config::RateLimitHeaders::Never {
                quota.write(limit, &mut headers);
            }
            // A whole second at least: 0 would have it come back at once.
            push(
                &mut headers,
                RETRY_AFTER,
                seconds(quota.reset).max(1).to_string(),
            );
        }
        Box::new(Self {
            failure: Failure::RateLimited,
            status: limit.status,
            grpc_status: match limit.rate_limited_as_resource_exhausted {
                true => GRPC_RESOURCE_EXHAUSTED,
                false => GRPC_UNAVAILABLE,
            },
            headers,
            body: None,
        })
    }

    /// The service does not answer, and is to be denied then.
    pub(super) fn unanswered() -> Box<Self> {
        let failure = Failure::RateLimitService;
        Box::new(Self {
            failure,
            status: failure.status(),
            grpc_status: GRPC_INTERNAL,
            headers: Headers::new(),
            body: None,
        })
    }
}

/// Adds a service's header, unless it could change what a message is or where it goes.
pub(super) fn add_foreign(to: &mut Headers, name: &str, value: &[u8]) {
    let (Ok(name), Ok(value)) = (
        HeaderName::from_bytes(name.as_bytes()),
        HeaderValue::from_bytes(value),
    ) else {
        return;
    };
    if value.to_str().is_err() {
        return;
    }
    if to.len() < MAX_ADDED && !RESERVED_HEADERS.contains(&name.as_str()) {
        to.push((name, value));
    }
}

fn push(to: &mut Headers, name: HeaderName, value: String) {
    // Names of limits and numbers are all that it is made of.
    if let Ok(value) = HeaderValue::try_from(value) {
        to.push((name, value));
    }
}

/// Rounded up: whoever comes back then does not come too early.
fn seconds(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(1_000_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(more: &str) -> RateLimit {
        let text = format!(
            "defaults: {{ rate_limits: [{{ name: a, token_bucket: {{ max_tokens: 1, fill_interval: 1s }} {more} }}] }}"
        );
        let settings = outrigger_config::parse(&text).expect("good settings");
        settings.defaults.rate_limits[0].clone()
    }

    fn rate(max_tokens: u32, tokens_per_fill: u32) -> Rate {
        Rate::new(&outrigger_config::TokenBucket {
            max_tokens: max_tokens.try_into().expect("it is not zero"),
            tokens_per_fill: tokens_per_fill.try_into().expect("it is not zero"),
            fill_interval: outrigger_config::Span::from_secs(1),
        })
    }

    fn written(headers: &Headers) -> Vec<String> {
        let text = |(name, value): &(HeaderName, HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("ASCII"))
        };
        headers.iter().map(text).collect()
    }

    #[test]
    fn a_refusal_tells_the_policy_what_is_left_and_when_to_come_back() {
        let left = Left {
            tokens: 0,
            full_in: Duration::from_secs(100),
        };
        let quota = Quota::of_bucket(rate(100, 1), left, Duration::from_millis(300));
        let refusal = Refusal::of(&limit(", x_ratelimit_headers: true"), Some(quota));
        assert_eq!(
            written(&refusal.headers),
            [
                "ratelimit-policy: \"a\";q=100;w=100",
                "ratelimit: \"a\";r=0;t=1",
                "x-ratelimit-limit: 100",
                "x-ratelimit-remaining: 0",
                "x-ratelimit-reset: 1",
                "retry-after: 1",
            ]
        );
        assert_eq!((refusal.status, refusal.grpc_status), (429, 14));
        let silent = Refusal::of(
            &limit(", headers: never, status: 503, rate_limited_as_resource_exhausted: true"),
            Some(quota),
        );
        assert_eq!(written(&silent.headers), ["retry-after: 1"]);
        assert_eq!((silent.status, silent.grpc_status), (503, 8));
    }

    #[test]
    fn what_is_available_never_exceeds_what_is_allocated_and_the_rate_is_the_limits() {
        let hourly = Rate::new(&outrigger_config::TokenBucket {
            max_tokens: 3.try_into().expect("it is not zero"),
            tokens_per_fill: 1.try_into().expect("it is not zero"),
            fill_interval: outrigger_config::Span::from_secs(3_600),
        });
        let full = Left {
            tokens: 3,
            full_in: Duration::ZERO,
        };
        let quota = Quota::of_bucket(hourly, full, Duration::ZERO);
        assert_eq!((quota.allocated, quota.window), (3, 10_800));
        for (max, fill, q, w) in [
            (100, 1_000, 1_000, 1),
            (150, 100, 200, 2),
            (5, 1, 5, 5),
            (1, 3, 3, 1),
        ] {
            let left = Left {
                tokens: max.into(),
                full_in: Duration::ZERO,
            };
            let quota = Quota::of_bucket(rate(max, fill), left, Duration::ZERO);
            assert_eq!((quota.allocated, quota.window), (q, w), "{max} {fill}");
            assert!(quota.available <= quota.allocated);
        }
    }

    #[test]
    fn a_service_cannot_change_what_a_message_is() {
        let mut headers = Headers::new();
        for (name, value) in [
            ("Content-Length", "5"),
            ("transfer-encoding", "chunked"),
            ("Host", "elsewhere"),
            ("x-good", "yes"),
            ("bad name", "x"),
            ("x-bad", "a\r\nb: c"),
        ] {
            add_foreign(&mut headers, name, value.as_bytes());
        }
        assert_eq!(written(&headers), ["x-good: yes"]);
        for _ in 0..100 {
            add_foreign(&mut headers, "x-many", b"1");
        }
        assert_eq!(headers.len(), MAX_ADDED);
    }
}
