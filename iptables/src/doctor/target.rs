//! Where each redirect on the way out leads: to nobody, to a stranger, or to a proxy.

use std::collections::HashSet;

use super::{
    Finding, Level, Options, known, own, probe, redirects::Redirect, rule_evidence, scene::Scene,
};
use crate::listeners::Listener;

pub(super) fn examine(scene: &Scene<'_>, options: Options) -> Vec<Finding> {
    let mut own_ports = HashSet::new();
    // Our rules redirect to one port in several places, and the last is the capture: before it come those
    // that the proxy's own probes go by.
    let is_told = |redirect: &&Redirect| {
        !known::is_own(scene.ruleset, redirect) || own_ports.insert(redirect.port)
    };
    let told = scene.redirects.iter().rev().filter(is_told);
    let mut found: Vec<_> = told
        .map(|redirect| judge(scene, redirect, options))
        .collect();
    found.reverse();
    found
}

fn judge(scene: &Scene<'_>, redirect: &Redirect, options: Options) -> Finding {
    let ruleset = scene.ruleset;
    let mut evidence = rule_evidence(ruleset, redirect.at);
    let removal = Some(ruleset.removal(redirect.at));
    let Some(port) = redirect.port else {
        return Finding {
            level: Level::Warning,
            kind: "redirect_to_same_port",
            what: "a rule redirects connections to this host, on whatever port they were meant for"
                .into(),
            evidence,
            fix: removal,
        };
    };
    if known::is_own(ruleset, redirect) {
        // They have no counters: the proxy itself counts, for `status`.
        evidence.truncate(2);
        return own::judge(port, evidence);
    }
    let listeners = match scene.listeners(redirect) {
        Ok(found) => found,
        Err(error) => {
            evidence.push(format!(
                "who listens on port {port} could not be asked: {error}"
            ));
            return Finding {
                level: Level::Warning,
                kind: "listener_unknown",
                what: format!("a rule redirects connections to the local port {port}"),
                evidence,
                fix: removal,
            };
        }
    };
    let maker = known::maker(ruleset, redirect);
    if let Some((_, reason)) = &maker {
        evidence.push(format!("whose: {reason}"));
    }
    if listeners.is_empty() {
        let (kind, whose) = match maker {
            Some((name, _)) => (
                "orphaned_proxy",
                format!("; the rules are {name}'s, whose proxy is gone"),
            ),
            None => ("nobody_listens", String::new()),
        };
        return Finding {
            level: Level::Error,
            kind,
            what: format!(
                "connections are redirected to the local port {port}, where nobody listens: they are refused{whose}"
            ),
            evidence,
            fix: removal,
        };
    }
    evidence.extend(listeners.iter().map(describe));
    if listeners.iter().all(known::is_proxy) {
        return Finding {
            level: Level::Info,
            kind: "known_proxy",
            what: format!(
                "connections are redirected to {}, a transparent proxy that is alive",
                listeners[0].who()
            ),
            evidence,
            fix: None,
        };
    }
    if listeners.iter().all(|l| l.owners.is_empty()) {
        return Finding {
            level: Level::Warning,
            kind: "listener_hidden",
            what: format!(
                "connections are redirected to the local port {port}; whose program listens there is not visible to this user"
            ),
            evidence,
            fix: removal,
        };
    }
    let is_stranger = |listener: &&Listener| !known::is_proxy(listener);
    let stranger = listeners.iter().find(is_stranger).unwrap_or(&listeners[0]);
    let trial = if options.probe {
        probe::try_out(scene, redirect, stranger)
    } else {
        let reason = "by the list of those known by name, not by a trial (--probe makes one)";
        probe::Outcome::Untried(reason.into())
    };
    let (is_wrong, why) = match trial {
        probe::Outcome::Same(answer) => (
            true,
            format!(
                "it gave the same answer to a connection through the redirect and to one made to it directly ({answer}), so it does not ask where connections were meant for"
            ),
        ),
        probe::Outcome::Different(answers) => (
            false,
            format!(
                "it answers connections through the redirect otherwise than those made to it directly ({answers})"
            ),
        ),
        probe::Outcome::Untried(reason) => {
            (true, format!("it is no known transparent proxy; {reason}"))
        }
    };
    evidence.push(format!("why: {why}"));
    if !is_wrong {
        return Finding {
            level: Level::Warning,
            kind: "unknown_proxy",
            what: format!(
                "connections are redirected to {}, which behaves as a transparent proxy but is not known as one",
                stranger.who()
            ),
            evidence,
            fix: removal,
        };
    }
    Finding {
        level: Level::Error,
        kind: "listener_is_no_proxy",
        what: format!(
            "connections meant for other hosts end at the local port {port}, at {}",
            stranger.who()
        ),
        evidence,
        fix: removal,
    }
}

fn describe(listener: &Listener) -> String {
    let mut text = format!("listens on {}: {}", listener.address, listener.who());
    if let Some(owner) = listener.owners.first() {
        let proc = format!("/proc/{}", owner.pid);
        if let Ok(exe) = std::fs::read_link(format!("{proc}/exe")) {
            text += &format!(", exe {}", exe.display());
        }
        if let Some(seconds) = running_for(owner.pid) {
            text += &format!(", started {seconds} s ago");
        }
        let group = std::fs::read_to_string(format!("{proc}/cgroup")).unwrap_or_default();
        if let Some(path) = group
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .filter(|path| *path != "/")
        {
            text += &format!(", cgroup {path}");
        }
    }
    text
}

fn running_for(pid: i32) -> Option<u64> {
    let process = procfs::process::Process::new(pid).ok()?;
    let begun = process.stat().ok()?.starttime;
    let uptime: f64 = std::fs::read_to_string("/proc/uptime")
        .ok()?
        .split(' ')
        .next()?
        .parse()
        .ok()?;
    Some((uptime as u64).saturating_sub(begun / procfs::ticks_per_second()))
}
