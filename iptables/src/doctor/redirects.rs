//! Every rule on the way out that turns connections to this host, and where to.

use std::{collections::HashSet, net::IpAddr};

use crate::ruleset::{
    Data, Expression, Hook, NatKind, RuleAt, Ruleset, Set, Table, Verdict, XtTarget,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Redirect {
    pub(super) at: RuleAt,
    /// `None`: this host, as by REDIRECT.
    pub(super) address: Option<IpAddr>,
    /// `None`: the port that was dialled.
    pub(super) port: Option<u16>,
}

/// Those in chains that outbound packets can come to; a rule whose target comes from a map once for
/// each target.
pub(super) fn to_this_host(ruleset: &Ruleset) -> Vec<Redirect> {
    let mut found = Vec::new();
    for (n, table) in ruleset.tables.iter().enumerate() {
        for chain in reachable(table) {
            for (rule, of) in table.chains[chain].rules.iter().enumerate() {
                let at = RuleAt {
                    table: n,
                    chain,
                    rule,
                };
                let goals = goals(table, &of.expressions).into_iter();
                let local = goals.filter(|(ip, _)| ip.is_none_or(|ip| ip.is_loopback()));
                found.extend(local.map(|(address, port)| Redirect { at, address, port }));
            }
        }
    }
    found
}

fn reachable(table: &Table) -> Vec<usize> {
    let is_out = |chain: &usize| {
        let base = table.chains[*chain].base.as_ref();
        base.is_some_and(|base| base.hook == Hook::Output)
    };
    let mut open: Vec<usize> = (0..table.chains.len()).filter(is_out).collect();
    let mut seen: HashSet<usize> = open.iter().copied().collect();
    let mut all = Vec::new();
    while let Some(chain) = open.pop() {
        all.push(chain);
        let expressions = table.chains[chain]
            .rules
            .iter()
            .flat_map(|r| &r.expressions);
        for verdict in expressions.flat_map(|e| verdicts(table, e)) {
            if let Verdict::Jump(name) | Verdict::Goto(name) = verdict
                && let Some(next) = table.chain(name).filter(|next| seen.insert(*next))
            {
                open.push(next);
            }
        }
    }
    all.sort_unstable();
    all
}

fn verdicts<'t>(table: &'t Table, expression: &'t Expression) -> Vec<&'t Verdict> {
    match expression {
        Expression::Verdict(verdict) => vec![verdict],
        Expression::Lookup {
            set, to: Some(0), ..
        } => data(table.sets.get(set))
            .filter_map(|data| match data {
                Data::Verdict(verdict) => Some(verdict),
                Data::Value(_) => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn data(set: Option<&Set>) -> impl Iterator<Item = &Data> {
    set.into_iter()
        .flat_map(|set| &set.elements)
        .filter_map(|element| element.data.as_ref())
}

type Goal = (Option<IpAddr>, Option<u16>);

/// The addresses and ports that a rule turns connections to.
fn goals(table: &Table, expressions: &[Expression]) -> HashSet<Goal> {
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(*bytes.first_chunk()?));
    let of_xt = |nat: &crate::ruleset::Nat| (nat.address.map(|a| a.0), nat.port.map(|p| p.0));
    for expression in expressions {
        match expression {
            Expression::XtTarget(XtTarget::Redirect(nat)) => return HashSet::from([of_xt(nat)]),
            Expression::XtTarget(XtTarget::Nat(NatKind::Destination, nat)) => {
                // Without an address it only changes the port.
                return nat.address.map(|_| of_xt(nat)).into_iter().collect();
            }
            Expression::Redirect { port: None } => return HashSet::from([(None, None)]),
            Expression::Redirect {
                port: Some((register, _)),
            } => {
                let values = values(table, expressions, *register).into_iter();
                return values
                    .filter_map(|v| Some((None, Some(port(&v)?))))
                    .collect();
            }
            Expression::Nat {
                kind: NatKind::Destination,
                family,
                address: Some((address, _)),
                port: to,
            } => {
                let width = if *family == 10 { 16 } else { 4 };
                let ip = |bytes: &[u8]| match width {
                    4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
                    _ => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
                };
                let mut found = HashSet::new();
                for value in values(table, expressions, *address) {
                    let Some(ip) = ip(&value) else { continue };
                    match to {
                        None => drop(found.insert((Some(ip), None))),
                        // A map to address and port fills both registers at once.
                        Some((register, _)) if value.len() > width => {
                            let at = register.saturating_sub(*address);
                            let to = value.get(at..).and_then(port);
                            found.insert((Some(ip), to));
                        }
                        Some((register, _)) => {
                            for to in values(table, expressions, *register) {
                                found.insert((Some(ip), port(&to)));
                            }
                        }
                    }
                }
                return found;
            }
            _ => {}
        }
    }
    HashSet::new()
}

/// All that a register may hold when the rule comes to its end.
fn values(table: &Table, expressions: &[Expression], register: usize) -> HashSet<Vec<u8>> {
    let found = expressions.iter().rev().find_map(|e| match e {
        Expression::Immediate { to, value } if *to == register => {
            Some(HashSet::from([value.clone()]))
        }
        Expression::Lookup {
            set, to: Some(to), ..
        } if *to == register => {
            let values = data(table.sets.get(set)).filter_map(|data| match data {
                Data::Value(value) => Some(value.clone()),
                Data::Verdict(_) => None,
            });
            Some(values.collect())
        }
        _ => None,
    });
    found.unwrap_or_default()
}
