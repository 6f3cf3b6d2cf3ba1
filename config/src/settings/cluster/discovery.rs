//! Where a cluster's endpoints come from.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Span;

/// Names and values that tell endpoints apart, for `subset` of a route.
pub type Labels = BTreeMap<String, String>;

/// One address that does the cluster's job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// IP address and port. Required; for a name use `dns`.
    pub address: SocketAddr,
    /// Its share of the traffic, relative to the others'. From 1. Default 1.
    #[serde(default = "one")]
    pub weight: NonZeroU32,
    /// 0 is used first; the next number takes over as far as the one before is unhealthy. From 0 to
    /// 127, without gaps. Default 0.
    #[serde(default)]
    pub priority: u8,
    /// Where it runs. Default: nowhere in particular.
    #[serde(default)]
    pub locality: Locality,
    /// For `subset` of a route. Default: none.
    #[serde(default)]
    pub labels: Labels,
    /// The host that requests ask it for where a route says `rewrite: { auto_host: true }`. Default:
    /// none.
    #[serde(default)]
    pub hostname: Option<String>,
}

impl Endpoint {
    /// With every default.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            weight: one(),
            priority: 0,
            locality: Locality::default(),
            labels: Labels::new(),
            hostname: None,
        }
    }
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// Where something runs; empty where nothing is known.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Locality {
    /// Such as `eu-central-1`. Default empty: unknown.
    pub region: String,
    /// Such as `eu-central-1a`. Default empty: unknown.
    pub zone: String,
}

/// Every address that a name has is an endpoint. An answer is kept for its TTL, and beyond it for
/// as long as no newer one can be had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// The name to look up. Required.
    pub name: String,
    /// The endpoints' port. Required unless `srv`, whose records carry it.
    #[serde(default)]
    pub port: Option<NonZeroU16>,
    /// Which addresses are endpoints. Default `all`: whatever the name has in both families.
    #[serde(default)]
    pub family: DnsFamily,
    /// Look up SRV records, whose target, port, weight and priority make the endpoints. Default
    /// false.
    #[serde(default)]
    pub srv: bool,
    /// No lookup sooner than this after the one before, however short the TTL. Default 5 s,
    /// Envoy's.
    #[serde(default = "five_seconds")]
    pub min_refresh: Span,
}

fn five_seconds() -> Span {
    Span::from_secs(5)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DnsFamily {
    /// IPv4 and IPv6.
    #[default]
    All,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4 if there is any, else IPv6.
    V4Preferred,
    /// IPv6 if there is any, else IPv4 (Envoy's `AUTO`).
    V6Preferred,
}

/// A file with a list of endpoints, as under `endpoints`; it is watched, and replaced as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointFile {
    /// An absolute path. Required.
    pub path: PathBuf,
}

/// State per destination in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OriginalDestination {
    /// Destinations whose state is kept; beyond it, that of the one least recently used goes. From
    /// 1. Default 10,000, a few megabytes.
    pub max_destinations: NonZeroUsize,
}

impl Default for OriginalDestination {
    fn default() -> Self {
        Self {
            max_destinations: NonZeroUsize::new(10_000).expect("it is not zero"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubsetFallback {
    /// No endpoint: the request fails.
    #[default]
    NoFallback,
    /// Any endpoint of the cluster.
    AnyEndpoint,
}
