//! Which lines of an access log are written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Span, check::Findings};

/// Everything that is said must hold. Bounds are inclusive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", default, deny_unknown_fields)]
pub struct AccessLogFilter {
    /// The status code that the client was sent; a line without one does not pass. Default: any.
    pub status: Option<StatusRange>,
    /// How long the request or connection took. Default: any.
    pub duration: Option<DurationRange>,
    /// One of these response flags; an empty list means any flag at all, so every failure. Default:
    /// whatever the flags.
    pub flags: Option<Vec<ResponseFlag>>,
    /// All of these. Default: none.
    pub and: Vec<AccessLogFilter>,
    /// At least one of these. Default: none.
    pub or: Vec<AccessLogFilter>,
    /// Not this. Default: none.
    pub not: Option<Box<AccessLogFilter>>,
}

/// Status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", default, deny_unknown_fields)]
pub struct StatusRange {
    /// Default 0.
    pub min: u16,
    /// Default 999.
    pub max: u16,
}

impl Default for StatusRange {
    fn default() -> Self {
        Self { min: 0, max: 999 }
    }
}

/// Durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", default, deny_unknown_fields)]
pub struct DurationRange {
    /// Default: none.
    pub min: Option<Span>,
    /// Default: none.
    pub max: Option<Span>,
}

/// Envoy's response flags, those that can come up here.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum ResponseFlag {
    /// No healthy upstream host.
    UH,
    /// The connection to the upstream failed.
    UF,
    /// Upstream overflow: a limit of the cluster, a tripped breaker, adaptive concurrency.
    UO,
    /// The upstream ended the connection.
    UC,
    /// The upstream broke its protocol.
    UPE,
    /// The request timed out at the upstream.
    UT,
    /// The upstream was tried as often as allowed, or as a retry budget lets it.
    URX,
    /// No route, or a route to a cluster that is not there.
    NR,
    /// Rate limited.
    RL,
    /// The rate limit service failed.
    RLSE,
    /// A fault was injected: a delay.
    DI,
    /// A fault was injected: an abort.
    FI,
    /// The downstream ended the connection.
    DC,
    /// The downstream broke its protocol.
    DPE,
    /// Nothing moved for longer than an idle timeout.
    SI,
    /// The proxy ended it: shutting down, a loop, a fault of its own.
    LR,
    /// Out of descriptors, memory or allowed connections.
    OM,
}

impl ResponseFlag {
    pub const ALL: [Self; 17] = [
        Self::UH,
        Self::UF,
        Self::UO,
        Self::UC,
        Self::UPE,
        Self::UT,
        Self::URX,
        Self::NR,
        Self::RL,
        Self::RLSE,
        Self::DI,
        Self::FI,
        Self::DC,
        Self::DPE,
        Self::SI,
        Self::LR,
        Self::OM,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::UH => "UH",
            Self::UF => "UF",
            Self::UO => "UO",
            Self::UC => "UC",
            Self::UPE => "UPE",
            Self::UT => "UT",
            Self::URX => "URX",
            Self::NR => "NR",
            Self::RL => "RL",
            Self::RLSE => "RLSE",
            Self::DI => "DI",
            Self::FI => "FI",
            Self::DC => "DC",
            Self::DPE => "DPE",
            Self::SI => "SI",
            Self::LR => "LR",
            Self::OM => "OM",
        }
    }

    /// What Envoy's `%RESPONSE_FLAGS_LONG%` says.
    pub fn long(self) -> &'static str {
        match self {
            Self::UH => "NoHealthyUpstream",
            Self::UF => "UpstreamConnectionFailure",
            Self::UO => "UpstreamOverflow",
            Self::UC => "UpstreamConnectionTermination",
            Self::UPE => "UpstreamProtocolError",
            Self::UT => "UpstreamRequestTimeout",
            Self::URX => "UpstreamRetryLimitExceeded",
            Self::NR => "NoRouteFound",
            Self::RL => "RateLimited",
            Self::RLSE => "RateLimitServiceError",
            Self::DI => "DelayInjected",
            Self::FI => "FaultInjected",
            Self::DC => "DownstreamConnectionTermination",
            Self::DPE => "DownstreamProtocolError",
            Self::SI => "StreamIdleTimeout",
            Self::LR => "LocalReset",
            Self::OM => "OverloadManagerTerminated",
        }
    }
}

impl AccessLogFilter {
    pub(super) fn check(&self, path: &str, to: &mut Findings) {
        if self.status.is_some_and(|s| s.min > s.max) {
            to.error(
                format!("{path}.status"),
                "min is above max, so that no line passes; exchange them".into(),
            );
        }
        if let Some(DurationRange {
            min: Some(min),
            max: Some(max),
        }) = self.duration
            && min > max
        {
            to.error(
                format!("{path}.duration"),
                "min is above max, so that no line passes; exchange them".into(),
            );
        }
        if *self == Self::default() {
            to.warning(
                path.to_owned(),
                "it holds for every line; say what is wanted, or remove it".into(),
            );
        }
        for (key, filters) in [("and", &self.and), ("or", &self.or)] {
            for (index, filter) in filters.iter().enumerate() {
                filter.check(&format!("{path}.{key}[{index}]"), to);
            }
        }
        if let Some(filter) = &self.not {
            filter.check(&format!("{path}.not"), to);
        }
    }
}
