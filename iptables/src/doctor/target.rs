//! Where each redirect on the way out leads: to nobody, to a stranger, or to a proxy.

use std::{collections::HashSet, net::IpAddr};

use super::{Finding, Level, rule_evidence};
use crate::{
    listeners::{self, Listener},
    ruleset::{Expression, Hook, NatKind, RuleAt, Ruleset, Table, Verdict, XtTarget},
};

/// Programs made to take redirected connections, by the name that the kernel keeps of them.
const PROXIES: [&str; 12] = [
    "proxyctl",
    "envoy",
    "linkerd2-proxy",
    "ztunnel",
    "redsocks",
    "haproxy",
    "squid",
    "sshuttle",
    "mitmproxy",
    "mitmdump",
    "v2ray",
    "xray",
];

struct Redirect {
    at: RuleAt,
    /// `None`: this host, as by REDIRECT.
    address: Option<IpAddr>,
    /// `None`: the port that was dialled.
    port: Option<u16>,
}

pub(super) fn examine(ruleset: &Ruleset) -> Vec<Finding> {
    redirects(ruleset)
        .into_iter()
        .filter(|redirect| redirect.address.is_none_or(|ip| ip.is_loopback()))
        .filter_map(|redirect| judge(ruleset, &redirect))
        .collect()
}

fn judge(ruleset: &Ruleset, redirect: &Redirect) -> Option<Finding> {
    let (table, ..) = ruleset.rule(redirect.at);
    let fix = Some(ruleset.removal(redirect.at));
    let mut evidence = rule_evidence(ruleset, redirect.at);
    let Some(port) = redirect.port else {
        return Some(Finding {
            level: Level::Warning,
            kind: "redirect_to_same_port",
            what: "a rule redirects connections to this host, on whatever port they were meant for"
                .into(),
            evidence,
            fix,
        });
    };
    let listeners = match listeners::on_port(port) {
        Ok(found) => found,
        Err(error) => {
            evidence.push(format!(
                "who listens on port {port} could not be asked: {error}"
            ));
            return Some(Finding {
                level: Level::Warning,
                kind: "listener_unknown",
                what: format!("a rule redirects connections to the local port {port}"),
                evidence,
                fix,
            });
        }
    };
    let listeners: Vec<Listener> = listeners
        .into_iter()
        .filter(|l| takes(l, redirect.address))
        .map(Listener::name_owners)
        .collect();
    if listeners.is_empty() {
        return Some(Finding {
            level: Level::Error,
            kind: "nobody_listens",
            what: format!(
                "connections are redirected to the local port {port}, where nobody listens: they are refused"
            ),
            evidence,
            fix,
        });
    }
    evidence.extend(listeners.iter().map(describe));
    let is_proxy = |l: &Listener| {
        l.owners.iter().any(|p| {
            PROXIES
                .iter()
                .any(|name| name.starts_with(p.name.as_str()) && !p.name.is_empty())
        })
    };
    if listeners.iter().all(is_proxy) {
        let ours = table.name.starts_with("outrigger");
        return Some(Finding {
            level: Level::Info,
            kind: if ours { "own_redirect" } else { "known_proxy" },
            what: format!(
                "connections are redirected to {}, a transparent proxy that is alive",
                listeners[0].who()
            ),
            evidence,
            fix: None,
        });
    }
    if listeners.iter().all(|l| l.owners.is_empty()) {
        return Some(Finding {
            level: Level::Warning,
            kind: "listener_hidden",
            what: format!(
                "connections are redirected to the local port {port}; whose program listens there is not visible to this user"
            ),
            evidence,
            fix,
        });
    }
    evidence.push(
        "why: it is none of the transparent proxies known by name; by that list, not by a trial"
            .into(),
    );
    let stranger = listeners
        .iter()
        .find(|l| !is_proxy(l))
        .unwrap_or(&listeners[0]);
    Some(Finding {
        level: Level::Error,
        kind: "listener_is_no_proxy",
        what: format!(
            "connections meant for other hosts end at the local port {port}, at {}",
            stranger.who()
        ),
        evidence,
        fix,
    })
}

