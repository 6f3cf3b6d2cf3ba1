//! The latency histogram's buckets.

use std::time::Duration;

use super::cell::Cell;

/// Upper bounds in microseconds: half a millisecond, a call within one rack, to ten seconds, beyond
/// which nobody waits. They are Prometheus's customary ones, with one finer step at the start.
const BOUNDS: [u32; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// One bucket for each bound and one for all that is slower.
pub(super) const BUCKETS: usize = BOUNDS.len() + 1;

#[derive(Debug, Default)]
pub(super) struct LatencyCells {
    buckets: [Cell; BUCKETS],
    nanos: Cell,
}

impl LatencyCells {
    pub(super) fn observe(&self, duration: Duration) {
        self.buckets[bucket(duration)].add(1);
        self.nanos.add(duration.as_nanos() as u64);
    }
}

/// What the cells came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latency {
    buckets: [u64; BUCKETS],
    nanos: u64,
}

impl Latency {
    pub(super) fn add(&mut self, cells: &LatencyCells) {
        for (sum, cell) in self.buckets.iter_mut().zip(&cells.buckets) {
            *sum += cell.value();
        }
        self.nanos = self.nanos.wrapping_add(cells.nanos.value());
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
        self.nanos = self.nanos.wrapping_add(other.nanos);
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(crate) fn sum_seconds(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Each bucket's upper bound in seconds and how many fell into it alone.
    pub(crate) fn buckets(&self) -> [(f64, u64); BUCKETS] {
        std::array::from_fn(|i| {
            let bound = BOUNDS.get(i).map_or(f64::INFINITY, |&b| f64::from(b) / 1e6);
            (bound, self.buckets[i])
        })
    }
}

/// The first bucket whose bound is not below `duration`. Counting all bounds instead of stopping at
/// the first match lets the compiler compare several at once.
pub(super) fn bucket(duration: Duration) -> usize {
    let nanos = u128::min(duration.as_nanos(), u128::from(u64::MAX)) as u64;
    // Rounded up: a bound is inclusive, and a nanosecond over it is over it.
    let micros = u32::try_from(nanos.div_ceil(1_000)).unwrap_or(u32::MAX);
    BOUNDS.iter().filter(|&&bound| micros > bound).count()
}

/// The bucket with this upper bound in seconds, infinity included.
pub(crate) fn bucket_of_bound(seconds: f64) -> usize {
    // Bounds are whole microseconds; what is none is rounded to one.
    let micros = (seconds * 1e6).round();
    let below = |bound: &&u32| f64::from(**bound) < micros;
    BOUNDS.iter().filter(below).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_the_rest_is_beyond_the_last() {
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::from_micros(500)), 0);
        assert_eq!(bucket(Duration::from_nanos(500_001)), 1);
        assert_eq!(bucket(Duration::from_secs(10)), BUCKETS - 2);
        assert_eq!(bucket(Duration::from_nanos(10_000_000_001)), BUCKETS - 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_bucket_is_found_by_its_bound() {
        for (place, (bound, _)) in Latency::default().buckets().into_iter().enumerate() {
            assert_eq!(bucket_of_bound(bound), place);
        }
    }

    #[test]
    fn count_and_sum_follow_what_was_observed() {
        let cells = LatencyCells::default();
        for millis in [1, 1, 40] {
            cells.observe(Duration::from_millis(millis));
        }
        let mut latency = Latency::default();
        latency.add(&cells);
        assert_eq!(latency.count(), 3);
        assert!((latency.sum_seconds() - 0.042).abs() < 1e-12);
        let filled: Vec<_> = latency
            .buckets()
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(filled, [(0.001, 2), (0.05, 1)]);
    }
}
