//! A planned table as netlink messages. Numbers are those of the kernel's
//! `include/uapi/linux/netfilter/nf_tables.h`.

mod expressions;

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_NONREC,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook as HookAttribute, InetHookNumber,
    ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetDescription,
    SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage,
    TableAttribute, TableFlags, TableMessage,
};

pub(super) use self::expressions::{ExpressionList, expressions};
use super::socket::Step;
use crate::plan::{
    Chain, Elements, Family, Hook, HookKind, Intervals, LEASES_SIZE, Place, Rule, Set, Table,
    Timeout, sources_size,
};

/// Elements in one message: a list attribute's length has 16 bits, and an IPv6 element takes 36
/// bytes. Even, to keep the two ends of an interval together.
const ELEMENTS_A_MESSAGE: usize = 1500;

/// The table and its sets, then the elements: each inner list is one transaction.
pub(super) fn narrow(table: &Table) -> Vec<Vec<Step>> {
    let mut frame = vec![new_table(table)];
    frame.extend(
        table
            .timeout
            .iter()
            .map(|timeout| new_timeout(table, timeout)),
    );
    let mut fill = Vec::new();
    for (set, id) in table.sets.iter().zip(1..) {
        frame.push(new_set(table, set, id));
        for message in messages(elements(&set.elements)) {
            fill.push(vec![new_elements(table, set, message)]);
        }
    }
    let mut batches = vec![frame];
    batches.append(&mut fill);
    batches
}

pub(super) fn widen(table: &Table) -> Vec<Step> {
    let chains = table.chains.iter().map(|chain| new_chain(table, chain));
    let rules = table
        .chains
        .iter()
        .flat_map(|chain| chain.rules.iter().map(|rule| new_rule(table, chain, rule)));
    chains.chain(rules).collect()
}

pub(super) fn delete(table: &str) -> Step {
    Step {
        doing: format!("deleting table {table}"),
        message: NfTablesMessage::DeleteTable(TableMessage {
            attributes: vec![TableAttribute::Name(table.into())],
        }),
        flags: 0,
    }
}

/// A chain and its table, unless a rule or another chain is in them.
pub(super) fn delete_empty(table: &str, chain: &str) -> Vec<Step> {
    let chain = NfTablesMessage::DeleteChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.into()),
            ChainAttribute::Name(chain.into()),
        ],
    });
    let table = delete(table);
    [
        ("deleting an empty chain".into(), chain),
        (table.doing, table.message),
    ]
    .map(|(doing, message)| Step {
        doing,
        message,
        flags: NLM_F_NONREC,
    })
    .into()
}

