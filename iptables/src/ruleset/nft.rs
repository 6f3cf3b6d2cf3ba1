//! Reads nftables over netlink, all families; the rules of iptables-nft are among them.

use std::{collections::HashMap, io};

use super::{
    BaseChain, Chain, ChainKind, Counters, Expression, Hook, Rule, Ruleset, Set, Table,
    TableFamily, Tool,
    attributes::{Attributes, put_string, string},
    expression::{data, value},
    netlink::Dumper,
    set::Element,
};

/// Message types are the subsystem's number above the message's.
const GET_TABLE: u16 = message(1);
const GET_CHAIN: u16 = message(4);
const GET_RULE: u16 = message(7);
const GET_SET: u16 = message(10);
const GET_ELEMENTS: u16 = message(13);
const GET_GENERATION: u16 = message(16);
/// A ruleset that changes faster than it can be read is not waited for.
const TRIES: usize = 10;
const SET_ANONYMOUS: u32 = 1;
const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;

const fn message(number: u16) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | number
}

pub(super) fn read(ruleset: &mut Ruleset) {
    let mut last = Vec::new();
    for _ in 0..TRIES {
        match read_once() {
            Ok((tables, true)) => return ruleset.tables.extend(tables),
            Ok((tables, false)) => last = tables,
            // The dump met a change of rules.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
            Err(error) => {
                // A kernel without nftables has none of its rules.
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EPROTONOSUPPORT)
                ) {
                    ruleset
                        .unseen
                        .push(format!("the rules of nftables and iptables-nft: {error}"));
                }
                return;
            }
        }
    }
    ruleset.tables.extend(last);
    ruleset.unseen.push(
        "the rules of nftables changed at every attempt to read them; what is told may mix two states".into(),
    );
}

/// With whether all of it is of one state.
fn read_once() -> io::Result<(Vec<Table>, bool)> {
    let mut dumper = Dumper::open()?;
    let before = generation(&mut dumper)?;
    let mut tables = Vec::new();
    dumper.dump(GET_TABLE, 0, &[], |family, a| {
        tables.extend(table(family, Attributes(a)))
    })?;
    let place: HashMap<_, _> = tables
        .iter()
        .enumerate()
        .map(|(n, t)| ((t.family, t.name.clone()), n))
        .collect();
    let find = |family: u8, a: Attributes<'_>| -> Option<usize> {
        place.get(&(table_family(family)?, a.string(1)?)).copied()
    };
    dumper.dump(GET_CHAIN, 0, &[], |family, a| {
        let a = Attributes(a);
        if let (Some(n), Some(chain)) = (find(family, a), chain(a)) {
            tables[n].add_chain(chain);
        }
    })?;
    dumper.dump(GET_RULE, 0, &[], |family, a| {
        let a = Attributes(a);
        let Some(table) = find(family, a).map(|n| &mut tables[n]) else {
            return;
        };
        let Some(chain) = a.string(2).and_then(|name| table.chain(&name)) else {
            return;
        };
        let rules = &mut table.chains[chain].rules;
        rules.push(rule(a, rules.len() + 1));
    })?;
    dumper.dump(GET_SET, 0, &[], |family, a| {
        let a = Attributes(a);
        if let (Some(n), Some(set)) = (find(family, a), set(a)) {
            tables[n].sets.insert(set.name.clone(), set);
        }
    })?;
    for table in &mut tables {
        for set in table.sets.values_mut() {
            read_elements(&mut dumper, table.family, &table.name, set)?;
        }
        name_tool(table);
    }
    let is_consistent = dumper.is_consistent && generation(&mut dumper)? == before;
    Ok((tables, is_consistent))
}

fn generation(dumper: &mut Dumper) -> io::Result<Option<u32>> {
    let mut found = None;
    dumper.find(GET_GENERATION, 0, &[], |_, a| found = Attributes(a).u32(1))?;
    Ok(found)
}

fn table(family: u8, a: Attributes<'_>) -> Option<Table> {
    let mut table = Table::new(Tool::Nft, table_family(family)?, a.string(1)?);
    table.owner = a.u32(7);
    table.is_dormant = a.u32(2).unwrap_or(0) & 1 != 0;
    Some(table)
}

fn chain(a: Attributes<'_>) -> Option<Chain> {
    let hook = a.nested(4);
    let base = hook.u32(1).map(|number| BaseChain {
        hook: match number {
            _ if hook.find(3).is_some() || hook.find(4).is_some() => Hook::Other,
            0 => Hook::Prerouting,
            1 => Hook::Input,
            2 => Hook::Forward,
            3 => Hook::Output,
            4 => Hook::Postrouting,
            _ => Hook::Other,
        },
        priority: hook.u32(2).unwrap_or(0).cast_signed(),
        kind: match a.string(7).as_deref() {
            Some("nat") => ChainKind::Nat,
            Some("route") => ChainKind::Route,
            _ => ChainKind::Filter,
        },
        drops_by_policy: a.u32(5) == Some(0),
    });
    Some(Chain {
        name: a.string(3)?,
        base,
        rules: Vec::new(),
    })
}

