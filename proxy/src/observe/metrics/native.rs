//! Latencies in the buckets of a native histogram of schema 2: four to each power of two, so that a
//! quantile read from them is wrong by a tenth at most.
//! <https://prometheus.io/docs/specs/native_histograms/>

use std::time::Duration;

use super::cell::Cell;

/// Each bucket's bound is 2^(1/4) times that of the one before.
pub(crate) const SCHEMA: i32 = 2;

/// The index of the first bucket, whose upper bound is 2^(FIRST/4) seconds: 9 microseconds. What is
/// faster is in the zero bucket.
const FIRST: i32 = -67;

/// Up to 4096 seconds; what is slower counts as that slow.
const BUCKETS: usize = 116;

/// In seconds: 2^-17.
pub(crate) const ZERO_THRESHOLD: f64 = 1.0 / 131_072.0;

#[derive(Debug)]
pub(super) struct NativeCells {
    zero: Cell,
    buckets: [Cell; BUCKETS],
}

impl Default for NativeCells {
    fn default() -> Self {
        Self {
            zero: Cell::default(),
            buckets: std::array::from_fn(|_| Cell::default()),
        }
    }
}

impl NativeCells {
    pub(super) fn observe(&self, duration: Duration) {
        match place(duration.as_secs_f64()) {
            None => self.zero.add(1),
            Some(at) => self.buckets[at].add(1),
        }
    }
}

/// What the cells came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Native {
    zero: u64,
    buckets: [u64; BUCKETS],
}

impl Default for Native {
    fn default() -> Self {
        Self {
            zero: 0,
            buckets: [0; BUCKETS],
        }
    }
}

impl Native {
    pub(super) fn add(&mut self, cells: &NativeCells) {
        self.zero += cells.zero.value();
        for (sum, cell) in self.buckets.iter_mut().zip(&cells.buckets) {
            *sum += cell.value();
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.zero += other.zero;
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.zero + self.buckets.iter().sum::<u64>()
    }

    pub(crate) fn zero(&self) -> u64 {
        self.zero
    }

    /// The buckets that are not empty: runs of them as (distance from the end of the run before, or
    /// the first one's index; length), and each count less the one before it.
    pub(crate) fn spans(&self) -> (Vec<(i32, u32)>, Vec<i64>) {
        let (mut spans, mut deltas) = (Vec::<(i32, u32)>::new(), Vec::new());
        let (mut end, mut before) = (0, 0);
        for (at, &count) in self.buckets.iter().enumerate().filter(|(_, c)| **c > 0) {
            let index = FIRST + at as i32;
            match spans.last_mut() {
                Some((_, length)) if index == end => *length += 1,
                _ => spans.push((index - end, 1)),
            }
            end = index + 1;
            deltas.push(count as i64 - before);
            before = count as i64;
        }
        (spans, deltas)
    }
}

/// Which bucket `seconds` fall into; none: the zero bucket. Upper bounds are inclusive.
fn place(seconds: f64) -> Option<usize> {
    if seconds <= ZERO_THRESHOLD {
        return None;
    }
    let index = (seconds.log2() * 4.0).ceil() as i32;
    Some(((index - FIRST).max(0) as usize).min(BUCKETS - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The buckets' indices and counts, read back from spans and deltas as Prometheus does.
    fn read_back(native: &Native) -> Vec<(i32, i64)> {
        let (spans, deltas) = native.spans();
        let mut deltas = deltas.into_iter();
        let (mut index, mut count) = (0, 0);
        let mut buckets = Vec::new();
        for (offset, length) in spans {
            index += offset;
            for _ in 0..length {
                count += deltas.next().expect("a delta for each bucket");
                buckets.push((index, count));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    #[test]
    fn one_second_is_in_the_bucket_that_ends_with_it() {
        let cells = NativeCells::default();
        for millis in [1000, 1000, 1001, 500, 0] {
            cells.observe(Duration::from_millis(millis));
        }
        let mut native = Native::default();
        native.add(&cells);
        assert_eq!(read_back(&native), [(-4, 1), (0, 2), (1, 1)]);
        assert_eq!((native.zero(), native.count()), (1, 5));
    }

    proptest! {
        #[test]
        fn every_latency_is_in_the_bucket_around_it(nanos in 1u64..4_096_000_000_000) {
            let seconds = Duration::from_nanos(nanos).as_secs_f64();
            match place(seconds) {
                None => prop_assert!(seconds <= ZERO_THRESHOLD),
                Some(at) => {
                    let upper = f64::exp2(f64::from(FIRST + at as i32) / 4.0);
                    prop_assert!(seconds <= upper * (1.0 + 1e-12));
                    prop_assert!(seconds > upper / 1.19 || at == 0);
                }
            }
        }

        #[test]
        fn spans_tell_every_bucket(counts in proptest::collection::vec((0usize..BUCKETS, 1u64..1000), 0..40)) {
            let mut native = Native::default();
            for (at, count) in counts {
                native.buckets[at] += count;
            }
            let told = read_back(&native);
            let expected: Vec<_> = (native.buckets.iter().enumerate())
                .filter(|(_, count)| **count > 0)
                .map(|(at, count)| (FIRST + at as i32, *count as i64))
                .collect();
            prop_assert_eq!(told, expected);
        }
    }
}
