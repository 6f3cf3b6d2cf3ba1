//! Which endpoint gets the next request.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Span};

/// Written as a bare name for every default (`least_request`), or with values
/// (`{ least_request: { choices: 3 } }`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancer {
    /// One after the other, by weight.
    #[default]
    RoundRobin,
    /// Of a few taken at random, the one with the fewest requests under way.
    LeastRequest(LeastRequest),
    /// Of two taken at random, the one with the lower latency times requests under way.
    PeakEwma(PeakEwma),
    /// At random, by weight.
    Random,
    /// A consistent hash on a ring: one endpoint less moves only that endpoint's keys.
    RingHash(RingHash),
    /// A consistent hash by table: faster and more even than a ring, moving a few keys more.
    Maglev(Maglev),
}

impl LoadBalancer {
    /// The word for it in a configuration.
    pub fn label(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastRequest(_) => "least_request",
            Self::PeakEwma(_) => "peak_ewma",
            Self::Random => "random",
            Self::RingHash(_) => "ring_hash",
            Self::Maglev(_) => "maglev",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeastRequest {
    /// Endpoints taken at random to choose from. From 2. Default 2, Envoy's: more choices gain
    /// little and make workers agree on one victim.
    pub choices: NonZeroU32,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self {
            choices: NonZeroU32::new(2).expect("it is not zero"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PeakEwma {
    /// How long until a latency seen counts for a third (1/e). Default 10 s, linkerd's.
    pub decay: Span,
    /// What an endpoint that has not answered yet is taken for. Default 30 ms, linkerd's.
    pub default_rtt: Span,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self {
            decay: Span::from_secs(10),
            default_rtt: Span::from_millis(30),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RingHash {
    /// What of a request chooses the endpoint. Default `source`.
    pub hash_on: HashOn,
    /// Points on the ring, at least: the more, the more even. Default 1,024, Envoy's.
    pub minimum_ring_size: NonZeroU32,
    /// Points on the ring, at most, whatever the weights: it bounds memory. Up to 8,388,608. Default
    /// 8,388,608, Envoy's.
    pub maximum_ring_size: NonZeroU32,
}

impl Default for RingHash {
    fn default() -> Self {
        let size = |n| NonZeroU32::new(n).expect("it is not zero");
        Self {
            hash_on: HashOn::default(),
            minimum_ring_size: size(1024),
            maximum_ring_size: size(8 * 1024 * 1024),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Maglev {
    /// What of a request chooses the endpoint. Default `source`.
    pub hash_on: HashOn,
    /// Entries of the table: a prime number, at most 5,000,011. Default 65,537, Envoy's: within 1 %
    /// of even up to some 600 endpoints.
    pub table_size: NonZeroU32,
}

impl Default for Maglev {
    fn default() -> Self {
        Self {
            hash_on: HashOn::default(),
            table_size: NonZeroU32::new(65_537).expect("it is not zero"),
        }
    }
}

/// What of a request chooses the endpoint. A request without it goes to one at random.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// The value of the header of this name.
    Header(String),
    /// The value of a cookie.
    Cookie(Cookie),
    /// The client's IP address.
    #[default]
    Source,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cookie {
    /// The cookie's name. Required.
    pub name: String,
    /// With it, a response to a request that lacks the cookie sets one that lasts this long; `0s`
    /// means until the client's session ends. Default: none, never set one.
    #[serde(default)]
    pub ttl: Option<Span>,
    /// The path that a cookie set has. Default `/`.
    #[serde(default = "root")]
    pub path: String,
}

fn root() -> String {
    "/".into()
}

/// A new endpoint's weight grows with its age: `max(min_weight_percent, (age/window)^(1/aggression))`.
/// It applies to `round_robin` and `least_request`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SlowStart {
    /// Until the whole share is reached. Default 30 s: what a JIT or a cache needs to warm up.
    pub window: Span,
    /// Above 0: 1 is linear, more rises faster at first. Default 1, Envoy's.
    pub aggression: f64,
    /// The share to begin with, in percent. Default 10, Envoy's.
    pub min_weight_percent: Percent,
}

impl Default for SlowStart {
    fn default() -> Self {
        Self {
            window: Span::from_secs(30),
            aggression: 1.0,
            min_weight_percent: Percent(10),
        }
    }
}

/// Endpoints of the proxy's own zone first, then of its region, then all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ZoneAware {
    /// The part of the requests that prefers the own zone, in percent. Default 100, Envoy's.
    pub routing_enabled: Percent,
    /// With fewer endpoints in all, every zone counts alike, since one endpoint more or less would
    /// shift too much. Default 6, Envoy's.
    pub min_cluster_size: u32,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self {
            routing_enabled: Percent(100),
            min_cluster_size: 6,
        }
    }
}
