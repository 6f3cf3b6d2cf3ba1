//! `limits`, `timeouts`, `pool`: what a connection may take, and for how long.

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::Span;

/// Bounds against hostile or broken input. None of them caps traffic that would have gone through
/// directly, other than by what the process itself may hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Captured connections at once, process-wide. Default: what the file descriptor limit
    /// allows (two descriptors a connection, some kept for the rest).
    pub max_connections: Option<NonZeroUsize>,
    /// Bytes of one HTTP/1 head or one HTTP/2 header list. Default 60 KiB, Envoy's; a larger
    /// request head gets 431.
    pub max_header_bytes: usize,
    /// Header lines of one head. Default 100, Envoy's.
    pub max_headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_header_bytes: 60 * 1024,
            max_headers: 100,
        }
    }
}

impl Limits {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.max_header_bytes < 1024 {
            problems.push((
                "limits.max_header_bytes",
                "below 1024 ordinary requests no longer fit".into(),
            ));
        }
        if self.max_headers == 0 {
            problems.push((
                "limits.max_headers",
                "0 refuses every request; at least 1".into(),
            ));
        }
        problems
    }
}

/// How long things may take. `null` means: as long as a direct connection would have taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// How long a client may stay silent after connecting before the upstream is dialled to see
    /// whether it speaks first. Default 10 ms: longer than any client that has something to say,
    /// too short for a person to notice in a database's greeting.
    pub quiet: Span,
    /// Dialling upstream. Default `null`: the kernel's own (about two minutes), since a direct
    /// connection would have had no other.
    pub connect: Option<Span>,
    /// From the first byte of a request head to its last. Default 60 s, nginx's
    /// `client_header_timeout`; then 408.
    pub request_head: Span,
    /// No byte either way on an opaque connection or tunnel. Default 1 h, Envoy's TCP idle
    /// timeout; keepalive probes hold it open while both peers live.
    pub tunnel_idle: Span,
    /// One direction closed, and no byte in the other. Default 50 s: below the 60 s after which
    /// conntrack forgets a half-closed connection, which would leak both sockets for an hour.
    pub half_close: Span,
    /// How long SIGTERM waits for live connections. Default 30 s, the grace period of a
    /// Kubernetes pod.
    pub drain: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            quiet: Span::from_millis(10),
            connect: None,
            request_head: Span::from_secs(60),
            tunnel_idle: Span::from_secs(3600),
            half_close: Span::from_secs(50),
            drain: Span::from_secs(30),
        }
    }
}

/// Upstream connections kept for reuse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// How long an idle upstream connection is kept when the server does not say how long it
    /// keeps it. Default 4 s: just below the 5 s after which common servers (Node.js, uvicorn)
    /// close, so that a request rarely races that close.
    pub idle: Span,
    /// The longest that a server's `Keep-Alive: timeout=` is believed. Default 60 s.
    pub max_idle: Span,
    /// Idle connections kept per destination and worker. Default 256.
    pub max_idle_per_destination: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            idle: Span::from_secs(4),
            max_idle: Span::from_secs(60),
            max_idle_per_destination: 256,
        }
    }
}
