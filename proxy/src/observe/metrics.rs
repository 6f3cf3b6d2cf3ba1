//! Counters and histograms, resolved once per destination so that a request touches only atomics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Record;
use crate::failure::Failure;

/// Process-wide figures.
#[derive(Debug, Default)]
pub struct Metrics {
    pub connections_accepted: AtomicU64,
    pub connections_refused: AtomicU64,
}

impl Metrics {
    /// Counts a connection that was closed before it was anybody's request.
    pub fn connection_refused(&self, _failure: Failure) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// The figures of one destination.
#[derive(Debug, Default)]
pub struct DestinationMetrics {
    pub requests: AtomicU64,
}

impl DestinationMetrics {
    pub fn observe(&self, _record: &Record<'_>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}
