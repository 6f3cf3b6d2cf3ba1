//! What is told of a verdict, in sentences and as JSON.

use std::net::{IpAddr, SocketAddr};

use outrigger_iptables::{
    listeners,
    ruleset::{RuleAt, Ruleset},
    verdict::{Connection, End, Event, Matched, Verdict, Way},
};
use serde_json::{Value, json};

use super::onward::Onward;
use crate::output::count;

/// All that is told of one connection.
pub(super) struct Told<'a> {
    pub(super) ruleset: &'a Ruleset,
    pub(super) connection: &'a Connection,
    pub(super) verdict: &'a Verdict,
    pub(super) onward: &'a Onward,
}

impl Told<'_> {
    pub(super) fn tell(&self, all: bool) {
        let to = self.connection.destination;
        let ways = &self.verdict.ways;
        let of_verdict = self.verdict.certain();
        match of_verdict {
            Some(end) if self.ruleset.unseen.is_empty() => {
                println!("A connection to {to} {}.", self.sentence(end));
            }
            Some(end) => println!(
                "Not all rules could be seen. By those that could, a connection to {to} {}.",
                self.sentence(end)
            ),
            None => println!(
                "A connection to {to} may end in {}; which, no rule tells:",
                count(ways.len(), "way")
            ),
        }
        let shown = if of_verdict.is_some() {
            &ways[..1]
        } else {
            ways
        };
        for (n, way) in shown.iter().enumerate() {
            if of_verdict.is_none() {
                println!("{}. It {}, if:", n + 1, self.sentence(&way.end));
                for assumption in &way.assumptions {
                    println!("     {assumption}");
                }
            }
            if let Some(at) = way.decided_by {
                println!("  by the rule: {}", self.ruleset.text(at));
                let (table, chain, rule) = self.ruleset.rule(at);
                let handle = rule
                    .handle
                    .map(|h| format!(", handle {h}"))
                    .unwrap_or_default();
                println!(
                    "  which is in: {}, chain {}, line {}{handle}",
                    table.title(),
                    chain.name,
                    rule.line
                );
            }
            steps(self.ruleset, way, all);
        }
    }

    /// Where it ends for certain: by rules of which none is missing.
    fn is_certain(&self) -> bool {
        self.ruleset.unseen.is_empty() && self.verdict.certain().is_some()
    }

    fn sentence(&self, end: &End) -> String {
        let meant = self.connection.destination;
        match end {
            End::Here { to } => match (self.onward.taker(*to), listener(*to)) {
                (Some(proxy), _) => format!(
                    "is taken by Outrigger (pid {}, user {}), which listens on {to}",
                    proxy.pid, proxy.uid
                ),
                (None, Some(who)) if *to == meant => format!("ends on this host, at {who}"),
                (None, Some(who)) => {
                    format!("never leaves this host: it ends at the local {who}, on {to}")
                }
                (None, None) if *to == meant => {
                    "ends on this host, where nobody listens: it is refused".into()
                }
                (None, None) => format!(
                    "never leaves this host: it is redirected to {to}, where nobody listens, and refused"
                ),
            },
            End::Leaves { to, device } if *to == meant => {
                format!("goes to where it is meant to, out through {device}")
            }
            End::Leaves { to, device } => format!("is turned to {to}, out through {device}"),
            End::Dropped => "is dropped: the client waits until it gives up".into(),
            End::Rejected => {
                "is rejected: the client is told at once, unless another rule drops that answer"
                    .into()
            }
            End::NoRoute { reason } => format!("goes nowhere, for want of a route: {reason}"),
            End::Unknown { reason } => format!("ends in a way that cannot be told: {reason}"),
        }
    }

    pub(super) fn as_json(&self) -> Value {
        let ruleset = self.ruleset;
        let rule = |at: RuleAt| {
            let (table, chain, rule) = ruleset.rule(at);
            json!({
                "text": ruleset.text(at),
                "table": table.title(),
                "chain": chain.name,
                "line": rule.line,
                "handle": rule.handle,
            })
        };
        let event = |event: &Event| {
            let (matched, what) = match &event.matched {
                Matched::Yes(what) => ("yes", what),
                Matched::No(why) => ("no", why),
                Matched::Perhaps(why) => ("perhaps", why),
            };
            json!({ "hook": event.hook, "rule": rule(event.at), "matched": matched, "what": what })
        };
        let ways = self.verdict.ways.iter().map(|way| {
            json!({
                "end": way.end,
                "says": self.sentence(&way.end),
                "assumptions": way.assumptions,
                "rule": way.decided_by.map(rule),
                "removal": way.redirected_by.map(|at| ruleset.removal(at)),
                "events": way.events.iter().map(event).collect::<Vec<_>>(),
            })
        });
        json!({
            "destination": self.connection.destination.to_string(),
            "certain": self.is_certain(),
            "ways": ways.collect::<Vec<_>>(),
            "onward": self.onward.as_json(),
            "unseen": ruleset.unseen,
        })
    }
}

fn steps(ruleset: &Ruleset, way: &Way, all: bool) {
    let mut left_out = 0;
    for event in &way.events {
        let (table, chain, rule) = ruleset.rule(event.at);
        let came = match &event.matched {
            Matched::Yes(what) => format!("matches: {what}"),
            Matched::Perhaps(why) => format!("may match: {why}"),
            Matched::No(_) if !all => {
                left_out += 1;
                continue;
            }
            Matched::No(why) => format!("does not match: {why}"),
        };
        println!(
            "  {}: {}, {} line {}: {}",
            event.hook,
            table.title(),
            chain.name,
            rule.line,
            ruleset.text(event.at)
        );
        println!("      {came}");
    }
    if left_out > 0 {
        println!(
            "  {} did not match; --all tells why",
            count(left_out, "rule")
        );
    }
}

pub(super) fn listener(to: SocketAddr) -> Option<String> {
    let found = listeners::on_port(to.port()).ok()?;
    let at = |ip: IpAddr| ip == to.ip() || ip.is_unspecified();
    let listener = found.into_iter().find(|l| at(l.address.ip()))?;
    Some(listener.name_owners().who())
}
