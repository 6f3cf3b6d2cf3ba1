//! A table of connection tracking that is nearly full: beyond it every new connection is dropped.

use std::fs;

use super::{Finding, Level};

pub(super) fn examine() -> Option<Finding> {
    let number = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
        text.trim().parse().ok()
    };
    judge(number("nf_conntrack_count")?, number("nf_conntrack_max")?)
}

fn judge(entries: u64, most: u64) -> Option<Finding> {
    /// Of a hundred.
    const NEARLY: u64 = 90;
    // Zero: no bound.
    if most == 0 || entries.saturating_mul(100) < most.saturating_mul(NEARLY) {
        return None;
    }
    let is_full = entries >= most;
    Some(Finding {
        level: if is_full {
            Level::Error
        } else {
            Level::Warning
        },
        kind: "conntrack_full",
        what: if is_full {
            "connection tracking is full: new connections are dropped".into()
        } else {
            "connection tracking is nearly full: once it is, new connections are dropped".into()
        },
        evidence: vec![format!("{entries} of {most} entries")],
        fix: Some(format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}",
            most * 2
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_nearly_full_at_nine_tenths_and_full_at_its_bound() {
        assert!(judge(89, 100).is_none());
        assert_eq!(judge(90, 100).unwrap().level, Level::Warning);
        assert_eq!(judge(100, 100).unwrap().level, Level::Error);
        assert!(judge(100, 0).is_none());
    }
}
