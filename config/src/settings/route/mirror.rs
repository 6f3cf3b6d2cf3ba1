//! Copies of requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Fraction, Labels};

/// A cluster that gets copies of requests. Nobody waits for it, and what it answers is thrown away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// A cluster's name. Required.
    pub cluster: String,
    /// Only endpoints that have all of these labels. Default: none, all endpoints.
    #[serde(default)]
    pub subset: Labels,
    /// The share of requests that is copied. Default 100.
    #[serde(default)]
    pub percent: Fraction,
    /// Adds `-shadow` to the host of the copies, so that whoever gets them knows them for such.
    /// Default true, as in Envoy.
    #[serde(default = "yes")]
    pub shadow_host: bool,
    /// In bytes: a request with a longer body is not copied, for a copy is held in memory. At most
    /// 1 MiB. Default 64 KiB, in which most messages fit.
    #[serde(default = "most_messages")]
    pub max_body_bytes: usize,
}

fn yes() -> bool {
    true
}

fn most_messages() -> usize {
    64 * 1024
}
