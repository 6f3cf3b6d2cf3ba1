//! `health_check`: asks every endpoint whether it is well.

use std::num::{NonZeroU16, NonZeroU32};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Span};

/// Asks every endpoint regularly. Exactly one of `http`, `tcp` and `grpc` says how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// A request whose status tells. Default: none.
    pub http: Option<HttpCheck>,
    /// A connection, and what is said over it. Default: none.
    pub tcp: Option<TcpCheck>,
    /// The gRPC health protocol (`grpc.health.v1`). Default: none.
    pub grpc: Option<GrpcCheck>,
    /// From one check of an endpoint to the next. Default 2 s, HAProxy's.
    pub interval: Span,
    /// For one check. Default 1 s: half the interval, so that checks never pile up.
    pub timeout: Span,
    /// Up to this much of the interval, in percent, is added at random, so that many proxies do not
    /// ask in step. Default 10.
    pub interval_jitter_percent: Percent,
    /// Checks in a row that must succeed before an endpoint is used again (HAProxy's `rise`). From
    /// 1. Default 2, HAProxy's.
    pub healthy_threshold: NonZeroU32,
    /// Checks in a row that must fail before it is used no more (HAProxy's `fall`). From 1. Default
    /// 3, HAProxy's.
    pub unhealthy_threshold: NonZeroU32,
    /// The port to ask instead of the endpoint's own. Default: its own.
    pub port: Option<NonZeroU16>,
}

impl Default for HealthCheck {
    fn default() -> Self {
        let times = |n| NonZeroU32::new(n).expect("it is not zero");
        Self {
            http: None,
            tcp: None,
            grpc: None,
            interval: Span::from_secs(2),
            timeout: Span::from_secs(1),
            interval_jitter_percent: Percent(10),
            healthy_threshold: times(2),
            unhealthy_threshold: times(3),
            port: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpCheck {
    /// What to GET. Default `/`.
    pub path: String,
    /// The `Host` to name. Default: the cluster's name, as Envoy.
    pub host: Option<String>,
    /// Statuses of a healthy endpoint. Default `[200]`, Envoy's.
    pub expected_statuses: Vec<u16>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            path: "/".into(),
            host: None,
            expected_statuses: vec![200],
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TcpCheck {
    /// Text to send once connected. Default: none; being able to connect is enough.
    pub send: Option<String>,
    /// Text that must come back, anywhere in the first 16 KiB. Default: none.
    pub receive: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcCheck {
    /// The service to ask about. Default empty: the whole server.
    pub service: String,
    /// The `:authority` to name. Default: the cluster's name, as Envoy.
    pub authority: Option<String>,
}