fn takes(listener: &Listener, address: Option<IpAddr>) -> bool {
    match address {
        None => listener.takes_redirected(),
        Some(ip) => listener.address.ip() == ip || listener.address.ip().is_unspecified(),
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
    let begun = procfs::process::Process::new(pid)
        .ok()?
        .stat()
        .ok()?
        .starttime;
    let uptime: f64 = std::fs::read_to_string("/proc/uptime")
        .ok()?
        .split(' ')
        .next()?
        .parse()
        .ok()?;
    Some((uptime as u64).saturating_sub(begun / procfs::ticks_per_second()))
}

/// Those in chains that outbound packets can come to.
fn redirects(ruleset: &Ruleset) -> Vec<Redirect> {
    let mut found = Vec::new();
    for (n, table) in ruleset.tables.iter().enumerate() {
        for chain in reachable(table) {
            for (rule, of) in table.chains[chain].rules.iter().enumerate() {
                if let Some((address, port)) = goal(&of.expressions) {
                    found.push(Redirect {
                        at: RuleAt {
                            table: n,
                            chain,
                            rule,
                        },
                        address,
                        port,
                    });
                }
            }
        }
    }
    found
}

fn reachable(table: &Table) -> Vec<usize> {
    let is_out = |chain: usize| {
        table.chains[chain]
            .base
            .as_ref()
            .is_some_and(|b| b.hook == Hook::Output)
    };
    let mut open: Vec<usize> = (0..table.chains.len()).filter(|c| is_out(*c)).collect();
    let mut seen: HashSet<usize> = open.iter().copied().collect();
    let mut all = Vec::new();
    while let Some(chain) = open.pop() {
        all.push(chain);
        let mut lead = |name: &str| {
            if let Some(next) = table.chain(name).filter(|next| seen.insert(*next)) {
                open.push(next);
            }
        };
        for expression in table.chains[chain]
            .rules
            .iter()
            .flat_map(|r| &r.expressions)
        {
            match expression {
                Expression::Verdict(Verdict::Jump(name) | Verdict::Goto(name)) => lead(name),
                Expression::Lookup {
                    set, to: Some(0), ..
                } => {
                    for element in table.sets.get(set).iter().flat_map(|set| &set.elements) {
                        if let Some(crate::ruleset::Data::Verdict(
                            Verdict::Jump(name) | Verdict::Goto(name),
                        )) = &element.data
                        {
                            lead(name);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    all.sort_unstable();
    all
}

/// The address and port that a rule turns connections to, where it says them itself.
fn goal(expressions: &[Expression]) -> Option<(Option<IpAddr>, Option<u16>)> {
    let constant = |register: usize| {
        expressions.iter().find_map(|e| match e {
            Expression::Immediate { to, value } if *to == register => Some(value.as_slice()),
            _ => None,
        })
    };
    let port = |register: usize| {
        Some(u16::from_be_bytes(
            constant(register)?.get(..2)?.try_into().ok()?,
        ))
    };
    expressions.iter().find_map(|expression| match expression {
        Expression::XtTarget(XtTarget::Redirect(nat)) => Some((None, nat.port.map(|p| p.0))),
        Expression::XtTarget(XtTarget::Nat(NatKind::Destination, nat)) => {
            Some((Some(nat.address?.0), nat.port.map(|p| p.0)))
        }
        Expression::Redirect { port: to } => match to {
            Some((register, _)) => Some((None, Some(port(*register)?))),
            None => Some((None, None)),
        },
        Expression::Nat {
            kind: NatKind::Destination,
            address,
            port: to,
            ..
        } => {
            let bytes = constant(address.as_ref()?.0)?;
            let ip = match <[u8; 4]>::try_from(bytes) {
                Ok(octets) => IpAddr::from(octets),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
            };
            Some((
                Some(ip),
                to.as_ref().and_then(|(register, _)| port(*register)),
            ))
        }
        _ => None,
    })
}
