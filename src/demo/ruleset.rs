//! Every nftables rule in this network namespace, as the kernel lists it.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{ChainMessage, NfTablesMessage, RuleMessage, TableAttribute, TableMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Comparable: two that are equal hold the same tables, chains and rules.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ruleset {
    tables: Vec<NfTablesMessage>,
    chains: Vec<NfTablesMessage>,
    rules: Vec<NfTablesMessage>,
}

impl Ruleset {
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) fn read() -> io::Result<Self> {
        let everything = |message| dump(message);
        Ok(Self {
            tables: everything(NfTablesMessage::GetTable(TableMessage {
                attributes: Vec::new(),
            }))?,
            chains: everything(NfTablesMessage::GetChain(ChainMessage {
                attributes: Vec::new(),
            }))?,
            rules: everything(NfTablesMessage::GetRule(RuleMessage {
                attributes: Vec::new(),
            }))?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// As in "no table, no rule" or "2 tables (a, b) with 9 rules".
    pub(super) fn summary(&self) -> String {
        if self.is_empty() {
            return "no table, no rule".into();
        }
        let names: Vec<_> = self.tables.iter().filter_map(table_name).collect();
        format!(
            "{} ({}) with {}",
            counted(self.tables.len(), "table"),
            names.join(", "),
            counted(self.rules.len(), "rule")
        )
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn table_name(message: &NfTablesMessage) -> Option<&str> {
    let NfTablesMessage::NewTable(table) = message else {
        return None;
    };
    table
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TableAttribute::Name(name) => Some(name.as_str()),
            _ => None,
        })
}

fn dump(request: NfTablesMessage) -> io::Result<Vec<NfTablesMessage>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::new(
        NetlinkHeader::default(),
        NetlinkPayload::from(NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
            request,
        )),
    );
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (answers, _) = socket.recv_from_full()?;
        let mut rest = answers.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(error.to_io());
                }
                NetlinkPayload::InnerMessage(message) => {
                    if let NetfilterMessageInner::NfTables(message) = message.inner {
                        found.push(message);
                    }
                }
                _ => {}
            }
            // Messages are padded to multiples of four bytes.
            let length = (answer.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
