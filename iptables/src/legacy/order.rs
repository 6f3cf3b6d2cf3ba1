//! Whether our jump is the first rule of OUTPUT with iptables-legacy, whose changes the kernel tells nobody
//! of: whoever asks for the proxy's status, and has the privilege, looks.

use outrigger_config::control::{RulesTrouble, Status, TetherKind};

use super::{Variant, rules::capture_name};
use crate::{
    plan::Family,
    ruleset::{Expression, Rule, Table, Verdict, legacy_table},
    tether::backend_of,
};

/// How the names of our chains begin, those of a neighbour too.
const OUR_CHAINS: &str = "OUTRIGGER_";

/// Adds to what the proxy says what it cannot see.
pub(crate) fn look(port: u16, mut status: Status) -> Status {
    let tethers = status.proxy.tethers.iter();
    let mut beats = tethers
        .filter(|held| held.kind == TetherKind::Capture)
        .filter(|held| backend_of(held) == Variant::Legacy.name())
        .flat_map(|held| held.lease.iter().flat_map(|lease| &lease.beats));
    let is_pushed = |family| {
        legacy_table(family, "nat").is_ok_and(|table| table.is_some_and(|t| is_behind(&t, port)))
    };
    let is_in_force = status.proxy.captured_since.is_some() && status.drift.trouble.is_none();
    if is_in_force && beats.any(|beat| is_pushed(Family::of(beat.ip()))) {
        // To install again does not put ours before a chain that is asked earlier.
        let trouble = if status.drift.shadowed_by.is_empty() {
            RulesTrouble::Gone
        } else {
            RulesTrouble::Overruled
        };
        status.drift.trouble = Some(trouble);
        status.drift.needs_repair = trouble.is_repairable();
    }
    status
}

/// Whether a foreign rule comes before our jump, which is there.
fn is_behind(nat: &Table, port: u16) -> bool {
    let ours = capture_name(port);
    let Some(output) = nat.chain("OUTPUT") else {
        return false;
    };
    let rules = &nat.chains[output].rules;
    let Some(place) = rules
        .iter()
        .position(|rule| target(rule) == Some(ours.as_str()))
    else {
        return false;
    };
    rules[..place]
        .iter()
        .any(|rule| target(rule).is_none_or(|chain| !chain.starts_with(OUR_CHAINS)))
}

/// The chain that a rule leads to.
fn target(rule: &Rule) -> Option<&str> {
    rule.expressions
        .iter()
        .find_map(|expression| match expression {
            Expression::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => {
                Some(chain.as_str())
            }
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{Chain, TableFamily, Tool};

    fn nat(targets: &[Option<&str>]) -> Table {
        let rule = |target: &Option<&str>| Rule {
            handle: None,
            line: 1,
            expressions: vec![Expression::Verdict(match target {
                Some(chain) => Verdict::Jump((*chain).to_owned()),
                None => Verdict::Accept,
            })],
            counters: None,
            comment: None,
        };
        let mut table = Table::new(Tool::IptablesLegacy, TableFamily::Ip, "nat".into());
        table.add_chain(Chain {
            name: "OUTPUT".into(),
            base: None,
            rules: targets.iter().map(rule).collect(),
        });
        table
    }

    #[test]
    fn a_foreign_rule_ahead_is_told_from_a_neighbours_and_from_one_behind() {
        let ours = Some("OUTRIGGER_15001");
        assert!(!is_behind(&nat(&[ours, None]), 15001));
        assert!(!is_behind(&nat(&[Some("OUTRIGGER_15010"), ours]), 15001));
        assert!(is_behind(&nat(&[None, ours]), 15001));
        assert!(is_behind(
            &nat(&[ours, Some("THEIRS"), Some("OUTRIGGER_15010")]),
            15010
        ));
        // That it is gone is for the beat to say.
        assert!(!is_behind(&nat(&[None]), 15001));
    }
}
