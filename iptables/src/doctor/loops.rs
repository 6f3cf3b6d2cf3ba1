//! A redirect that catches the connections of the very proxy that it leads to.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
};

use super::{
    Finding, Level, known, rule_evidence,
    scene::{Scene, connection},
};
use crate::ruleset::{CmpOp, Expression, Ruleset, XtMatch, meta};

/// Each takes a walk through all rules.
const MOST: usize = 50;

pub(super) fn examine(scene: &Scene<'_>) -> Vec<Finding> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for redirect in &scene.redirects {
        let listeners = scene.listeners(redirect).unwrap_or_default();
        let Some(proxy) = listeners.iter().find(|l| known::is_proxy(l)) else {
            continue;
        };
        // Its own probes are meant to be redirected; how it exempts itself the gate has proven.
        if known::is_own(scene.ruleset, redirect) || seen.len() >= MOST || !seen.insert(redirect.at)
        {
            continue;
        }
        let Some(sample) = scene.sample(redirect) else {
            continue;
        };
        let Some(owner) = proxy.owners.first() else {
            continue;
        };
        let is_caught = |mark: u32| {
            let mut own = connection(sample.destination, owner.uid);
            own.gid = group(owner.pid).unwrap_or(owner.uid);
            own.mark = mark;
            scene.is_caught(&own, redirect)
        };
        if !is_caught(0) {
            continue;
        }
        let escape = marks(scene.ruleset)
            .into_iter()
            .find(|mark| !is_caught(*mark));
        found.push(finding(
            scene.ruleset,
            redirect.at,
            &proxy.who(),
            owner.uid,
            sample.destination,
            escape,
        ));
    }
    found
}

fn finding(
    ruleset: &Ruleset,
    at: crate::ruleset::RuleAt,
    who: &str,
    uid: u32,
    to: SocketAddr,
    escape: Option<u32>,
) -> Finding {
    let mut evidence = rule_evidence(ruleset, at);
    evidence.push(format!(
        "why: a connection of user {uid} to {to} is redirected as everyone's is"
    ));
    let (level, unless) = match escape {
        Some(mark) => (
            Level::Warning,
            format!(", unless it marks its own with {mark:#x}"),
        ),
        None => (Level::Error, String::new()),
    };
    Finding {
        level,
        kind: "loop",
        what: format!("the connections of {who} are redirected to itself: a loop{unless}"),
        evidence,
        fix: Some(ruleset.removal(at)),
    }
}

fn group(pid: i32) -> Option<u32> {
    let status = procfs::process::Process::new(pid).ok()?.status().ok()?;
    Some(status.fgid)
}

/// Every mark that some rule compares with: by one of them a proxy may tell its own connections.
fn marks(ruleset: &Ruleset) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for at in ruleset.places() {
        let (.., rule) = ruleset.rule(at);
        let mut is_mark = false;
        for expression in &rule.expressions {
            match expression {
                Expression::XtMatch(XtMatch::Mark { mark, .. }) => drop(found.insert(*mark)),
                Expression::Meta { key, .. } => is_mark = *key == meta::MARK,
                Expression::Payload { .. } | Expression::Ct { .. } => is_mark = false,
                Expression::Cmp {
                    op: CmpOp::Eq | CmpOp::Ne,
                    value,
                    ..
                } if is_mark => {
                    found.extend(value.first_chunk().map(|b| u32::from_ne_bytes(*b)));
                }
                _ => {}
            }
        }
    }
    found.remove(&0);
    found
}
