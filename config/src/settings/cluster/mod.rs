//! `clusters`: named groups of endpoints, and the policy for the traffic sent to them. Words and
//! meanings are Envoy's.

mod balance;
mod discovery;
mod health;
mod outlier;
mod protection;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use balance::{
    Cookie, HashOn, LeastRequest, LoadBalancer, Maglev, PeakEwma, RingHash, SlowStart, ZoneAware,
};
pub use discovery::{
    Dns, DnsFamily, Endpoint, EndpointFile, Labels, Locality, OriginalDestination, SubsetFallback,
};
pub use health::{GrpcCheck, HealthCheck, HttpCheck, TcpCheck};
pub use outlier::{FailurePercentage, OutlierDetection, SuccessRate};
pub use protection::{AdaptiveConcurrency, CircuitBreaker, EndpointBreaker, MinRtt, RetryBudget};

use super::{GrpcTimeout, ORIGINAL_DESTINATION, RateLimit, Retry};
use crate::{Percent, Span};

/// Endpoints that do the same job, and the policy for the traffic sent to them. Exactly one of
/// `endpoints`, `dns`, `file` and `original_destination` says where they come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// What routes, metrics and logs call it. Required, unique, at most 256 bytes;
    /// `original_destination` is taken: it means the address that was dialled.
    pub name: String,
    /// The endpoints themselves. Default: none.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Endpoints from DNS. Default: none.
    #[serde(default)]
    pub dns: Option<Dns>,
    /// Endpoints from a file of their own, which is watched. Default: none.
    #[serde(default)]
    pub file: Option<EndpointFile>,
    /// The address that the application dialled is the only endpoint; policy is kept per
    /// destination. Default: none.
    #[serde(default)]
    pub original_destination: Option<OriginalDestination>,
    /// Which endpoint gets the next request. Default `round_robin`, Envoy's.
    #[serde(default)]
    pub load_balancer: LoadBalancer,
    /// Gives a new endpoint its share of the traffic bit by bit. Default: none, the whole share at
    /// once.
    #[serde(default)]
    pub slow_start: Option<SlowStart>,
    /// In percent: when fewer endpoints of a priority than this are healthy, health is ignored and
    /// all of them are used, for the few left would fail under the load of all. 0 never panics.
    /// Default 50, Envoy's.
    #[serde(default = "half")]
    pub panic_threshold: Percent,
    /// In percent: a priority whose healthy share times this is at least 100 takes all the traffic;
    /// below, the rest spills to the next priority. At least 100. Default 140, Envoy's: below about
    /// 71 % healthy it spills.
    #[serde(default = "overprovisioning")]
    pub overprovisioning_factor: u32,
    /// Prefers endpoints of the zone that `locality` says this proxy is in. Default: none, all zones
    /// alike.
    #[serde(default)]
    pub zone_aware: Option<ZoneAware>,
    /// What a route gets whose `subset` matches no endpoint. Default `no_fallback`, Envoy's: an
    /// error, because a request for one version must not silently reach another.
    #[serde(default)]
    pub subset_fallback: SubsetFallback,
    /// Asks every endpoint regularly whether it is well. Default: none; health is then what traffic
    /// shows.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// Ejects endpoints whose answers are worse than those of the others. Default: none; `{}` turns
    /// it on with Envoy's values.
    #[serde(default)]
    pub outlier_detection: Option<OutlierDetection>,
    /// What the whole cluster may have under way. Default: Envoy's thresholds.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
    /// Stops sending to one endpoint that keeps failing, and probes it. Default: none.
    #[serde(default)]
    pub endpoint_breaker: Option<EndpointBreaker>,
    /// Bounds the requests under way by what the latency says, before queues grow. Default: none.
    #[serde(default)]
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// How much may be sent to the cluster, whichever route leads there. With `original_destination`,
    /// to each destination. Default: no limit.
    #[serde(default)]
    pub rate_limits: Vec<RateLimit>,
    /// Dialling one endpoint. Default 5 s, Envoy's.
    #[serde(default = "five_seconds")]
    pub connect_timeout: Span,
}

/// Policy for destinations that no route sends to a cluster, kept for each destination by itself.
/// Default: none at all, for a direct connection would have had none either.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// What one destination may have under way. Default: none; `{}` means Envoy's thresholds.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Stops sending to a destination that keeps failing, and probes it. Default: none.
    pub endpoint_breaker: Option<EndpointBreaker>,
    /// Ejects a destination whose answers fail; of its one endpoint, so `max_ejection_percent` and
    /// the comparisons with other endpoints have nothing to compare and do not apply. Default: none.
    pub outlier_detection: Option<OutlierDetection>,
    /// Bounds the requests under way by what the latency says. Default: none.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// How much may be sent to each destination. Default: no limit.
    pub rate_limits: Vec<RateLimit>,
    /// Dialling. Default `null`: `timeouts.connect`.
    pub connect_timeout: Option<Span>,
    /// As a route's. Default `null`: no limit.
    pub timeout: Option<Span>,
    /// As a route's. Default `null`: no limit.
    pub idle_timeout: Option<Span>,
    /// As a route's. Default `null`: no limit.
    pub max_stream_duration: Option<Span>,
    /// As a route's. Default `null`: `timeouts.tunnel_idle`.
    pub tunnel_idle_timeout: Option<Span>,
    /// As a route's. Default: `{}` where any of these times or `retry` is set, else none.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// As a route's; there is no other endpoint, so that the same one is tried again. Default: none.
    pub retry: Option<Retry>,
    /// For how many destinations the state is kept; that of the one least recently used goes.
    pub destinations: OriginalDestination,
}

impl Defaults {
    /// The policy as a cluster whose endpoints are the original destinations; none if there is none.
    /// `connect` is the time for dialling where nothing else is asked for.
    pub fn as_cluster(&self, connect: Option<Span>) -> Option<Cluster> {
        let is_empty = Self {
            destinations: self.destinations.clone(),
            ..Self::default()
        } == *self;
        (!is_empty).then(|| Cluster {
            name: ORIGINAL_DESTINATION.into(),
            endpoints: Vec::new(),
            dns: None,
            file: None,
            original_destination: Some(self.destinations.clone()),
            load_balancer: LoadBalancer::default(),
            slow_start: None,
            panic_threshold: Percent(0),
            overprovisioning_factor: overprovisioning(),
            zone_aware: None,
            subset_fallback: SubsetFallback::default(),
            health_check: None,
            outlier_detection: self.outlier_detection.clone(),
            // What was not asked for is not limited.
            circuit_breaker: self.circuit_breaker.clone().unwrap_or(CircuitBreaker {
                max_connections: u32::MAX,
                max_pending_requests: u32::MAX,
                max_requests: u32::MAX,
                // Retries are made only if they were asked for.
                ..CircuitBreaker::default()
            }),
            endpoint_breaker: self.endpoint_breaker.clone(),
            adaptive_concurrency: self.adaptive_concurrency.clone(),
            rate_limits: self.rate_limits.clone(),
            connect_timeout: self.connect_timeout.or(connect).unwrap_or(NO_LIMIT),
        })
    }
}

/// Of dialling: the kernel gives up after some two minutes by itself.
const NO_LIMIT: Span = Span::from_secs(3600);

fn half() -> Percent {
    Percent(50)
}

fn overprovisioning() -> u32 {
    140
}

fn five_seconds() -> Span {
    Span::from_secs(5)
}
