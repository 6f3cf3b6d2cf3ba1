//! What is told of a verdict, in sentences and as JSON.

use std::net::{IpAddr, SocketAddr};

use outrigger_iptables::{
    listeners,
    ruleset::{RuleAt, Ruleset},
    verdict::{Connection, End, Event, Matched, Verdict, Way},
};
use serde_json::{Value, json};

pub(super) fn tell(ruleset: &Ruleset, connection: &Connection, verdict: &Verdict, all: bool) {
    let to = connection.destination;
    match verdict.certain() {
        Some(end) => println!("A connection to {to} {}.", sentence(end, to)),
        None => println!(
            "A connection to {to} may end in {} ways; which, no rule tells:",
            verdict.ways.len()
        ),
    }
    let shown = if verdict.certain().is_some() {
        &verdict.ways[..1]
    } else {
        &verdict.ways[..]
    };
    for (n, way) in shown.iter().enumerate() {
        if verdict.certain().is_none() {
            println!("{}. It {}, if:", n + 1, sentence(&way.end, to));
            for assumption in &way.assumptions {
                println!("     {assumption}");
            }
        }
        if let Some(at) = way.decided_by {
            println!("  by the rule: {}", ruleset.text(at));
            let (table, chain, rule) = ruleset.rule(at);
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
        steps(ruleset, way, all);
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
        println!("  {left_out} rules did not match; --all tells why");
    }
}

fn sentence(end: &End, meant: SocketAddr) -> String {
    match end {
        End::Here { to } => match listener(*to) {
            Some(who) if *to == meant => format!("ends on this host, at {who}"),
            Some(who) => format!("never leaves this host: it ends at the local {who}, on {to}"),
            None if *to == meant => "ends on this host, where nobody listens: it is refused".into(),
            None => format!(
                "never leaves this host: it is redirected to {to}, where nobody listens, and refused"
            ),
        },
        End::Leaves { to, device } if *to == meant => {
            format!("goes to where it is meant to, out through {device}")
        }
        End::Leaves { to, device } => format!("is turned to {to}, out through {device}"),
        End::Dropped => "is dropped: the client waits until it gives up".into(),
        End::Rejected => {
            "is rejected: the client is told at once, unless another rule drops that answer".into()
        }
        End::NoRoute { reason } => format!("goes nowhere, for want of a route: {reason}"),
        End::Unknown { reason } => format!("ends in a way that cannot be told: {reason}"),
    }
}

pub(super) fn listener(to: SocketAddr) -> Option<String> {
    let found = listeners::on_port(to.port()).ok()?;
    let at = |ip: IpAddr| ip == to.ip() || ip.is_unspecified();
    let listener = found.into_iter().find(|l| at(l.address.ip()))?;
    Some(listener.name_owners().who())
}

pub(super) fn as_json(ruleset: &Ruleset, connection: &Connection, verdict: &Verdict) -> Value {
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
    let ways: Vec<_> = verdict
        .ways
        .iter()
        .map(|way| {
            json!({
                "end": way.end,
                "says": sentence(&way.end, connection.destination),
                "assumptions": way.assumptions,
                "rule": way.decided_by.map(rule),
                "removal": way.redirected_by.map(|at| ruleset.removal(at)),
                "events": way.events.iter().map(event).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "destination": connection.destination.to_string(),
        "certain": verdict.certain().is_some(),
        "ways": ways,
        "unseen": ruleset.unseen,
    })
}
