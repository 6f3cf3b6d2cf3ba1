//! Faults on purpose.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::matching::Condition;
use crate::{Fraction, Span};

/// First the delay, then the abort, each for a share of the traffic that is drawn by itself. Of
/// traffic that is not HTTP a connection is what is delayed, or reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fault {
    /// Waits before the traffic goes on. Default: none.
    pub delay: Option<Delay>,
    /// Answers with an error instead. Default: none.
    pub abort: Option<Abort>,
    /// Only requests for which all of these hold: what is written as under `match.headers`. Default:
    /// none, all traffic.
    pub headers: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// How long. Required.
    pub fixed: Span,
    /// The share of the traffic that is delayed. Default 100.
    #[serde(default)]
    pub percent: Fraction,
}

/// Exactly one of `status` and `grpc_status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// The HTTP status, from 200 to 599. Default: none.
    #[serde(default)]
    pub status: Option<u16>,
    /// The gRPC status, from 0 to 16, in an answer with HTTP status 200. Default: none.
    #[serde(default)]
    pub grpc_status: Option<u8>,
    /// The share of the traffic that is aborted. Default 100.
    #[serde(default)]
    pub percent: Fraction,
}
