//! A route's time limits that are more than one duration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Span;

/// What becomes of the `grpc-timeout` of a gRPC request. It is a deadline counted from the request's
/// head; what the endpoint is told is what is left of it, and of the route's `timeout` if that is less.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcTimeout {
    /// A longer one counts as this. Default `null`: as long as the client says (Envoy's
    /// `grpc_timeout_header_max: 0s`).
    pub max: Option<Span>,
    /// Taken off the client's, so that our answer is there before the client gives up by itself.
    /// Not taken off what is no longer than it. Default 0 s, Envoy's (`grpc_timeout_header_offset`).
    pub offset: Span,
}

impl Default for GrpcTimeout {
    fn default() -> Self {
        Self {
            max: None,
            offset: Span::from_secs(0),
        }
    }
}
