//! `routes`: which traffic goes to which cluster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster::Labels;
use crate::{Network, PortRange};

/// The cluster name that stands for the address that was dialled, without any policy but `defaults`.
pub const ORIGINAL_DESTINATION: &str = "original_destination";

/// The first route whose `match` holds decides; traffic that none matches goes where it was dialled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// What metrics, logs and traces call it; unique. Default: `route-` and its place in the list,
    /// from 1.
    #[serde(default)]
    pub name: Option<String>,
    /// All of its keys must hold; without any it holds for everything. Required.
    #[serde(rename = "match")]
    pub matches: Match,
    /// A cluster's name, or `original_destination`. Required.
    pub cluster: String,
    /// Only endpoints that have all of these labels. Default: none, all endpoints.
    #[serde(default)]
    pub subset: Labels,
}

/// What is known of the traffic. A key that is left out holds always; one whose subject the traffic
/// does not have (a host outside HTTP, an SNI outside TLS) does not hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// The network that was dialled: `203.0.113.0/24`, or a single address. Default: any.
    pub destination: Option<Network>,
    /// The port that was dialled, or a range: `80`, `"8000-8100"`. Default: any.
    pub port: Option<PortRange>,
    /// The host that an HTTP request names, without its port: exact (`api.internal`), or every name
    /// below another (`"*.internal"`). Case does not count. Default: any.
    pub host: Option<String>,
    /// The name that a TLS client asks for (SNI), written as `host`. Default: any.
    pub sni: Option<String>,
}
