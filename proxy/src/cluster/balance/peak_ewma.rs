//! Peak EWMA: the latency of an endpoint as a moving average that believes bad news at once and good
//! news slowly, times its requests under way. From Finagle (`com.twitter.finagle.loadbalancer.
//! p2c`/`PeakEwma`), with linkerd's constants.

use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_config::PeakEwma;

/// The average in microseconds (`f32`, upper half) and when it was last moved (microseconds of the
/// endpoint's life, lower half, which wraps after 71 minutes: after half of that it may decay less than it should).
/// 0: nothing measured yet.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Latency(AtomicU64);

impl Latency {
    /// Takes in the latency of an answer; times in microseconds.
    pub(in crate::cluster) fn observe(&self, settings: &PeakEwma, latency: u64, now: u64) {
        let latency = latency.max(1) as f32;
        let moved = |word: u64| {
            let average = match self.decayed(settings, word, now) {
                (old, _) if latency > old => latency,
                (old, weight) => old * weight + latency * (1.0 - weight),
            };
            Some(u64::from(average.to_bits()) << 32 | u64::from(now as u32))
        };
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }

    /// The average as it was last moved, in microseconds; none if nothing was measured.
    pub(in crate::cluster) fn micros(&self) -> Option<f64> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            word => Some(f32::from_bits((word >> 32) as u32).into()),
        }
    }

    /// What the next request is expected to wait, `active` being under way.
    pub(in crate::cluster) fn cost(&self, settings: &PeakEwma, active: u32, now: u64) -> f64 {
        let (average, weight) = self.decayed(settings, self.0.load(Ordering::Relaxed), now);
        // An endpoint that gets nothing is forgiven bit by bit, else it would never be tried again.
        let default = settings.default_rtt.0.as_micros() as f64;
        let average = f64::from(average);
        let forgiven = if average > default {
            default + (average - default) * f64::from(weight)
        } else {
            average
        };
        forgiven * (f64::from(active) + 1.0)
    }

    /// The average, and how much of it still counts.
    fn decayed(&self, settings: &PeakEwma, word: u64, now: u64) -> (f32, f32) {
        if word == 0 {
            return (settings.default_rtt.0.as_micros() as f32, 1.0);
        }
        // Another worker may have written a moment that this one has not reached yet.
        let elapsed = ((now as u32).wrapping_sub(word as u32) as i32).max(0) as f32;
        let decay = settings.decay.0.as_micros().max(1) as f32;
        (
            f32::from_bits((word >> 32) as u32),
            (-elapsed / decay).exp(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_news_counts_at_once_and_good_news_slowly() {
        let (settings, latency) = (PeakEwma::default(), Latency::default());
        assert_eq!(latency.cost(&settings, 0, 0), 30_000.0);
        latency.observe(&settings, 500_000, 1_000);
        assert_eq!(latency.cost(&settings, 0, 1_000), 500_000.0);
        latency.observe(&settings, 1_000, 2_000);
        assert!(latency.cost(&settings, 0, 2_000) > 490_000.0);
        latency.observe(&settings, 1_000, 30_000_000);
        assert!(latency.cost(&settings, 0, 30_000_000) < 30_000.0);
    }

    #[test]
    fn a_moment_written_by_a_worker_that_is_ahead_is_no_age_of_an_hour() {
        let (settings, latency) = (PeakEwma::default(), Latency::default());
        latency.observe(&settings, 500_000, 1_001);
        assert_eq!(latency.cost(&settings, 0, 1_000), 500_000.0);
    }

    #[test]
    fn requests_under_way_multiply_and_idling_forgives() {
        let (settings, latency) = (PeakEwma::default(), Latency::default());
        latency.observe(&settings, 900_000, 1);
        assert_eq!(latency.cost(&settings, 2, 1), 2_700_000.0);
        assert!(latency.cost(&settings, 0, 60_000_000) < 40_000.0);
    }
}
