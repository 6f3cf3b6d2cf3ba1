//! Redirects that lead somewhere wrong: what, on what evidence, and the command that ends it.

mod backends;
mod families;
mod known;
mod loops;
mod modules;
mod names;
mod own;
mod probe;
mod redirects;
mod room;
mod scene;
mod shadowed;
mod target;
mod uids;

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

#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Dial through redirects to strangers, and to those directly, and compare the answers.
    pub probe: bool,
}

/// Every finding about `ruleset`, the worst first. To be called within its network namespace.
pub fn examine(ruleset: &Ruleset, options: Options) -> Vec<Finding> {
    let scene = scene::Scene::of(ruleset);
    let mut found = target::examine(&scene, options);
    found.extend(loops::examine(&scene));
    found.extend(shadowed::examine(&scene));
    found.extend(families::examine(&scene));
    found.extend(uids::examine(&scene));
    found.extend(backends::examine(ruleset));
    found.extend(room::examine());
    found.extend(modules::examine());
    found.extend(names::examine());
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