pub(super) fn rule(a: Attributes<'_>, line: usize) -> Rule {
    let mut counters = None;
    let expressions = a
        .nested(4)
        .filter(|(kind, _)| *kind == 1)
        .map(|(_, bytes)| {
            let expression = Attributes(bytes);
            if expression.find(1) == Some(b"counter\0") {
                let data = expression.nested(2);
                counters = Some(Counters {
                    bytes: data.u64(1).unwrap_or(0),
                    packets: data.u64(2).unwrap_or(0),
                });
            }
            Expression::decode(expression)
        });
    let expressions = expressions.collect();
    Rule {
        handle: a.u64(3),
        line,
        expressions,
        counters,
        comment: a.find(7).and_then(comment),
    }
}

/// Among what the `nft` program keeps with a rule for itself: pieces of a kind, a length and a value.
fn comment(mut data: &[u8]) -> Option<String> {
    const COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = data {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            let text = string(value);
            return Some(text.chars().filter(|c| !c.is_control()).collect());
        }
        data = next;
    }
    None
}

fn set(a: Attributes<'_>) -> Option<Set> {
    let flags = a.u32(3).unwrap_or(0);
    let length = a.u32(5)? as usize;
    let mut fields: Vec<usize> = a
        .nested(9)
        .nested(2)
        .filter_map(|(_, field)| Attributes(field).u32(1))
        .map(|n| n as usize)
        .filter(|n| (1..=64).contains(n))
        .collect();
    if fields.is_empty() {
        fields.push(length.min(64));
    }
    Some(Set {
        name: a.string(2)?,
        is_anonymous: flags & SET_ANONYMOUS != 0,
        is_interval: flags & SET_INTERVAL != 0,
        is_map: flags & SET_MAP != 0,
        key_type: a.u32(4).unwrap_or(0),
        fields,
        ..Set::default()
    })
}

fn read_elements(
    dumper: &mut Dumper,
    family: TableFamily,
    table: &str,
    set: &mut Set,
) -> io::Result<()> {
    let mut request = Vec::new();
    put_string(&mut request, 1, table);
    put_string(&mut request, 2, &set.name);
    let elements = &mut set.elements;
    let dumped = dumper.dump(GET_ELEMENTS, family_number(family), &request, |_, a| {
        let list = Attributes(a).nested(3);
        elements.extend(list.filter_map(|(_, bytes)| element(Attributes(bytes))));
    });
    match dumped {
        // It went meanwhile; the generation tells, and all is read again.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => other?,
    }
    set.index();
    Ok(())
}

/// A set and its elements, from one stretch of bytes.
pub(super) fn digest_set(bytes: &[u8]) -> Option<Set> {
    let mut found = set(Attributes(bytes))?;
    let list = Attributes(bytes).nested(3);
    found.elements = list
        .filter_map(|(_, bytes)| element(Attributes(bytes)))
        .collect();
    found.index();
    let key = vec![0; found.fields.iter().sum()];
    let _ = (
        found.find(&key).is_some(),
        found.candidates(&key, &[true]).count(),
    );
    Some(found)
}

fn element(a: Attributes<'_>) -> Option<Element> {
    let flags = a.u32(3).unwrap_or(0);
    let is_catch_all = flags & 2 != 0;
    let conditions = a.nested(11).map(|(_, bytes)| bytes).chain(a.find(7));
    let condition = conditions
        .filter_map(|bytes| Attributes(bytes).string(1))
        .find(|name| !matches!(name.as_str(), "counter" | "last"));
    Some(Element {
        key: match value(a.nested(1)) {
            None if is_catch_all => Vec::new(),
            key => key?,
        },
        key_end: value(a.nested(10)),
        data: data(a.nested(2)),
        is_end: flags & 1 != 0,
        is_catch_all,
        condition,
    })
}

/// iptables-nft lists and edits a table if it has the names that iptables always had, with the base
/// chains at their places, and holds nothing that iptables cannot say. Only it makes compat expressions
/// (nft cannot), and it counts in every rule. A table without either is nft's.
fn name_tool(table: &mut Table) {
    let name = table.name.as_str();
    let rules = || table.chains.iter().flat_map(|chain| &chain.rules);
    let is_compat = |e: &Expression| matches!(e, Expression::XtMatch(_) | Expression::XtTarget(_));
    let is_made_by_it = rules().flat_map(|rule| &rule.expressions).any(is_compat)
        || rules().all(|rule| rule.counters.is_some());
    let is_theirs = is_made_by_it
        && matches!(table.family, TableFamily::Ip | TableFamily::Ip6)
        && matches!(name, "nat" | "filter" | "mangle" | "raw" | "security")
        && table.chains.iter().all(|chain| match &chain.base {
            None => true,
            Some(base) => {
                let usual = super::legacy::base(name, base.hook, base.drops_by_policy);
                chain.name == base.hook.to_string().to_uppercase() && *base == usual
            }
        })
        && !table.sets.values().any(|set| !set.is_anonymous);
    if is_theirs && !table.chains.is_empty() {
        table.tool = Tool::IptablesNft;
    }
}

fn table_family(number: u8) -> Option<TableFamily> {
    Some(match number {
        1 => TableFamily::Inet,
        2 => TableFamily::Ip,
        3 => TableFamily::Arp,
        5 => TableFamily::Netdev,
        7 => TableFamily::Bridge,
        10 => TableFamily::Ip6,
        _ => return None,
    })
}

fn family_number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Inet => 1,
        TableFamily::Ip => 2,
        TableFamily::Arp => 3,
        TableFamily::Netdev => 5,
        TableFamily::Bridge => 7,
        TableFamily::Ip6 => 10,
    }
}
