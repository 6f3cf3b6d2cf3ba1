//! `outlier_detection`: takes endpoints out whose answers are worse than the others'.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Span};

/// An endpoint found to be an outlier is ejected: it gets no traffic for `base_ejection_time` times
/// the number of its ejections so far, at most `max_ejection_time`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutlierDetection {
    /// Responses of 5xx in a row that eject at once; a connection that fails or times out counts as
    /// one, as Envoy does unless told to split. `null`: never. Default 5, Envoy's.
    pub consecutive_5xx: Option<NonZeroU32>,
    /// Responses of 502, 503 or 504 in a row, failed connections counted. Default `null`: never;
    /// Envoy counts them too without acting on it.
    pub consecutive_gateway_failure: Option<NonZeroU32>,
    /// Connections in a row that failed, timed out or were reset before an answer. `null`: never.
    /// Default 5, Envoy's.
    pub consecutive_local_origin_failure: Option<NonZeroU32>,
    /// Ejects those whose share of successes is far below the mean. `null`: never. Default: on, as
    /// Envoy.
    pub success_rate: Option<SuccessRate>,
    /// Ejects those whose share of failures is above a fixed number. Default `null`: never, as
    /// Envoy.
    pub failure_percentage: Option<FailurePercentage>,
    /// From one sweep (which compares endpoints and ends ejections) to the next. Default 10 s,
    /// Envoy's.
    pub interval: Span,
    /// The first ejection. Default 30 s, Envoy's.
    pub base_ejection_time: Span,
    /// The longest ejection. Default 300 s, Envoy's.
    pub max_ejection_time: Span,
    /// Ejected endpoints at once, in percent of the cluster; one may always be, in a cluster of at
    /// least two. Default 10, Envoy's: what all endpoints suffer from is no outlier.
    pub max_ejection_percent: Percent,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: NonZeroU32::new(5),
            consecutive_gateway_failure: None,
            consecutive_local_origin_failure: NonZeroU32::new(5),
            success_rate: Some(SuccessRate::default()),
            failure_percentage: None,
            interval: Span::from_secs(10),
            base_ejection_time: Span::from_secs(30),
            max_ejection_time: Span::from_secs(300),
            max_ejection_percent: Percent(10),
        }
    }
}

/// Ejects endpoints whose success rate within one interval is below the mean of all by more than
/// `stdev_factor` standard deviations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SuccessRate {
    /// Endpoints with enough requests to compare; with fewer, none is judged. Default 5, Envoy's.
    pub minimum_hosts: NonZeroU32,
    /// Requests of an endpoint within one interval for it to count. Default 100, Envoy's.
    pub request_volume: NonZeroU32,
    /// Standard deviations below the mean. Default 1.9, Envoy's (written there as 1900).
    pub stdev_factor: f64,
}

impl Default for SuccessRate {
    fn default() -> Self {
        let count = |n| NonZeroU32::new(n).expect("it is not zero");
        Self {
            minimum_hosts: count(5),
            request_volume: count(100),
            stdev_factor: 1.9,
        }
    }
}

/// Ejects endpoints that failed at least this share of one interval's requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FailurePercentage {
    /// Failed requests of an endpoint, in percent. Default 85, Envoy's.
    pub threshold: Percent,
    /// Endpoints with enough requests; with fewer, none is judged. Default 5, Envoy's.
    pub minimum_hosts: NonZeroU32,
    /// Requests of an endpoint within one interval for it to count. Default 50, Envoy's.
    pub request_volume: NonZeroU32,
}

impl Default for FailurePercentage {
    fn default() -> Self {
        let count = |n| NonZeroU32::new(n).expect("it is not zero");
        Self {
            threshold: Percent(85),
            minimum_hosts: count(5),
            request_volume: count(50),
        }
    }
}
