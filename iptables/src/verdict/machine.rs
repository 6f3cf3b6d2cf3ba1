//! One rule against one packet: nftables' registers, with bytes that may be unknown.

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
    self, Base, CmpOp, Data, Element, Expression as E, Extent, NatKind, Rule, Table, Verdict, ct,
    meta,
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

    fn put(&mut self, at: usize, length: usize, value: Known<Vec<u8>>, label: &'static str) {
        if self.status.is_some_and(|(status, _)| status == at) {
            self.status = None;
        }
        let end = (at + length).next_multiple_of(4).min(REGISTERS);
        let (bytes, reason) = match value {
            Ok(bytes) => (bytes, None),
            Err(reason) => (vec![0; length], Some(reason)),
        };
        for at in at / 4..end / 4 {
            self.unknown[at].clone_from(&reason);
            self.label[at] = label;
        }
        self.bytes[at..end].fill(0);
        let length = bytes.len().min(REGISTERS.saturating_sub(at));
        self.bytes[at..at + length].copy_from_slice(&bytes[..length]);
    }

    fn known(&self, at: usize, length: usize) -> Known<Vec<u8>> {
        let end = (at + length).min(REGISTERS);
        match self.unknown[at / 4..end.div_ceil(4)]
            .iter()
            .flatten()
            .next()
        {
            Some(reason) => Err(reason.clone()),
            None => Ok(self.bytes[at..end].to_vec()),
        }
    }

    /// As [`known`](Self::known), and without it a doubt.
    fn get(&mut self, at: usize, length: usize) -> Option<Vec<u8>> {
        match self.known(at, length) {
            Ok(bytes) => Some(bytes),
            Err(reason) => {
                self.doubt(reason.to_string());
                None
            }
        }
    }

    fn number(&self, at: usize) -> Known<u32> {
        let bytes = self.known(at, 4)?;
        Ok(u32::from_ne_bytes(
            bytes.try_into().map_err(|_| Rc::from("a register"))?,
        ))
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

    fn lookup(
        &mut self,
        name: &str,
        from: usize,
        to: Option<usize>,
        is_negated: bool,
    ) -> Result<Action, Break> {
        let Some(set) = self.table.sets.get(name) else {
            self.doubt(format!("set {name}, which could not be read"));
            return Ok(Action::Next);
        };
        let length: usize = match set.fields.as_slice() {
            [only] => *only,
            fields => fields.iter().map(|f| f.next_multiple_of(4)).sum(),
        };
        let title = if set.is_anonymous {
            "the rule's list".to_owned()
        } else {
            format!("set {name}")
        };
        let end = (from + length).min(REGISTERS);
        match self.known(from, length) {
            Ok(key) => {
                let found = set.find(&key).cloned();
                if found.is_some() == is_negated {
                    let label = self.label[from / 4];
                    let word = if is_negated { "is" } else { "is not" };
                    let key = show(label, &key);
                    return Err(Break(format!("{label} {key} {word} in {title}")));
                }
                match found {
                    Some(element) => Ok(self.found(&element, to)),
                    None => Ok(Action::Next),
                }
            }
            Err(reason) => {
                let unknown: Vec<bool> = (from..end)
                    .map(|at| self.unknown[at / 4].is_some())
                    .collect();
                let key = self.bytes[from..end].to_vec();
                let candidates: Vec<Element> = set.candidates(&key, &unknown).cloned().collect();
                if candidates.is_empty() {
                    return if is_negated {
                        Ok(Action::Next)
                    } else {
                        Err(Break(format!("nothing in {title} fits")))
                    };
                }
                self.doubt(format!("{reason}, looked up in {title}"));
                let verdicts: Vec<Verdict> = candidates
                    .iter()
                    .filter_map(|e| match &e.data {
                        Some(Data::Verdict(verdict)) => Some(verdict.clone()),
                        _ => None,
                    })
                    .fold(Vec::new(), |mut all, verdict| {
                        if !all.contains(&verdict) {
                            all.push(verdict);
                        }
                        all
                    });
                if let Some(to) = to.filter(|_| verdicts.is_empty()) {
                    self.put(to, 16, Err(reason.clone()), "");
                }
                if verdicts.is_empty() {
                    Ok(Action::Next)
                } else {
                    Ok(Action::OneOf(verdicts, reason.to_string()))
                }
            }
        }
    }

    fn found(&mut self, element: &Element, to: Option<usize>) -> Action {
        if let Some(name) = &element.condition {
            self.doubt(format!("`{name}` of an element"));
        }
        match (&element.data, to) {
            (Some(Data::Verdict(Verdict::Continue)), _) => Action::Next,
            (Some(Data::Verdict(verdict)), _) => Action::Verdict(verdict.clone()),
            (Some(Data::Value(value)), Some(to)) => {
                self.put(to, value.len(), Ok(value.clone()), "");
                Action::Next
            }
            _ => Action::Next,
        }
    }

    fn meta(&mut self, key: u32, to: usize) -> Result<(), Break> {
        let packet = &self.packet;
        let is_v6 = packet.is_v6();
        let owner = |id: u32, what| {
            if packet.has_socket() {
                Ok(id)
            } else {
                Err(Break(format!("there is no {what} in {}", packet.hook)))
            }
        };
        let name = |device: &Option<(String, u32)>| {
            let mut bytes = [0; 16];
            let name = device.as_ref().map_or("", |d| d.0.as_str()).as_bytes();
            let length = name.len().min(15);
            bytes[..length].copy_from_slice(&name[..length]);
            bytes.to_vec()
        };
        let index = |device: &Option<(String, u32)>| {
            device.as_ref().map_or(0, |d| d.1).to_ne_bytes().to_vec()
        };
        let (value, label): (Known<Vec<u8>>, &'static str) = match key {
            meta::PROTOCOL => (
                Ok(if is_v6 { vec![0x86, 0xdd] } else { vec![8, 0] }),
                "meta protocol",
            ),
            meta::MARK => (
                packet.mark.clone().map(|m| m.to_ne_bytes().to_vec()),
                "meta mark",
            ),
            meta::IIF => (Ok(index(&packet.input)), "iif"),
            meta::OIF => (Ok(index(&packet.output)), "oif"),
            meta::IIFNAME => (Ok(name(&packet.input)), "iifname"),
            meta::OIFNAME => (Ok(name(&packet.output)), "oifname"),
            meta::SKUID => (
                Ok(owner(packet.connection.uid, "skuid")?
                    .to_ne_bytes()
                    .to_vec()),
                "meta skuid",
            ),
            meta::SKGID => (
                Ok(owner(packet.connection.gid, "skgid")?
                    .to_ne_bytes()
                    .to_vec()),
                "meta skgid",
            ),
            meta::NFPROTO => (Ok(vec![if is_v6 { 10 } else { 2 }]), "meta nfproto"),
            meta::L4PROTO => (Ok(vec![6]), "meta l4proto"),
            meta::CGROUP => (Err("the class of net_cls".into()), "meta cgroup"),
            other => (Err(format!("`meta` key {other}").into()), "meta"),
        };
        let length = value.as_ref().map_or(16, Vec::len);
        self.put(to, length, value, label);
        Ok(())
    }

    fn ct(&mut self, key: u32, is_reply: bool, to: usize) -> Result<(), Break> {
        const INVALID: u32 = 1;
        const NEW: u32 = 8;
        const UNTRACKED: u32 = 64;
        let packet = &self.packet;
        if packet.is_at_conntrack() {
            self.put(to, 16, Err(AT_CONNTRACK.into()), "ct");
            return Ok(());
        }
        if key == ct::STATE {
            let state = if packet.is_untracked {
                UNTRACKED
            } else if packet.is_tracked() {
                NEW
            } else {
                INVALID
            };
            self.put(to, 4, Ok(state.to_ne_bytes().to_vec()), "ct state");
            return Ok(());
        }
        if !packet.is_tracked() {
            return Err(Break("conntrack does not know it here".into()));
        }
        // A reply comes from where the connection was turned to.
        let (from, goal) = if is_reply {
            (packet.destination.ip(), packet.source)
        } else {
            (packet.original_source, packet.original.ip())
        };
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let source_port = || {
            packet
                .connection
                .source_port
                .ok_or_else(|| Rc::from("the source port, which the kernel chooses"))
        };
        let port = |port: u16| port.to_be_bytes().to_vec();
        let (value, label): (Known<Vec<u8>>, &'static str) = match key {
            ct::DIRECTION => (Ok(vec![0]), "ct direction"),
            ct::STATUS => {
                let known = packet.status().1;
                self.put(to, 4, Err("`ct status` beyond NAT".into()), "ct status");
                self.status = Some((to, known));
                return Ok(());
            }
            ct::MARK => (
                packet.ct_mark.clone().map(|m| m.to_ne_bytes().to_vec()),
                "ct mark",
            ),
            ct::L3PROTOCOL => (Ok(vec![if packet.is_v6() { 10 } else { 2 }]), "ct l3proto"),
            ct::PROTOCOL => (Ok(vec![6]), "ct protocol"),
            ct::SRC | ct::SRC_IP | ct::SRC_IP6 => (Ok(octets(from)), "ct saddr"),
            ct::DST | ct::DST_IP | ct::DST_IP6 => (Ok(octets(goal)), "ct daddr"),
            ct::PROTO_SRC if is_reply => {
                (Ok(port(packet.destination.port())), "ct reply proto-src")
            }
            ct::PROTO_DST if is_reply => (source_port().map(port), "ct reply proto-dst"),
            ct::PROTO_SRC => (source_port().map(port), "ct proto-src"),
            ct::PROTO_DST => (Ok(port(packet.original.port())), "ct proto-dst"),
            ct::ZONE => (
                packet
                    .ct_zone
                    .clone()
                    .map(|zone| (zone as u16).to_ne_bytes().to_vec()),
                "ct zone",
            ),
            other => (Err(format!("`ct` key {other}").into()), "ct"),
        };
        let length = value.as_ref().map_or(16, Vec::len);
        self.put(to, length, value, label);
        Ok(())
    }

    fn socket(&mut self, key: u32, level: u32, to: usize) -> Result<(), Break> {
        const CGROUP: u32 = 3;
        let value = match (&self.packet.connection.cgroup, key) {
            (Some(cgroup), CGROUP) if self.packet.has_socket() => {
                match cgroup.ids.get(level as usize) {
                    Some(id) => Ok(id.to_ne_bytes().to_vec()),
                    None => {
                        return Err(Break(format!(
                            "its cgroup {} has no level {level}",
                            cgroup.path
                        )));
                    }
                }
            }
            (None, CGROUP) => Err("the cgroup of the connecting process".into()),
            _ => Err("`socket`".into()),
        };
        self.put(to, 8, value, "socket cgroupv2");
        Ok(())
    }

    fn fib(&mut self, result: u32, flags: u32, to: usize) {
        const ADDRESS_TYPE: u32 = 3;
        let address = match flags {
            1 => Some(self.packet.source),
            2 => Some(self.packet.destination.ip()),
            _ => None,
        };
        let kind = address
            .filter(|_| result == ADDRESS_TYPE)
            .and_then(|address| self.surroundings.address_type(address));
        let value = kind
            .map(|kind| u32::from(kind).to_ne_bytes().to_vec())
            .ok_or_else(|| "`fib`".into());
        self.put(to, 4, value, "fib type");
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
