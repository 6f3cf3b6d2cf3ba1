//! What a cluster, or one endpoint of it, may be burdened with.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Span};

/// What the whole cluster may have under way, over all workers; what is beyond fails at once with
/// 503 instead of queueing. 0 lets nothing through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Upstream connections. Default 1,024, Envoy's.
    pub max_connections: u32,
    /// Requests that wait for a connection. Default 1,024, Envoy's.
    pub max_pending_requests: u32,
    /// Requests under way. Default 1,024, Envoy's.
    pub max_requests: u32,
    /// Retries under way. Default 3, Envoy's: enough for one endpoint's end, too few for a storm.
    pub max_retries: u32,
    /// Bounds retries by a share of the load in place of `max_retries`. Default: none; `{}` means
    /// Envoy's share.
    pub retry_budget: Option<RetryBudget>,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

/// How many retries a cluster may have under way, in place of `max_retries`: a share of all its
/// requests under way, so that retries stay a fraction of the load however large it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryBudget {
    /// In percent of the requests under way, retries counted. Default 20, Envoy's: at most 1.25 times
    /// the load.
    pub budget_percent: Percent,
    /// So many are always allowed. Default 3, Envoy's.
    pub min_retry_concurrency: NonZeroU32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            budget_percent: Percent(20),
            min_retry_concurrency: NonZeroU32::new(3).expect("it is not zero"),
        }
    }
}

/// Stops sending to one endpoint that keeps failing: from `Admitting` to `Tripped`, then to
/// `Probing`, in which a few requests decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointBreaker {
    /// Failures in a row that trip it; `null`: never. Default 5, as many as eject an outlier.
    pub consecutive_failures: Option<NonZeroU32>,
    /// Failures within `window`, in percent of its requests, that trip it; `null`: never. Default
    /// 50: half of the requests wasted.
    pub failure_percent: Option<Percent>,
    /// Requests within `window` below which `failure_percent` does not count. Default 20: one
    /// failure is then at most a twentieth.
    pub min_requests: NonZeroU32,
    /// Over which `failure_percent` is counted. Default 10 s.
    pub window: Span,
    /// How long it stays tripped the first time; twice as long each time that probing fails.
    /// Default 5 s.
    pub trip_duration: Span,
    /// The longest that it stays tripped. Default 60 s.
    pub max_trip_duration: Span,
    /// Requests let through while probing, at once; all of them must succeed to admit again.
    /// Default 1.
    pub probes: NonZeroU32,
}

impl Default for EndpointBreaker {
    fn default() -> Self {
        Self {
            consecutive_failures: NonZeroU32::new(5),
            failure_percent: Some(Percent(50)),
            min_requests: NonZeroU32::new(20).expect("it is not zero"),
            window: Span::from_secs(10),
            trip_duration: Span::from_secs(5),
            max_trip_duration: Span::from_secs(60),
            probes: NonZeroU32::MIN,
        }
    }
}

/// A limit of requests under way that follows the latency: it falls when requests take longer than
/// the least latency measured, and rises when they do not (Envoy's gradient controller). What is
/// beyond fails at once with 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveConcurrency {
    /// The percentile of an interval's latencies that stands for it. Default 50, Envoy's.
    pub sample_percentile: Percent,
    /// The limit never exceeds this. Default 1,000, Envoy's.
    pub max_concurrency_limit: NonZeroU32,
    /// From one change of the limit to the next. Default 100 ms, as Envoy's examples.
    pub concurrency_update_interval: Span,
    pub min_rtt: MinRtt,
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        Self {
            sample_percentile: Percent(50),
            max_concurrency_limit: NonZeroU32::new(1000).expect("it is not zero"),
            concurrency_update_interval: Span::from_millis(100),
            min_rtt: MinRtt::default(),
        }
    }
}

/// How the least latency is measured: for a few requests at `min_concurrency`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MinRtt {
    /// From one measurement to the next. Default 60 s, as Envoy's examples.
    pub interval: Span,
    /// Requests that a measurement takes. Default 50, Envoy's.
    pub request_count: NonZeroU32,
    /// Up to this much of the interval, in percent, is added at random, so that many proxies do not
    /// measure in step. Default 15, Envoy's.
    pub jitter_percent: Percent,
    /// The limit while measuring. Default 3, Envoy's.
    pub min_concurrency: NonZeroU32,
    /// How much longer than the least latency counts as no longer, in percent. Default 25, Envoy's.
    pub buffer_percent: Percent,
}

impl Default for MinRtt {
    fn default() -> Self {
        let count = |n| NonZeroU32::new(n).expect("it is not zero");
        Self {
            interval: Span::from_secs(60),
            request_count: count(50),
            jitter_percent: Percent(15),
            min_concurrency: count(3),
            buffer_percent: Percent(25),
        }
    }
}
