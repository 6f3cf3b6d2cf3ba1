//! What goes where, as far as it is counted.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One page of the destinations in use, in the order of their addresses, and what holds for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    pub configuration: ConfigurationState,
    pub live_connections: usize,
    pub max_connections: usize,
    /// Upper bounds of [`Counts::latency`]'s buckets but the last, in milliseconds.
    pub latency_bounds: Vec<f64>,
    pub destinations: Vec<DestinationTraffic>,
    /// Whether there are more, after the last of these.
    pub has_more: bool,
    /// Of destinations that are no longer remembered.
    pub forgotten: Counts,
}

/// What is in force, and what became of attempts to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationState {
    /// Rises by one with each configuration that takes the place of another; the first is 1.
    pub generation: u64,
    pub applied: u64,
    pub rejected: u64,
    /// False: the latest file has problems, and the one before is in force.
    pub is_latest_good: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationTraffic {
    pub destination: SocketAddr,
    /// Captured connections to it that live.
    pub live: u64,
    pub counts: Counts,
}

/// HTTP requests, and connections of other protocols, that have ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    pub requests: u64,
    /// Those that ended with a failure, the proxy's answers in a server's place among them.
    pub failures: u64,
    /// Those that a server answered with 5xx.
    pub server_errors: u64,
    /// From applications, and to them.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Of HTTP requests: how many fell into each bucket.
    pub latency: Vec<u64>,
    pub latency_sum_seconds: f64,
}

impl Counts {
    /// What was counted since `before`; all of it where that counted more, as another process did.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if before.requests > self.requests {
            return self.clone();
        }
        let earlier = before.latency.iter().copied().chain(std::iter::repeat(0));
        Self {
            requests: self.requests - before.requests,
            failures: self.failures.saturating_sub(before.failures),
            server_errors: self.server_errors.saturating_sub(before.server_errors),
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            latency: self
                .latency
                .iter()
                .zip(earlier)
                .map(|(now, then)| now.saturating_sub(then))
                .collect(),
            latency_sum_seconds: (self.latency_sum_seconds - before.latency_sum_seconds).max(0.0),
        }
    }

    /// The latency in milliseconds that a part of the requests (0 to 1) did not exceed, interpolated
    /// within its bucket as Prometheus's `histogram_quantile` does; the highest bound where it is beyond.
    pub fn quantile(&self, part: f64, bounds: &[f64]) -> Option<f64> {
        let all: u64 = self.latency.iter().sum();
        let rank = part * all as f64;
        let mut below = 0;
        let mut lower = 0.0;
        for (count, upper) in self.latency.iter().zip(bounds) {
            if *count > 0 && (below + count) as f64 >= rank {
                let within = (rank - below as f64).max(0.0) / *count as f64;
                return Some(lower + (upper - lower) * within);
            }
            below += count;
            lower = *upper;
        }
        (all > 0).then_some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [f64; 3] = [1.0, 10.0, 100.0];

    fn counts(latency: &[u64]) -> Counts {
        Counts {
            requests: latency.iter().sum(),
            latency: latency.into(),
            ..Counts::default()
        }
    }

    #[test]
    fn quantiles_lie_within_the_bucket_that_their_rank_falls_into() {
        let counts = counts(&[0, 8, 2, 0]);
        assert_eq!(counts.quantile(0.5, &BOUNDS), Some(1.0 + 9.0 * 5.0 / 8.0));
        assert_eq!(counts.quantile(0.8, &BOUNDS), Some(10.0));
        assert_eq!(counts.quantile(1.0, &BOUNDS), Some(100.0));
        assert_eq!(Counts::default().quantile(0.5, &BOUNDS), None);
    }

    #[test]
    fn a_quantile_beyond_the_last_bound_is_told_as_that() {
        assert_eq!(counts(&[0, 0, 0, 3]).quantile(0.5, &BOUNDS), Some(100.0));
    }

    #[test]
    fn a_proxy_that_started_anew_counts_from_nothing() {
        let (before, after) = (counts(&[5, 5, 0, 0]), counts(&[1, 0, 0, 0]));
        assert_eq!(after.since(&before), after);
        let later = counts(&[6, 5, 0, 1]);
        assert_eq!(later.since(&before), counts(&[1, 0, 0, 1]));
    }
}
