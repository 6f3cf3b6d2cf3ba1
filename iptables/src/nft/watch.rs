//! Sockets that only root can bind, made for the proxy to read.

use netlink_packet_core::Nla as _;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nflog::{ConfigCmd, ConfigFlags, ConfigMode, ConfigNla, Timeout, ULogMessage},
    nftables::{
        ChainAttribute, ChainMessage, ExpressionAttribute, Expressions, Hook, InetHookNumber,
        ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
    },
};
use outrigger_config::control::ForeignChain;

use super::{NetlinkSocket, NftError};
use crate::plan::LOGGED_BYTES;

/// In hundredths of a second: how long the kernel may gather packets before it delivers them.
const GATHER: u32 = 10;

/// A socket that gets what rules log to the NFLOG `group`.
///
/// # Errors
/// EPERM when another program has the group; else the kernel has no NFLOG.
pub fn log_socket(group: u16) -> Result<NetlinkSocket, NftError> {
    let mut socket = NetlinkSocket::open()?;
    let config = |attributes| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, group);
        NetfilterMessage::new(header, ULogMessage::Config(attributes))
    };
    let bind = vec![
        ConfigNla::Cmd(ConfigCmd::Bind),
        ConfigNla::Mode(ConfigMode::new_packet(LOGGED_BYTES)),
        ConfigNla::Timeout(Timeout::new(GATHER)),
    ];
    socket.tell(&format!("taking NFLOG group {group}"), &config(bind))?;
    // Without connection tracking's view a translated destination is shown as translated.
    let with_entry = config(vec![ConfigNla::Flags(ConfigFlags::CONNTRACK)]);
    if let Err(error) = socket.tell("asking for connection tracking's view", &with_entry) {
        tracing::debug!(%error, "bypasses are told without it");
    }
    Ok(socket)
}

/// A socket that is told of every change of nftables' rules.
///
/// # Errors
/// When the kernel does not let it subscribe.
pub fn change_socket() -> Result<NetlinkSocket, NftError> {
    const GROUP: u32 = libc::NFNLGRP_NFTABLES as u32;
    let mut socket = NetlinkSocket::open()?;
    socket
        .subscribe(GROUP)
        .map_err(|cause| NftError::new("subscribing to changes of rules", cause))?;
    Ok(socket)
}

/// Chains of others that translate locally made connections before ours do, whose priority is `ours`.
///
/// # Errors
/// When the rules could not be listed.
pub fn chains_ahead(socket: &mut NetlinkSocket, ours: i32) -> Result<Vec<ForeignChain>, NftError> {
    let mut found = Vec::new();
    for (family, name) in [
        (NetfilterProtoFamily::Inet, "inet"),
        (NetfilterProtoFamily::IPv4, "ip"),
        (NetfilterProtoFamily::IPv6, "ip6"),
    ] {
        let chains = list(
            socket,
            family,
            NfTablesMessage::GetChain(ChainMessage { attributes: vec![] }),
        )?;
        let ahead: Vec<_> = chains
            .into_iter()
            .filter_map(|chain| chain_ahead(chain, ours))
            .collect();
        if ahead.is_empty() {
            continue;
        }
        let rules = list(
            socket,
            family,
            NfTablesMessage::GetRule(RuleMessage { attributes: vec![] }),
        )?;
        let translating: Vec<_> = rules.into_iter().filter_map(translating_table).collect();
        found.extend(ahead.into_iter().map(|(table, chain)| ForeignChain {
            family: name.into(),
            translates: translating.contains(&table),
            table,
            chain,
        }));
    }
    Ok(found)
}

fn list(
    socket: &mut NetlinkSocket,
    family: NetfilterProtoFamily,
    request: NfTablesMessage,
) -> Result<Vec<NfTablesMessage>, NftError> {
    let request = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
    let found = socket.dump_all("listing the rules of others", &request)?;
    Ok(found
        .into_iter()
        .filter_map(|object| match object {
            NetfilterMessageInner::NfTables(object) => Some(object),
            _ => None,
        })
        .collect())
}

fn chain_ahead(message: NfTablesMessage, ours: i32) -> Option<(String, String)> {
    let NfTablesMessage::NewChain(chain) = message else {
        return None;
    };
    let (mut table, mut name, mut is_nat, mut is_ahead) = (None, None, false, false);
    for attribute in chain.attributes {
        match attribute {
            ChainAttribute::Table(of) => table = Some(of),
            ChainAttribute::Name(of) => name = Some(of),
            ChainAttribute::Type(of) => is_nat = of == "nat",
            ChainAttribute::Hook(hook) => {
                let is_output = hook.contains(&Hook::Number(InetHookNumber::LocalOut.into()));
                is_ahead = is_output
                    && hook
                        .iter()
                        .any(|part| matches!(part, Hook::Priority(p) if p.cast_signed() < ours));
            }
            _ => {}
        }
    }
    let table = table.filter(|table| !table.starts_with("outrigger_"))?;
    (is_nat && is_ahead).then_some((table, name?))
}

/// The table of a rule that translates destinations.
fn translating_table(message: NfTablesMessage) -> Option<String> {
    let NfTablesMessage::NewRule(rule) = message else {
        return None;
    };
    let (mut table, mut translates) = (None, false);
    for attribute in rule.attributes {
        match attribute {
            RuleAttribute::Table(of) => table = Some(of),
            RuleAttribute::Expressions(list) => {
                translates = list.iter().any(is_translation);
            }
            _ => {}
        }
    }
    table.filter(|_| translates)
}

fn is_translation(expression: &ListAttribute<ExpressionAttribute>) -> bool {
    let ListAttribute::Element(attributes) = expression else {
        return false;
    };
    attributes.iter().any(|attribute| {
        let ExpressionAttribute::Data(Expressions::Other {
            expression_type,
            attributes,
        }) = attribute
        else {
            return false;
        };
        match expression_type.as_str() {
            "redir" | "nat" => true,
            // One of iptables' in nftables' clothes; its name comes first.
            "target" => attributes.iter().any(|attribute| {
                let mut value = vec![0; attribute.value_len()];
                attribute.emit_value(&mut value);
                attribute.kind() == 1 && matches!(&value[..], b"REDIRECT\0" | b"DNAT\0")
            }),
            _ => false,
        }
    })
}
