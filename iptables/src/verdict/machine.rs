//! One rule against one packet: nftables' registers, with bytes that may be unknown.

mod loads;
mod lookup;
mod registers;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
};

use super::{
    Surroundings,
    packet::{Known, Packet},
    xt::{self, Tri},
};
use crate::ruleset::{
    self, Base, CmpOp, Expression as E, Extent, NatKind, Rule, Table, Verdict, ct, meta,
};

/// What a rule comes to.
#[derive(Debug)]
pub(super) enum Ruled<'a> {
    /// A condition fails, which one.
    No(String),
    Yes {
        /// After what the rule changed of it.
        packet: Box<Packet<'a>>,
        action: Action,
        /// Conditions that could not be evaluated.
        doubts: Vec<String>,
        /// Whether there is a difference between matching and not.
        has_effect: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Next,
    Verdict(Verdict),
    /// One of these, by a value that is not known.
    OneOf(Vec<Verdict>, String),
    Destination(Known<SocketAddr>),
    Source(Known<IpAddr>),
    Reject,
    /// To a local socket of this address, without a change of the packet.
    Tproxy(Known<SocketAddr>),
    /// What becomes of the packet cannot be told, for this reason.
    Unknown(String),
}

const REGISTERS: usize = 80;
const AT_CONNTRACK: &str = "whether conntrack comes before a chain of its own priority";
/// Expressions that decide on a packet; where one could not be read, what it does is not known.
const DECIDING: [&str; 11] = [
    "nat",
    "redir",
    "masq",
    "tproxy",
    "synproxy",
    "fwd",
    "immediate",
    "target",
    "reject",
    "queue",
    "flow_offload",
];

pub(super) struct Machine<'t, 'a> {
    table: &'t Table,
    surroundings: &'t dyn Surroundings,
    packet: Packet<'a>,
    bytes: [u8; REGISTERS],
    /// Why a register of four bytes is not known.
    unknown: [Option<Rc<str>>; REGISTERS / 4],
    label: [&'static str; REGISTERS / 4],
    /// A register that holds the connection's status, of which only these bits are known.
    status: Option<(usize, u32)>,
    doubts: Vec<String>,
    has_effect: bool,
}

/// The rule ends here, for this reason.
struct Break(String);

pub(super) fn run<'a>(
    table: &Table,
    rule: &Rule,
    packet: &Packet<'a>,
    surroundings: &dyn Surroundings,
) -> Ruled<'a> {
    let mut machine = Machine {
        table,
        surroundings,
        packet: packet.clone(),
        bytes: [0; REGISTERS],
        unknown: [const { None }; REGISTERS / 4],
        label: [""; REGISTERS / 4],
        status: None,
        doubts: Vec::new(),
        has_effect: false,
    };
    let mut action = Action::Next;
    for expression in &rule.expressions {
        match machine.step(expression) {
            Ok(Action::Next) => {}
            Ok(found) => {
                action = found;
                machine.has_effect = true;
                break;
            }
            Err(Break(reason)) => return Ruled::No(reason),
        }
    }
    Ruled::Yes {
        packet: Box::new(machine.packet),
        action,
        doubts: machine.doubts,
        has_effect: machine.has_effect,
    }
}

