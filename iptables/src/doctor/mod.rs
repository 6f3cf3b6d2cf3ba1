//! Redirects that lead somewhere wrong: what, on what evidence, and the command that ends it.

mod backends;
mod target;

use serde::Serialize;

use crate::ruleset::{RuleAt, Ruleset};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warning,
    /// Traffic goes wrong.
    Error,
}

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub level: Level,
    /// A word for each kind, for programs.
    pub kind: &'static str,
    pub what: String,
    pub evidence: Vec<String>,
    /// A command, or what to do.
    pub fix: Option<String>,
}

/// Every finding about `ruleset`, the worst first. To be called within its network namespace.
pub fn examine(ruleset: &Ruleset) -> Vec<Finding> {
    let mut found = target::examine(ruleset);
    found.extend(backends::examine(ruleset));
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}

/// The rule as printed, where it is, and how much went by it.
fn rule_evidence(ruleset: &Ruleset, at: RuleAt) -> Vec<String> {
    let (table, chain, rule) = ruleset.rule(at);
    let handle = rule
        .handle
        .map(|h| format!(", handle {h}"))
        .unwrap_or_default();
    let mut evidence = vec![
        format!("rule: {}", ruleset.text(at)),
        format!(
            "in: {}, chain {}, line {}{handle}",
            table.title(),
            chain.name,
            rule.line
        ),
    ];
    evidence.push(match rule.counters {
        Some(counters) => format!(
            "counted so far: {} packets, {} bytes",
            counters.packets, counters.bytes
        ),
        None => "counted so far: unknown, the rule has no counter".into(),
    });
    evidence
}
