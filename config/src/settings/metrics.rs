//! `metrics`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `/metrics` tells beyond what it always tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// Whether latencies are kept in fine buckets as well, for a Prometheus that asks for native
    /// histograms. Default false, for they take 800 bytes for each destination, cluster and route and
    /// each worker that has used it.
    pub native_histograms: bool,
}