fn new_table(table: &Table) -> Step {
    let flags = if table.outlives_owner {
        TableFlags::Owner | TableFlags::Persisent
    } else {
        TableFlags::Owner
    };
    Step {
        doing: format!("creating table {}", table.name),
        message: NfTablesMessage::NewTable(TableMessage {
            attributes: vec![
                TableAttribute::Name(table.name.clone()),
                TableAttribute::Flags(flags),
                TableAttribute::UserData(comment(&table.comment)),
            ],
        }),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const OBJECT_CT_TIMEOUT: u32 = 7;
const TIMEOUT_L4PROTO: u16 = 2;
const TIMEOUT_POLICY: u16 = 3;
/// Of `enum ctattr_timeout_tcp`.
const TIMEOUT_SYN_SENT: u16 = 1;
const TIMEOUT_SYN_RECV: u16 = 2;
const TIMEOUT_CLOSE: u16 = 8;

pub(super) fn timeout_names(table: &Table, timeout: &Timeout) -> Vec<DefaultNla> {
    vec![
        DefaultNla::new(OBJECT_TABLE, text(&table.name)),
        DefaultNla::new(OBJECT_NAME, text(timeout.name)),
        DefaultNla::new(OBJECT_TYPE, OBJECT_CT_TIMEOUT.to_be_bytes().into()),
    ]
}

/// What the timeout is, as the kernel also hands it back.
pub(super) fn timeout_policy(timeout: &Timeout) -> Vec<DefaultNla> {
    [TIMEOUT_SYN_SENT, TIMEOUT_SYN_RECV, TIMEOUT_CLOSE]
        .map(|state| DefaultNla::new(state, timeout.seconds.to_be_bytes().into()))
        .into()
}

fn new_timeout(table: &Table, timeout: &Timeout) -> Step {
    let data = [
        DefaultNla::new(TIMEOUT_L4PROTO, vec![libc::IPPROTO_TCP as u8]),
        nested(TIMEOUT_POLICY, &timeout_policy(timeout)),
    ];
    let mut attributes = timeout_names(table, timeout);
    attributes.push(nested(OBJECT_DATA, &data));
    Step {
        doing: format!("adding timeout {}", timeout.name),
        message: NfTablesMessage::NewObject(attributes),
        flags: NLM_F_CREATE,
    }
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// As libnftnl writes it: type 0 (comment), length, text with its NUL.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("a comment of ours is short");
    [&[0, length], text.as_bytes(), &[0]].concat()
}

fn new_set(table: &Table, set: &Set, id: u32) -> Step {
    // The type numbers are nft's own; the kernel only hands them back for listing.
    let (key_type, key_length, flags, order) = match &set.elements {
        Elements::V4(_) => (7, 4, SetFlags::Interval, BIG_ENDIAN),
        Elements::V6(_) => (8, 16, SetFlags::Interval, BIG_ENDIAN),
        Elements::Ports(_) => (13, 2, SetFlags::Interval, BIG_ENDIAN),
        Elements::Uids(_) => (24, 4, SetFlags::empty(), HOST_ENDIAN),
        Elements::Gids(_) => (25, 4, SetFlags::empty(), HOST_ENDIAN),
        Elements::Leases => (2, 1, SetFlags::Eval | SetFlags::Timeout, HOST_ENDIAN),
        // A concatenation's types stand six bits apart, its keys on four bytes each.
        Elements::Sources(family) => {
            let (address, length) = match family {
                Family::V4 => (7, 4),
                Family::V6 => (8, 16),
            };
            (
                (address << 6) | 13,
                length + 4,
                SetFlags::Eval | SetFlags::Timeout,
                NO_ENDIAN,
            )
        }
    };
    let mut attributes = vec![
        SetAttribute::Table(table.name.clone()),
        SetAttribute::Name(set.name.into()),
        SetAttribute::Flags(flags),
        SetAttribute::KeyType(key_type),
        SetAttribute::KeyLen(key_length),
        SetAttribute::Id(id),
        SetAttribute::UserData(key_order(order)),
    ];
    let size = match &set.elements {
        Elements::Leases => Some(LEASES_SIZE),
        Elements::Sources(family) => Some(sources_size(*family)),
        _ => None,
    };
    attributes.extend(size.map(|size| SetAttribute::Description(vec![SetDescription::Size(size)])));
    Step {
        doing: format!("adding set {}", set.name),
        message: NfTablesMessage::NewSet(SetMessage { attributes }),
        flags: NLM_F_CREATE,
    }
}

const NO_ENDIAN: u32 = 0;
const HOST_ENDIAN: u32 = 1;
const BIG_ENDIAN: u32 = 2;

/// As libnftnl writes it: type 0 (the key's byte order), length, number. Without it `nft list`
/// shows users and groups byte-swapped.
fn key_order(order: u32) -> Vec<u8> {
    [&[0, 4], &order.to_ne_bytes()[..]].concat()
}

pub(super) type Element = ListAttribute<SetElementAttribute>;

fn new_elements(table: &Table, set: &Set, elements: Vec<Element>) -> Step {
    Step {
        doing: format!("filling set {}", set.name),
        message: NfTablesMessage::NewSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.name.clone()),
                SetElementList::Set(set.name.into()),
                SetElementList::Elements(elements),
            ],
        }),
        flags: NLM_F_CREATE,
    }
}

/// The key of `family` in a set of leases.
pub(super) fn lease_key(family: Family) -> Vec<u8> {
    let number = match family {
        Family::V4 => libc::NFPROTO_IPV4,
        Family::V6 => libc::NFPROTO_IPV6,
    };
    vec![number as u8]
}

pub(super) fn elements(elements: &Elements) -> Vec<Element> {
    match elements {
        Elements::V4(intervals) | Elements::V6(intervals) | Elements::Ports(intervals) => {
            interval_elements(intervals)
        }
        // Users and groups are numbers of the host's own byte order in the kernel.
        Elements::Uids(ids) | Elements::Gids(ids) => ids
            .iter()
            .map(|id| element(id.to_ne_bytes().to_vec(), SetElementFlags::empty()))
            .collect(),
        Elements::Leases | Elements::Sources(_) => Vec::new(),
    }
}

