//! A redirect that no connection comes to, since a rule before it takes all that it would.

use std::collections::BTreeSet;

use super::{Finding, Level, scene::Scene};
use crate::ruleset::{
    Base, CmpOp, Expression as E, IpMatch, Rule, RuleAt, Verdict, XtMatch, XtTarget,
};

pub(super) fn examine(scene: &Scene<'_>) -> Vec<Finding> {
    let ruleset = scene.ruleset;
    let mut found = Vec::new();
    let places: BTreeSet<RuleAt> = scene.redirects.iter().map(|r| r.at).collect();
    for at in places {
        let (table, chain, rule) = ruleset.rule(at);
        let later = conditions(rule);
        // Long chains of redirects would be compared each with each.
        const NEAREST: usize = 200;
        let first = at.rule.saturating_sub(NEAREST);
        let takes_all = |n: &usize| {
            let earlier = &chain.rules[*n];
            ends(earlier) && covers(&conditions(earlier), &later)
        };
        let Some(by) = (first..at.rule).find(takes_all) else {
            continue;
        };
        let earlier = RuleAt { rule: by, ..at };
        found.push(Finding {
            level: Level::Warning,
            kind: "shadowed",
            what: format!(
                "a redirect never applies: rule {} before it takes all connections that it would",
                by + 1
            ),
            evidence: vec![
                format!("rule: {}", ruleset.text(at)),
                format!("before it: {}", ruleset.text(earlier)),
                format!(
                    "in: {}, chain {}, lines {} and {}",
                    table.title(),
                    chain.name,
                    by + 1,
                    at.rule + 1
                ),
            ],
            fix: Some(ruleset.removal(at)),
        });
    }
    found
}

/// What a rule asks: networks, the header of iptables-legacy, and all else in words of its own.
#[derive(Default)]
struct Conditions {
    header: Option<IpMatch>,
    networks: Vec<Network>,
    others: BTreeSet<String>,
}

/// A comparison of some bytes of the IP header, as nftables asks for an address.
struct Network {
    offset: usize,
    value: Vec<u8>,
    mask: Vec<u8>,
}

fn conditions(rule: &Rule) -> Conditions {
    let mut found = Conditions::default();
    // What was loaded since the last comparison.
    let mut loaded: Vec<&E> = Vec::new();
    for expression in &rule.expressions {
        match expression {
            E::Ip(of) => found.header = Some(of.clone()),
            E::XtMatch(XtMatch::Comment(_)) | E::Counter | E::NoEffect(_) => {}
            E::Cmp {
                op: CmpOp::Eq,
                value,
                ..
            } if network(&loaded, value).is_some() => {
                found.networks.extend(network(&loaded, value));
                loaded.clear();
            }
            E::XtMatch(_)
            | E::Cmp { .. }
            | E::Range { .. }
            | E::Lookup { .. }
            | E::Unpredictable(_) => {
                found.others.insert(format!("{loaded:?} {expression:?}"));
                loaded.clear();
            }
            E::Payload { .. }
            | E::Meta { .. }
            | E::Ct { .. }
            | E::Socket { .. }
            | E::Fib { .. }
            | E::Bitwise { .. }
            | E::ByteOrder { .. } => loaded.push(expression),
            _ => {}
        }
    }
    found
}

fn network(loaded: &[&E], value: &[u8]) -> Option<Network> {
    let (offset, mask) = match loaded {
        [
            E::Payload {
                base: Base::Network,
                offset,
                ..
            },
        ] => (*offset, vec![0xff; value.len()]),
        [
            E::Payload {
                base: Base::Network,
                offset,
                ..
            },
            E::Bitwise { mask, xor, .. },
        ] if xor.iter().all(|b| *b == 0) => (*offset, mask.clone()),
        _ => return None,
    };
    Some(Network {
        offset,
        value: value.to_vec(),
        mask,
    })
}

impl Network {
    fn covers(&self, other: &Self) -> bool {
        let is_part = |((value, mask), (v, m)): ((&u8, &u8), (&u8, &u8))| {
            mask & m == *mask && v & mask == *value
        };
        self.offset == other.offset
            && self.value.len() <= other.value.len()
            && self
                .value
                .iter()
                .zip(&self.mask)
                .zip(other.value.iter().zip(&other.mask))
                .all(is_part)
    }
}

/// Whether the rule is the end for whatever meets its conditions.
fn ends(rule: &Rule) -> bool {
    rule.expressions.last().is_some_and(|e| match e {
        E::Verdict(verdict) => matches!(
            verdict,
            Verdict::Accept | Verdict::Drop | Verdict::Return | Verdict::Goto(_)
        ),
        E::XtTarget(target) => matches!(
            target,
            XtTarget::Redirect(_) | XtTarget::Nat(..) | XtTarget::Reject
        ),
        E::Redirect { .. } | E::Nat { .. } | E::Reject => true,
        _ => false,
    }) && !rule
        .expressions
        .iter()
        .any(|e| matches!(e, E::Unpredictable(_) | E::XtMatch(XtMatch::Unknown(_))))
}

fn covers(earlier: &Conditions, later: &Conditions) -> bool {
    let by_header = match (&earlier.header, &later.header) {
        (Some(earlier), Some(later)) => header_covers(earlier, later),
        (None, None) => true,
        _ => false,
    };
    let is_narrower = |network: &Network| later.networks.iter().any(|other| network.covers(other));
    by_header && earlier.networks.iter().all(is_narrower) && earlier.others.is_subset(&later.others)
}

fn header_covers(earlier: &IpMatch, later: &IpMatch) -> bool {
    let network = |a: &(_, _, bool), b: &(_, _, bool)| {
        a == b || !a.2 && !b.2 && contains((a.0, a.1), (b.0, b.1))
    };
    let device = |a: &(String, bool), b: &(String, bool)| a.0.is_empty() || a == b;
    network(&earlier.source, &later.source)
        && network(&earlier.destination, &later.destination)
        && device(&earlier.input, &later.input)
        && device(&earlier.output, &later.output)
        && (earlier.protocol.0 == 0 || earlier.protocol == later.protocol)
        && (!earlier.fragments_only)
}

/// Whether the first network, an address and its mask, contains the second.
fn contains(
    outer: (std::net::IpAddr, std::net::IpAddr),
    inner: (std::net::IpAddr, std::net::IpAddr),
) -> bool {
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (net, mask) = (octets(outer.0), octets(outer.1));
    let (inner_net, inner_mask) = (octets(inner.0), octets(inner.1));
    net.len() == inner_net.len()
        && mask.iter().zip(&inner_mask).all(|(o, i)| o & i == *o)
        && inner_net
            .iter()
            .zip(&mask)
            .zip(&net)
            .all(|((i, m), o)| i & m == *o)
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn a_network_contains_its_parts_and_not_its_neighbours() {
        let net = |ip: &str, mask: &str| (ip.parse().unwrap(), mask.parse().unwrap());
        let outer = net("10.0.0.0", "255.0.0.0");
        assert!(contains(outer, net("10.1.0.0", "255.255.0.0")));
        assert!(contains(net("0.0.0.0", "0.0.0.0"), outer));
        assert!(!contains(outer, net("11.0.0.0", "255.0.0.0")));
        assert!(!contains(net("10.1.0.0", "255.255.0.0"), outer));
    }
}
