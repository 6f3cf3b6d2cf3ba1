//! How full connection tracking is. With a full table the kernel drops the first packet of every new
//! connection in this network namespace, for as long as anything here has connections tracked: our own
//! rules too. So these go first.

use std::{fmt, fs, str::FromStr};

/// Entries of this network namespace, and the most that it may have. (The kernel has one such limit for
/// all namespaces, and counts each for itself.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) entries: u64,
    pub(super) most: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// A capture may be taken on.
    Ample,
    /// One that is held is kept: between this and the next lies what keeps it from coming and going.
    Tight,
    /// No connection is captured any more; live ones stay translated.
    NearlyFull,
    /// Nothing of ours has connections tracked any more; that ends the live captured ones, in place of
    /// everybody's new ones.
    Full,
}

impl Room {
    /// Needs no privilege. `None`: nothing is tracked here.
    pub(super) fn look() -> Option<Self> {
        Some(Self {
            entries: number("nf_conntrack_count")?,
            most: number("nf_conntrack_max")?,
        })
    }

    pub(super) fn level(self) -> Level {
        // 0: no limit.
        let percent = (self.entries * 100).checked_div(self.most).unwrap_or(0);
        match percent {
            0..80 => Level::Ample,
            80..90 => Level::Tight,
            90..98 => Level::NearlyFull,
            _ => Level::Full,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connection tracking is nearly full ({} of {} entries); raise net.netfilter.nf_conntrack_max or find out who fills it (`conntrack -L`)",
            self.entries, self.most
        )
    }
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_rise_with_the_entries() {
        let level = |entries| {
            Room {
                entries,
                most: 1000,
            }
            .level()
        };
        assert_eq!(
            [0, 799, 800, 899, 900, 979, 980, 2000].map(level),
            [
                Level::Ample,
                Level::Ample,
                Level::Tight,
                Level::Tight,
                Level::NearlyFull,
                Level::NearlyFull,
                Level::Full,
                Level::Full
            ]
        );
    }

    #[test]
    fn no_limit_is_never_reached() {
        let unlimited = Room {
            entries: 1 << 40,
            most: 0,
        };
        assert_eq!(unlimited.level(), Level::Ample);
    }
}
