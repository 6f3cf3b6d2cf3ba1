//! How the traffic is shared among priorities, and among a zone, its region and the rest: the first
//! takes as much as it is healthy enough for, the rest spills over (Envoy's algorithm).

/// The endpoints of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) usable: usize,
    pub(super) total: usize,
}

impl Level {
    /// Whether so few are usable that all are to be used.
    pub(super) fn is_below(self, panic_threshold: u8) -> bool {
        self.usable * 100 < self.total * usize::from(panic_threshold)
    }
}

/// What one level gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share {
    /// 0 to 1.
    pub(super) of_all: f64,
    pub(super) is_panicking: bool,
}

/// The share of each level. `overprovisioning` in percent.
pub(super) fn shares(levels: &[Level], overprovisioning: u32, panic_threshold: u8) -> Vec<Share> {
    let healths: Vec<f64> = levels
        .iter()
        .map(|l| health(*l, overprovisioning))
        .collect();
    let together = healths.iter().sum::<f64>();
    let panics = |level: &Level| {
        // What is enough together needs no panic: the next level helps out.
        level.total > 0
            && together < 1.0
            && (level.is_below(panic_threshold) || (level.usable == 0 && panic_threshold > 0))
    };
    let occupied = || levels.iter().filter(|l| l.total > 0);
    if panic_threshold > 0 && occupied().all(panics) {
        // Nobody is well: by numbers, since that is all that is left to go by.
        let total: usize = levels.iter().map(|l| l.total).sum();
        return levels
            .iter()
            .map(|l| Share {
                of_all: if total == 0 {
                    0.0
                } else {
                    l.total as f64 / total as f64
                },
                is_panicking: l.total > 0,
            })
            .collect();
    }
    let whole = together.min(1.0);
    let mut left = 1.0_f64;
    levels
        .iter()
        .zip(healths)
        .map(|(level, health)| {
            let of_all = if whole > 0.0 {
                (health / whole).min(left)
            } else {
                0.0
            };
            left -= of_all;
            Share {
                of_all,
                is_panicking: panics(level),
            }
        })
        .collect()
}

fn health(level: Level, overprovisioning: u32) -> f64 {
    if level.total == 0 {
        return 0.0;
    }
    (level.usable as f64 / level.total as f64 * f64::from(overprovisioning) / 100.0).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(levels: &[(usize, usize)]) -> Vec<(u32, bool)> {
        let levels: Vec<_> = levels
            .iter()
            .map(|(usable, total)| Level {
                usable: *usable,
                total: *total,
            })
            .collect();
        let shares = shares(&levels, 140, 50);
        shares
            .iter()
            .map(|s| ((s.of_all * 100.0).round() as u32, s.is_panicking))
            .collect()
    }

    /// The table in Envoy's "Priority levels" and "Panic threshold" pages.
    #[test]
    fn envoys_own_examples() {
        assert_eq!(of(&[(72, 100), (72, 100)]), [(100, false), (0, false)]);
        assert_eq!(of(&[(71, 100), (71, 100)]), [(99, false), (1, false)]);
        assert_eq!(of(&[(50, 100), (60, 100)]), [(70, false), (30, false)]);
        assert_eq!(of(&[(25, 100), (100, 100)]), [(35, false), (65, false)]);
        assert_eq!(of(&[(0, 100), (100, 100)]), [(0, false), (100, false)]);
        assert_eq!(of(&[(25, 100), (25, 100)]), [(50, true), (50, true)]);
        assert_eq!(of(&[(0, 100), (0, 100)]), [(50, true), (50, true)]);
    }

    #[test]
    fn a_single_level_panics_below_half() {
        assert_eq!(of(&[(5, 10)]), [(100, false)]);
        assert_eq!(of(&[(4, 10)]), [(100, true)]);
    }

    proptest! {
        #[test]
        fn shares_make_a_whole(levels in prop::collection::vec((0..50_usize, 0..50_usize), 1..6)) {
            let levels: Vec<_> = levels
                .iter()
                .map(|(a, b)| Level { usable: *a.min(b), total: *a.max(b) })
                .collect();
            let total: f64 = shares(&levels, 140, 50).iter().map(|s| s.of_all).sum();
            let is_empty = levels.iter().all(|l| l.total == 0);
            prop_assert!((total - f64::from(u8::from(!is_empty))).abs() < 1e-9);
        }
    }
}
