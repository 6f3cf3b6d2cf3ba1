//! Reads iptables-legacy by the socket options that its programs use, so that none is needed.

use std::{collections::BTreeMap, fs, io};

use super::{
    BaseChain, Chain, ChainKind, Counters, Expression, Hook, Rule, Ruleset, Table, TableFamily,
    Tool, Verdict,
    attributes::string,
    xt::{IpMatch, XtMatch, XtTarget, u16_at, u32_at},
};
use crate::{plan::Family, sys};

/// Another program may replace a table between the question for its size and that for its rules.
const TRIES: usize = 10;
const HOOKS: [Hook; 5] = [
    Hook::Prerouting,
    Hook::Input,
    Hook::Forward,
    Hook::Output,
    Hook::Postrouting,
];
/// Of `struct ipt_getinfo`: the name, then the hooks that are valid, their entries, underflows,
/// the number of rules, and their size.
const NAME: usize = 32;
pub(super) const INFO: usize = NAME + 4 + 20 + 20 + 4 + 4;
/// `struct xt_entry_match`: size, name, revision.
const EXTENSION_HEADER: usize = 32;

/// The names of the tables that there are: asking for one that does not exist would make it.
const LISTS: [(TableFamily, &str); 2] = [
    (TableFamily::Ip, "/proc/thread-self/net/ip_tables_names"),
    (TableFamily::Ip6, "/proc/thread-self/net/ip6_tables_names"),
];

pub(super) fn find(family: Family, name: &str) -> io::Result<Option<Table>> {
    let (family, list) = match family {
        Family::V4 => LISTS[0],
        Family::V6 => LISTS[1],
    };
    if fs::read_to_string(list)?.lines().any(|of| of == name) {
        read_table(family, name).map(Some)
    } else {
        Ok(None)
    }
}

pub(super) fn read(ruleset: &mut Ruleset) {
    for (family, list) in LISTS {
        let names = match fs::read_to_string(list) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                ruleset
                    .unseen
                    .push(format!("the rules of iptables-legacy ({list}): {error}"));
                continue;
            }
        };
        for name in names.lines() {
            match read_table(family, name) {
                Ok(table) => ruleset.tables.push(table),
                Err(error) => ruleset.unseen.push(format!(
                    "table {name} of iptables-legacy ({family}): {error}"
                )),
            }
        }
    }
}

