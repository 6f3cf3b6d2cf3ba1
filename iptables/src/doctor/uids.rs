//! A program that runs as the proxy's user, whose connections the rules let go past the proxy.

use std::{collections::BTreeSet, fs};

use super::{Finding, Level, known, scene::Scene};
use crate::{
    Process,
    ruleset::{Expression, Ruleset, XtMatch, meta},
};

pub(super) fn examine(scene: &Scene<'_>) -> Vec<Finding> {
    let mut proxies = BTreeSet::new();
    let mut own_pids = BTreeSet::new();
    for redirect in &scene.redirects {
        for listener in scene.listeners(redirect).unwrap_or_default() {
            if known::is_proxy(&listener) {
                own_pids.extend(listener.owners.iter().map(|owner| owner.pid));
                proxies.extend(listener.owners.iter().map(|o| (o.uid, o.to_string())));
            }
        }
    }
    let exempted = exempted(scene.ruleset);
    let mut found = Vec::new();
    for (uid, proxy) in proxies {
        // Everything may run as root, and usually nothing is let go for it.
        if uid == 0 || !exempted.contains(&uid) {
            continue;
        }
        let others = others(uid, &own_pids);
        if !others.is_empty() {
            found.push(Finding {
                level: Level::Warning,
                kind: "uid_clash",
                what: format!(
                    "programs run as user {uid}, which is the proxy's: their connections go past it"
                ),
                evidence: [format!("the proxy: {proxy}")]
                    .into_iter()
                    .chain(
                        others
                            .iter()
                            .map(|process| format!("runs as {uid}: {process}")),
                    )
                    .collect(),
                fix: Some("run them, or the proxy, as another user".into()),
            });
        }
    }
    found
}

/// Users that rules ask for.
fn exempted(ruleset: &Ruleset) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for at in ruleset.places() {
        let mut is_uid = false;
        for expression in &ruleset.rule(at).2.expressions {
            match expression {
                Expression::XtMatch(XtMatch::Owner {
                    uid: Some((low, high, _)),
                    ..
                }) if low == high => {
                    found.insert(*low);
                }
                Expression::Meta { key, .. } => is_uid = *key == meta::SKUID,
                Expression::Cmp { value, .. } if is_uid => {
                    // Compared for order it is in network byte order, as part of a range.
                    found.extend(value.first_chunk().map(|b| u32::from_ne_bytes(*b)));
                }
                _ => {}
            }
        }
    }
    found
}

/// Processes of `uid` in this network namespace, besides the proxy's own and their children.
fn others(uid: u32, own: &BTreeSet<i32>) -> Vec<Process> {
    let here = fs::read_link("/proc/thread-self/ns/net").ok();
    let Ok(all) = procfs::process::all_processes() else {
        return Vec::new();
    };
    let is_other = |process: &procfs::process::Process| {
        let parent = process.stat().map(|stat| stat.ppid);
        process.uid().is_ok_and(|found| found == uid)
            && !own.contains(&process.pid)
            && parent.is_ok_and(|parent| !own.contains(&parent))
            && fs::read_link(format!("/proc/{}/ns/net", process.pid)).ok() == here
    };
    all.filter_map(Result::ok)
        .filter(is_other)
        .filter_map(|process| Process::of(process.pid))
        .collect()
}