impl Machine<'_, '_> {
    fn step(&mut self, expression: &E) -> Result<Action, Break> {
        match expression {
            E::Payload { base, offset, to } => {
                let label = payload_label(*base, *offset, self.packet.is_v6());
                match self.packet.payload(*base, *offset, to.length) {
                    None => return Err(Break(format!("there is no {label} here"))),
                    Some(value) => self.put(to.start, to.length, value, label),
                }
            }
            E::Meta { key, to } => self.meta(*key, *to)?,
            E::SetMeta {
                key: meta::MARK,
                from,
            } => {
                self.packet.mark = self.number(*from);
                self.has_effect = true;
            }
            E::SetMeta { .. } => {}
            E::SetPayload { base, offset, from } => {
                return Ok(self.set_payload(*base, *offset, *from));
            }
            E::Ct { key, is_reply, to } => self.ct(*key, *is_reply, *to)?,
            E::SetCt {
                key: ct::MARK,
                from,
            } => {
                // Where conntrack does not know the packet, nothing keeps the mark.
                if self.packet.is_at_conntrack() {
                    self.packet.ct_mark = Err(AT_CONNTRACK.into());
                } else if self.packet.is_tracked() {
                    self.packet.ct_mark = self.number(*from);
                }
                self.has_effect = true;
            }
            E::SetCt {
                key: ct::ZONE,
                from,
            } => {
                let zone = self.known(*from, 2);
                self.packet.ct_zone = zone.map(|b| u16::from_ne_bytes([b[0], b[1]]).into());
                self.has_effect = true;
            }
            E::SetCt { .. } => {}
            E::Socket { key, level, to } => self.socket(*key, *level, *to)?,
            E::Fib { result, flags, to } => self.fib(*result, *flags, *to),
            E::Cmp { op, from, value } => self.compare(*op, *from, value)?,
            E::Range {
                is_negated,
                from,
                low,
                high,
            } => {
                if let Some(found) = self.get(*from, low.len()) {
                    let is_in = (low.as_slice()..=high.as_slice()).contains(&found.as_slice());
                    if is_in == *is_negated {
                        return Err(Break(self.differs(*from, &found)));
                    }
                }
            }
            E::Bitwise {
                from,
                to,
                mask,
                xor,
            } => {
                let label = self.label[from.start / 4];
                let found = self.known(from.start, from.length).map(|bytes| {
                    let pairs = mask.iter().zip(xor);
                    bytes
                        .iter()
                        .zip(pairs)
                        .map(|(b, (m, x))| b & m ^ x)
                        .collect::<Vec<_>>()
                });
                // No bit counts that is not known.
                let found = found.or_else(|why| {
                    let bits = |b: &[u8]| b.try_into().map(u32::from_ne_bytes).unwrap_or(u32::MAX);
                    match self.status {
                        _ if mask.iter().all(|b| *b == 0) => Ok(xor.clone()),
                        Some((at, known)) if at == from.start && bits(mask) & !known == 0 => {
                            let set = self.packet.status().0 & bits(mask) ^ bits(xor);
                            Ok(set.to_ne_bytes().to_vec())
                        }
                        _ => Err(why),
                    }
                });
                self.put(*to, from.length, found, label);
            }
            E::ByteOrder { from, to, size } => {
                let label = self.label[from.start / 4];
                let found = self.known(from.start, from.length).map(|mut bytes| {
                    bytes.chunks_mut((*size).max(1)).for_each(<[u8]>::reverse);
                    bytes
                });
                self.put(*to, from.length, found, label);
            }
            E::Lookup {
                set,
                from,
                to,
                is_negated,
            } => return self.lookup(set, *from, *to, *is_negated),
            E::Immediate { to, value } => self.put(*to, value.len(), Ok(value.clone()), ""),
            E::Verdict(Verdict::Continue) => {}
            E::Verdict(verdict) => return Ok(Action::Verdict(verdict.clone())),
            E::Nat {
                kind,
                family,
                address,
                port,
            } => {
                let is_v6 = *family == 10;
                if is_v6 != self.packet.is_v6() {
                    return Ok(Action::Next);
                }
                let address = address
                    .map(|pair| self.nat_address(pair, is_v6))
                    .transpose();
                return Ok(match kind {
                    NatKind::Source => {
                        Action::Source(address.map(|a| a.unwrap_or(self.packet.source)))
                    }
                    NatKind::Destination => {
                        let port = self.nat_port(*port);
                        let old = self.packet.destination.ip();
                        Action::Destination(
                            address.and_then(|a| Ok(SocketAddr::new(a.unwrap_or(old), port?))),
                        )
                    }
                });
            }
            E::Redirect { port } => {
                let port = self.nat_port(*port);
                let loopback = self.redirect_address();
                return Ok(Action::Destination(
                    port.map(|port| SocketAddr::new(loopback, port)),
                ));
            }
            E::Masquerade => {
                let address = self.packet.route.source;
                return Ok(Action::Source(Ok(address)));
            }
            E::Tproxy { address, port } => {
                let is_v6 = self.packet.is_v6();
                let address = address.map(|r| self.address(r, is_v6)).transpose();
                let port = self.nat_port(port.map(|r| (r, None)));
                let old = self.packet.destination.ip();
                return Ok(Action::Tproxy(
                    address.and_then(|a| Ok(SocketAddr::new(a.unwrap_or(old), port?))),
                ));
            }
            E::Reject => return Ok(Action::Reject),
            E::Notrack => {
                self.packet.is_untracked = true;
                self.has_effect = true;
            }
            E::Counter | E::NoEffect(_) => {}
            E::Unpredictable(name) if DECIDING.contains(&name.as_str()) => {
                return Ok(Action::Unknown(format!("what `{name}` does")));
            }
            E::Unpredictable(name) => {
                self.doubt(format!("`{name}`"));
                // It may have written to any of them.
                let reason: Rc<str> = format!("`{name}`").into();
                self.unknown.fill(Some(reason));
            }
            E::Ip(conditions) => self.apply(xt::ip(conditions, &self.packet))?,
            E::XtMatch(condition) => {
                let found = xt::condition(condition, &self.packet, self.surroundings);
                self.apply(found)?;
            }
            E::XtTarget(target) => {
                let before = (
                    self.packet.mark.clone(),
                    self.packet.ct_mark.clone(),
                    self.packet.is_untracked,
                );
                let action = xt::target(target, &mut self.packet);
                let after = (
                    self.packet.mark.clone(),
                    self.packet.ct_mark.clone(),
                    self.packet.is_untracked,
                );
                self.has_effect |= before != after;
                return match action {
                    Ok(action) => Ok(action),
                    Err(name) => Ok(Action::Unknown(format!("what target {name} does"))),
                };
            }
        }
        Ok(Action::Next)
    }

    fn apply(&mut self, found: Tri) -> Result<(), Break> {
        match found {
            Tri::Yes => Ok(()),
            Tri::No(reason) => Err(Break(reason)),
            Tri::Unknown(reason) => {
                self.doubt(reason);
                Ok(())
            }
        }
    }

