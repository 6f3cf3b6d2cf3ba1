//! What the kernel really holds: the tables there are, and whether one is as planned.

use netlink_packet_core::{DefaultNla, Emitable as _, Nla};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, ExpressionAttribute, Expressions, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, SetElementAttribute, SetElementList, SetElementMessage,
    TableAttribute, TableFlags, TableMessage,
};

use super::{NetlinkSocket, NftError, encode};
use crate::plan::{Chain, Family, LEASES, Rule, Set, Table, Timeout};

/// A table of family `inet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    pub name: String,
    /// The netlink port of the socket that owns it; `None`: nobody owns it.
    pub owner: Option<u32>,
}

/// The `inet` tables that there are.
///
/// # Errors
/// When the kernel refuses, for lack of privilege above all.
pub fn tables(socket: &mut NetlinkSocket) -> Result<Vec<TableInfo>, NftError> {
    let everything = NfTablesMessage::GetTable(TableMessage {
        attributes: Vec::new(),
    });
    let found = socket.dump("listing the tables", &everything)?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            NfTablesMessage::NewTable(table) => Some(table_info(table)),
            _ => None,
        })
        .collect())
}

fn table_info(table: TableMessage) -> TableInfo {
    let mut info = TableInfo {
        name: String::new(),
        owner: None,
    };
    let mut owned = false;
    for attribute in table.attributes {
        match attribute {
            TableAttribute::Name(name) => info.name = name,
            TableAttribute::Flags(flags) => owned = flags.contains(TableFlags::Owner),
            TableAttribute::Owner(port) => info.owner = Some(port),
            _ => {}
        }
    }
    info.owner = info.owner.filter(|_| owned);
    info
}

/// Compares what the kernel holds with `table`; `Some` names the first difference.
///
/// # Errors
/// When the kernel could not be asked.
pub fn verify(socket: &mut NetlinkSocket, table: &Table) -> Result<Option<String>, NftError> {
    if let Some(timeout) = &table.timeout
        && !has_timeout(socket, table, timeout)?
    {
        return Ok(Some(format!(
            "timeout {} is missing or has other times",
            timeout.name
        )));
    }
    for set in &table.sets {
        if !has_elements(socket, table, set)? {
            return Ok(Some(format!("set {} has other elements", set.name)));
        }
    }
    for chain in &table.chains {
        if !has_chain(socket, table, chain)? {
            return Ok(Some(format!(
                "chain {} is missing or hooked elsewhere",
                chain.name
            )));
        }
    }
    first_other_rule(socket, table)
}

/// Whether the lease of every one of `families` runs in `table` at this moment.
///
/// # Errors
/// When the kernel could not be asked.
pub fn is_leased(
    socket: &mut NetlinkSocket,
    table: &Table,
    families: &[Family],
) -> Result<bool, NftError> {
    // The kernel lists no element whose time is up.
    let held = held_elements(socket, table, LEASES)?.unwrap_or_default();
    let runs = |&family: &Family| {
        held.iter()
            .any(|(key, _)| *key == encode::lease_key(family))
    };
    Ok(families.iter().all(runs))
}

fn has_timeout(
    socket: &mut NetlinkSocket,
    table: &Table,
    timeout: &Timeout,
) -> Result<bool, NftError> {
    let request = NfTablesMessage::GetObject(encode::timeout_names(table, timeout));
    let doing = format!("reading back timeout {}", timeout.name);
    let Some(NfTablesMessage::NewObject(held)) = socket.find(&doing, &request)? else {
        return Ok(false);
    };
    // Somewhere within, since the kernel tells every state's time.
    let bytes: Vec<u8> = held.iter().flat_map(bytes_of).collect();
    let is_held = |policy: &DefaultNla| {
        let wanted = bytes_of(policy);
        bytes.windows(wanted.len()).any(|part| part == wanted)
    };
    Ok(encode::timeout_policy(timeout).iter().all(is_held))
}

fn bytes_of(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

fn has_elements(socket: &mut NetlinkSocket, table: &Table, set: &Set) -> Result<bool, NftError> {
    let Some(mut held) = held_elements(socket, table, set.name)? else {
        return Ok(false);
    };
    if set.elements.are_dynamic() {
        return Ok(true);
    }
    let mut planned: Vec<_> = encode::elements(&set.elements)
        .into_iter()
        .filter_map(key)
        .collect();
    held.sort_unstable();
    planned.sort_unstable();
    Ok(held == planned)
}

/// `None`: there is no such set.
fn held_elements(
    socket: &mut NetlinkSocket,
    table: &Table,
    set: &str,
) -> Result<Option<Vec<Key>>, NftError> {
    let request = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.name.clone()),
            SetElementList::Set(set.into()),
        ],
    });
    let found = match socket.dump(&format!("reading back set {set}"), &request) {
        Err(error) if is_missing(&error) => return Ok(None),
        found => found?,
    };
    let elements = found
        .into_iter()
        .filter_map(|message| match message {
            NfTablesMessage::NewSetElement(message) => Some(message.attributes),
            _ => None,
        })
        .flatten()
        .filter_map(|attribute| match attribute {
            SetElementList::Elements(elements) => Some(elements),
            _ => None,
        })
        .flatten()
        .filter_map(key)
        .collect();
    Ok(Some(elements))
}