fn read_table(family: TableFamily, name: &str) -> io::Result<Table> {
    let is_v6 = family == TableFamily::Ip6;
    let mut last = io::Error::other("it changed at every attempt");
    for _ in 0..TRIES {
        let mut info = vec![0; INFO];
        info[..name.len().min(NAME - 1)]
            .copy_from_slice(&name.as_bytes()[..name.len().min(NAME - 1)]);
        sys::xtables_option(is_v6, sys::XTABLES_GET_INFO, &mut info)?;
        let size = u32_at(&info, INFO - 4).unwrap_or(0) as usize;
        let mut entries = vec![0; NAME + 8 + size];
        entries[..NAME].copy_from_slice(&info[..NAME]);
        entries[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        match sys::xtables_option(is_v6, sys::XTABLES_GET_ENTRIES, &mut entries) {
            Ok(()) => {
                let malformed =
                    || io::Error::new(io::ErrorKind::InvalidData, "its rules are malformed");
                return decode(family, name, &info, &entries[NAME + 8..]).ok_or_else(malformed);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What the blob says of an entry, before jumps have names.
struct Entry<'a> {
    ip: IpMatch,
    is_goto: bool,
    counters: Counters,
    matches: &'a [u8],
    target: &'a [u8],
    next: usize,
}

pub(super) fn decode(family: TableFamily, name: &str, info: &[u8], blob: &[u8]) -> Option<Table> {
    let is_v6 = family == TableFamily::Ip6;
    let mut entries = BTreeMap::new();
    let mut at = 0;
    while at < blob.len() {
        let entry = entry(blob.get(at..)?, is_v6)?;
        let length = entry.next;
        entries.insert(at, entry);
        at += length;
    }
    // Chains begin where a hook enters, or after an entry whose target is ERROR and names them.
    let mut starts = BTreeMap::new();
    let valid = u32_at(info, NAME)?;
    for (n, hook) in HOOKS.into_iter().enumerate() {
        if valid & (1 << n) != 0 {
            let start = u32_at(info, NAME + 4 + 4 * n)? as usize;
            starts.insert(start, (hook.to_string().to_uppercase(), Some(hook)));
        }
    }
    for (at, entry) in &entries {
        if extension_name(entry.target)? == "ERROR" {
            let chain = string(entry.target.get(EXTENSION_HEADER..)?);
            if chain != "ERROR" {
                starts.insert(at + entry.next, (chain, None));
            }
        }
    }
    let mut table = Table::new(Tool::IptablesLegacy, family, name.to_owned());
    for (start, (chain, hook)) in &starts {
        let mut rules = Vec::new();
        let mut policy = None;
        for (at, entry) in entries.range(start..) {
            // The next chain has begun: its name, or where its hook enters.
            if extension_name(entry.target)? == "ERROR" || (at != start && starts.contains_key(at))
            {
                break;
            }
            let rule = rule(entry, *at, &starts, rules.len() + 1)?;
            policy = Some(rule.expressions.last().cloned());
            rules.push(rule);
        }
        // The last is no rule but the policy, or the return from a user's chain.
        rules.pop();
        let drops = matches!(policy, Some(Some(Expression::Verdict(Verdict::Drop))));
        table.add_chain(Chain {
            name: chain.clone(),
            base: hook.map(|hook| base(name, hook, drops)),
            rules,
        });
    }
    Some(table)
}

/// What iptables makes of a hook in one of its tables.
pub(super) fn base(table: &str, hook: Hook, drops_by_policy: bool) -> BaseChain {
    let is_source = matches!(hook, Hook::Postrouting | Hook::Input);
    let (priority, kind) = match table {
        "raw" => (-300, ChainKind::Filter),
        "mangle" if hook == Hook::Output => (-150, ChainKind::Route),
        "mangle" => (-150, ChainKind::Filter),
        "nat" => (if is_source { 100 } else { -100 }, ChainKind::Nat),
        "security" => (50, ChainKind::Filter),
        _ => (0, ChainKind::Filter),
    };
    BaseChain {
        hook,
        priority,
        kind,
        drops_by_policy,
    }
}

/// `struct ipt_entry` or `struct ip6t_entry`.
fn entry(bytes: &[u8], is_v6: bool) -> Option<Entry<'_>> {
    let (offsets, counters, header) = if is_v6 {
        (140, 152, 168)
    } else {
        (88, 96, 112)
    };
    let target = usize::from(u16_at(bytes, offsets)?);
    let next = usize::from(u16_at(bytes, offsets + 2)?);
    let flags = *bytes.get(if is_v6 { 131 } else { 82 })?;
    let number = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some(Entry {
        ip: IpMatch::decode(bytes, is_v6)?,
        is_goto: flags & if is_v6 { 4 } else { 2 } != 0,
        counters: Counters {
            packets: number(counters)?,
            bytes: number(counters + 8)?,
        },
        matches: bytes.get(header..target)?,
        target: bytes.get(target..next)?,
        next,
    })
}

fn rule(
    entry: &Entry<'_>,
    at: usize,
    starts: &BTreeMap<usize, (String, Option<Hook>)>,
    line: usize,
) -> Option<Rule> {
    let mut expressions = vec![Expression::Ip(entry.ip.clone())];
    let mut rest = entry.matches;
    while !rest.is_empty() {
        let size = usize::from(u16_at(rest, 0)?);
        let data = rest.get(EXTENSION_HEADER..size)?;
        let found = XtMatch::decode(&extension_name(rest)?, rest[EXTENSION_HEADER - 1], data);
        expressions.push(Expression::XtMatch(found));
        rest = &rest[size..];
    }
    let name = extension_name(entry.target)?;
    let data = entry.target.get(EXTENSION_HEADER..)?;
    if name.is_empty() {
        expressions.extend(
            match u32_at(data, 0)?.cast_signed() {
                -1 => Some(Verdict::Drop),
                -2 => Some(Verdict::Accept),
                -4 => Some(Verdict::Queue),
                -5 => Some(Verdict::Return),
                // A rule without a target leads to the next one.
                offset
                    if usize::try_from(offset) == Ok(at + entry.next)
                        && !starts.contains_key(&(at + entry.next)) =>
                {
                    None
                }
                offset => {
                    let (chain, _) = starts.get(&usize::try_from(offset).ok()?)?;
                    let chain = chain.clone();
                    Some(if entry.is_goto {
                        Verdict::Goto(chain)
                    } else {
                        Verdict::Jump(chain)
                    })
                }
            }
            .map(Expression::Verdict),
        );
    } else {
        let revision = *entry.target.get(EXTENSION_HEADER - 1)?;
        expressions.push(Expression::XtTarget(XtTarget::decode(
            &name, revision, data,
        )));
    }
    Some(Rule {
        handle: None,
        line,
        expressions,
        counters: Some(entry.counters),
        comment: None,
    })
}

fn extension_name(bytes: &[u8]) -> Option<String> {
    Some(string(bytes.get(2..EXTENSION_HEADER - 1)?))
}