    fn doubt(&mut self, reason: String) {
        self.doubts.push(reason);
    }

    fn set_payload(&mut self, base: Base, offset: usize, from: Extent) -> Action {
        let label = payload_label(base, offset, self.packet.is_v6());
        let hop_limit = if self.packet.is_v6() { 7 } else { 8 };
        self.has_effect = true;
        match base {
            // The traffic class; with the checksum nft writes a neighbour, too, which stays.
            Base::Network if offset + from.length <= 4 => {
                self.packet.is_tos_changed = true;
                Action::Next
            }
            Base::Network if offset == hop_limit && from.length == 1 => {
                match self.known(from.start, 1) {
                    Ok(hops) if hops[0] > 1 => Action::Next,
                    _ => Action::Unknown("whether its hops suffice".into()),
                }
            }
            _ => Action::Unknown(format!("what writing to {label} does")),
        }
    }

    fn compare(&mut self, op: CmpOp, from: usize, value: &[u8]) -> Result<(), Break> {
        let Some(found) = self.get(from, value.len()) else {
            return Ok(());
        };
        let is_so = match op {
            CmpOp::Eq => found == value,
            CmpOp::Ne => found != value,
            CmpOp::Lt => found.as_slice() < value,
            CmpOp::Le => found.as_slice() <= value,
            CmpOp::Gt => found.as_slice() > value,
            CmpOp::Ge => found.as_slice() >= value,
        };
        if is_so {
            Ok(())
        } else {
            Err(Break(self.differs(from, &found)))
        }
    }

    fn differs(&self, from: usize, found: &[u8]) -> String {
        let label = self.label[from / 4];
        let label = if label.is_empty() { "the value" } else { label };
        format!("{label} is {}", show(label, found))
    }

    fn nat_address(&self, (low, high): (usize, Option<usize>), is_v6: bool) -> Known<IpAddr> {
        let first = self.address(low, is_v6)?;
        match high {
            Some(high) if self.address(high, is_v6)? != first => {
                Err("which address of a range".into())
            }
            _ => Ok(first),
        }
    }

    fn address(&self, at: usize, is_v6: bool) -> Known<IpAddr> {
        let bytes = self.known(at, if is_v6 { 16 } else { 4 })?;
        Ok(match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(octets) => Ipv4Addr::from(octets).into(),
            Err(_) => {
                Ipv6Addr::from(<[u8; 16]>::try_from(bytes).map_err(|_| Rc::from("an address"))?)
                    .into()
            }
        })
    }

    fn nat_port(&self, port: Option<(usize, Option<usize>)>) -> Known<u16> {
        let old = self.packet.destination.port();
        let Some((low, high)) = port else {
            return Ok(old);
        };
        let read = |at| -> Known<u16> {
            let bytes = self.known(at, 2)?;
            Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let low = read(low)?;
        let high = high.map_or(Ok(low), read)?;
        Ok(xt::port_within(old, low, high))
    }

    fn redirect_address(&self) -> IpAddr {
        redirect_address(&self.packet)
    }
}

/// REDIRECT leads to the loopback address on the way out, and on the way in to the device's own.
pub(super) fn redirect_address(packet: &Packet<'_>) -> IpAddr {
    match packet.is_v6() {
        true => Ipv6Addr::LOCALHOST.into(),
        false => Ipv4Addr::LOCALHOST.into(),
    }
}

fn payload_label(base: Base, offset: usize, is_v6: bool) -> &'static str {
    match (base, offset, is_v6) {
        (Base::Network, 12, false) | (Base::Network, 8, true) => "the source address",
        (Base::Network, 16, false) | (Base::Network, 24, true) => "the destination address",
        (Base::Network, ..) => "a field of the IP header",
        (Base::Transport, 0, _) => "the source port",
        (Base::Transport, 2, _) => "the destination port",
        (Base::Transport, 13, _) => "tcp flags",
        (Base::Transport, ..) => "a field of the TCP header",
        (Base::Link, ..) => "link-layer header",
        (Base::Inner, ..) => "payload",
    }
}

fn show(label: &str, bytes: &[u8]) -> String {
    match (label, bytes.len()) {
        (_, 16) if label.ends_with("name") => {
            let name = String::from_utf8_lossy(bytes);
            format!("\"{}\"", name.trim_end_matches('\0'))
        }
        (label, 4) if label.contains("address") || label.contains("addr") => {
            Ipv4Addr::from(<[u8; 4]>::try_from(bytes).expect("four bytes")).to_string()
        }
        (_, 16) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes")).to_string(),
        (_, 2) => u16::from_be_bytes([bytes[0], bytes[1]]).to_string(),
        ("meta l4proto", 1) => "tcp".into(),
        ("meta nfproto", 1) => if bytes[0] == 10 { "ipv6" } else { "ipv4" }.into(),
        ("ct state", 4) => "new".into(),
        ("fib type", 4) => {
            ruleset::address_type(u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
        }
        (_, 4) if !label.starts_with("the value") => {
            u32::from_ne_bytes(bytes.try_into().expect("four bytes")).to_string()
        }
        _ => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    }
}