/// An interval is its first key and, flagged as an end, the key after its last. As nft does it, an
/// end at zero stands before a first interval that begins later.
fn interval_elements(intervals: &Intervals) -> Vec<Element> {
    let width = intervals.bits() as usize / 8;
    let key = |number: u128| number.to_be_bytes()[16 - width..].to_vec();
    let mut found = Vec::new();
    if intervals.iter().next().is_some_and(|(first, _)| first != 0) {
        found.push(element(key(0), SetElementFlags::IntervalEnd));
    }
    for (first, last) in intervals.iter() {
        found.push(element(key(first), SetElementFlags::empty()));
        if last != intervals.max() {
            found.push(element(key(last + 1), SetElementFlags::IntervalEnd));
        }
    }
    found
}

/// An interval that was loaded without its end would be open for a moment, and overlap the
/// next one in the kernel's eyes: only the end at zero, which may come first, stands alone.
fn messages(mut elements: Vec<Element>) -> Vec<Vec<Element>> {
    let alone = usize::from(elements.first().is_some_and(is_end));
    let mut messages = Vec::new();
    while elements.len() > ELEMENTS_A_MESSAGE + alone {
        let end = ELEMENTS_A_MESSAGE + if messages.is_empty() { alone } else { 0 };
        let rest = elements.split_off(end);
        messages.push(std::mem::replace(&mut elements, rest));
    }
    if !elements.is_empty() {
        messages.push(elements);
    }
    messages
}

fn is_end(element: &Element) -> bool {
    matches!(element, ListAttribute::Element(attributes)
        if attributes.contains(&SetElementAttribute::Flags(SetElementFlags::IntervalEnd)))
}

fn element(key: Vec<u8>, flags: SetElementFlags) -> Element {
    let mut attributes = Vec::with_capacity(2);
    if !flags.is_empty() {
        attributes.push(SetElementAttribute::Flags(flags));
    }
    attributes.push(SetElementAttribute::Key(DataAttribute::Value(key)));
    ListAttribute::Element(attributes)
}

fn new_chain(table: &Table, chain: &Chain) -> Step {
    let mut attributes = vec![
        ChainAttribute::Table(table.name.clone()),
        ChainAttribute::Name(chain.name.into()),
    ];
    attributes.extend(chain.hook.into_iter().flat_map(hook));
    Step {
        doing: format!("adding chain {}", chain.name),
        message: NfTablesMessage::NewChain(ChainMessage { attributes }),
        flags: NLM_F_CREATE,
    }
}

pub(super) fn hook(hook: Hook) -> [ChainAttribute; 3] {
    let kind = match hook.kind {
        HookKind::Nat => "nat",
        HookKind::Filter => "filter",
    };
    let place = match hook.place {
        Place::Output => InetHookNumber::LocalOut,
        Place::Postrouting => InetHookNumber::PostRouting,
    };
    [
        ChainAttribute::Type(kind.into()),
        ChainAttribute::Policy(NF_ACCEPT),
        ChainAttribute::Hook(vec![
            HookAttribute::Number(place.into()),
            HookAttribute::Priority(hook.priority.cast_unsigned()),
        ]),
    ]
}

fn new_rule(table: &Table, chain: &Chain, rule: &Rule) -> Step {
    Step {
        doing: format!("adding rule `{rule}`"),
        message: NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(table.name.clone()),
                RuleAttribute::Chain(chain.name.into()),
                RuleAttribute::Expressions(expressions(rule)),
            ],
        }),
        flags: NLM_F_CREATE | NLM_F_APPEND,
    }
}

const NF_ACCEPT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_splits_an_interval_or_outgrows_its_length_field() {
        for first in [0, 1] {
            let many = (first..9000u128).map(|n| (n * 4, n * 4 + 1));
            let elements = interval_elements(&Intervals::new(128, many));
            let count = elements.len();
            let messages = messages(elements);
            assert_eq!(messages.iter().map(Vec::len).sum::<usize>(), count);
            for (index, message) in messages.iter().enumerate() {
                assert!(message.as_slice().buffer_len() < usize::from(u16::MAX));
                assert!(message.last().is_some_and(is_end), "an interval is split");
                assert!(index == 0 || !is_end(&message[0]), "an interval is split");
            }
        }
    }
}