/// An element's key and flags, which are all that ours have besides the time of a lease.
type Key = (Vec<u8>, u32);

fn key(element: encode::Element) -> Option<Key> {
    let ListAttribute::Element(attributes) = element else {
        return None;
    };
    let mut bytes = Vec::new();
    let mut flag_bits = 0;
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(data) => {
                bytes = vec![0; data.value_len()];
                data.emit_value(&mut bytes);
            }
            SetElementAttribute::Flags(flags) => flag_bits = flags.bits(),
            _ => {}
        }
    }
    Some((bytes, flag_bits))
}

fn has_chain(socket: &mut NetlinkSocket, table: &Table, chain: &Chain) -> Result<bool, NftError> {
    let request = NfTablesMessage::GetChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.name.clone()),
            ChainAttribute::Name(chain.name.into()),
        ],
    });
    let doing = format!("reading back chain {}", chain.name);
    let Some(NfTablesMessage::NewChain(held)) = socket.find(&doing, &request)? else {
        return Ok(false);
    };
    Ok(chain
        .hook
        .into_iter()
        .flat_map(encode::hook)
        .all(|wanted| held.attributes.contains(&wanted)))
}

fn first_other_rule(socket: &mut NetlinkSocket, table: &Table) -> Result<Option<String>, NftError> {
    let request = NfTablesMessage::GetRule(RuleMessage {
        attributes: vec![RuleAttribute::Table(table.name.clone())],
    });
    let held: Vec<_> = socket
        .dump("reading back the rules", &request)?
        .into_iter()
        .filter_map(|message| match message {
            NfTablesMessage::NewRule(rule) => place_and_expressions(rule),
            _ => None,
        })
        // Older kernels ignore the table that the request names.
        .filter(|(of_table, ..)| *of_table == table.name)
        .collect();
    for chain in &table.chains {
        let mut in_chain = held
            .iter()
            .filter(|(_, of_chain, _)| of_chain == chain.name)
            .map(|(.., expressions)| expressions);
        for rule in &chain.rules {
            if !in_chain
                .next()
                .is_some_and(|held| is_as_planned(held, rule))
            {
                return Ok(Some(format!("chain {} lacks `{rule}`", chain.name)));
            }
        }
        if in_chain.next().is_some() {
            return Ok(Some(format!("chain {} has more rules", chain.name)));
        }
    }
    Ok(None)
}

fn place_and_expressions(rule: RuleMessage) -> Option<(String, String, encode::ExpressionList)> {
    let (mut table, mut chain, mut list) = (None, None, Vec::new());
    for attribute in rule.attributes {
        match attribute {
            RuleAttribute::Table(name) => table = Some(name),
            RuleAttribute::Chain(name) => chain = Some(name),
            RuleAttribute::Expressions(expressions) => list = expressions,
            _ => {}
        }
    }
    Some((table?, chain?, list))
}

/// The kernel adds attributes of its own (defaults), but changes none of ours.
fn is_as_planned(held: &encode::ExpressionList, rule: &Rule) -> bool {
    let planned = encode::expressions(rule);
    held.len() == planned.len()
        && held
            .iter()
            .zip(&planned)
            .all(|(held, planned)| match (body(held), body(planned)) {
                (Some(held), Some(planned)) => covers(held, planned),
                _ => false,
            })
}

fn body(expression: &ListAttribute<ExpressionAttribute>) -> Option<&Expressions> {
    let ListAttribute::Element(attributes) = expression else {
        return None;
    };
    attributes.iter().find_map(|attribute| match attribute {
        ExpressionAttribute::Data(body) => Some(body),
        _ => None,
    })
}

fn covers(held: &Expressions, planned: &Expressions) -> bool {
    fn all_in<T: PartialEq>(held: &[T], planned: &[T]) -> bool {
        planned.iter().all(|attribute| held.contains(attribute))
    }
    match (held, planned) {
        (Expressions::Bitwise(held), Expressions::Bitwise(planned)) => all_in(held, planned),
        (Expressions::Cmp(held), Expressions::Cmp(planned)) => all_in(held, planned),
        (Expressions::Immediate(held), Expressions::Immediate(planned)) => all_in(held, planned),
        (Expressions::Lookup(held), Expressions::Lookup(planned)) => all_in(held, planned),
        (Expressions::Meta(held), Expressions::Meta(planned)) => all_in(held, planned),
        (Expressions::Payload(held), Expressions::Payload(planned)) => all_in(held, planned),
        (
            Expressions::Other {
                expression_type: held_type,
                attributes: held,
            },
            Expressions::Other {
                expression_type: planned_type,
                attributes: planned,
            },
        ) => held_type == planned_type && all_in(held, planned),
        _ => false,
    }
}

fn is_missing(error: &NftError) -> bool {
    error.cause.raw_os_error() == Some(libc::ENOENT)
}
