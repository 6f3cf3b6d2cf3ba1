//! Disjoint, sorted ranges: what an interval set of the kernel holds.

/// Closed ranges of numbers of a fixed width, merged where they touch or overlap: the kernel
/// refuses overlaps, and fewer elements load faster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intervals {
    bits: u32,
    ranges: Vec<(u128, u128)>,
}

impl Intervals {
    pub fn new(bits: u32, ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self {
            bits,
            ranges: merged,
        }
    }

    pub fn bits(&self) -> u32 {
        self.bits
    }

    pub fn max(&self) -> u128 {
        u128::MAX >> (128 - self.bits)
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn is_everything(&self) -> bool {
        self.ranges == [(0, self.max())]
    }

    pub fn iter(&self) -> impl Iterator<Item = (u128, u128)> {
        self.ranges.iter().copied()
    }

    /// The prefix length of `first..=last`, if it is a network.
    pub fn prefix(&self, first: u128, last: u128) -> Option<u32> {
        let spread = first ^ last;
        let host_bits = 128 - spread.leading_zeros();
        let is_block = spread == low_bits(host_bits) && first & spread == 0;
        is_block.then(|| self.bits - host_bits)
    }
}

fn low_bits(count: u32) -> u128 {
    u128::MAX.checked_shr(128 - count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_and_overlapping_ranges_become_one() {
        let merged = Intervals::new(16, [(10, 20), (1, 4), (5, 9), (15, 30), (40, 40)]);
        assert!(merged.iter().eq([(1, 30), (40, 40)]));
    }

    #[test]
    fn the_last_address_does_not_overflow() {
        let all = Intervals::new(128, [(0, u128::MAX), (u128::MAX, u128::MAX)]);
        assert!(all.is_everything());
    }

    #[test]
    fn a_network_is_told_from_a_range() {
        let v4 = Intervals::new(32, []);
        assert_eq!(v4.prefix(0x0a00_0000, 0x0aff_ffff), Some(8));
        assert_eq!(v4.prefix(7, 7), Some(32));
        assert_eq!(v4.prefix(0, u32::MAX.into()), Some(0));
        assert_eq!(v4.prefix(1, 2), None);
        assert_eq!(v4.prefix(4, 11), None);
    }
}
