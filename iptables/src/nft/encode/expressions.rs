//! A rule's conditions and verdict as expressions: those that `nft --debug=netlink` shows for the same
//! text.

use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict as Code, VerdictAttribute,
};

use super::{NF_ACCEPT, OBJECT_CT_TIMEOUT, lease_key, text};
use crate::plan::{Family, LOGGED_BYTES, LOGS_A_SECOND, Match, Rule, Verdict, is_host, log_prefix};

pub(in crate::nft) type ExpressionList = Vec<ListAttribute<ExpressionAttribute>>;

/// `enum nft_nat_types`: of the destination.
const NAT_DESTINATION: u32 = 1;
const NF_DROP: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const UDP_HEADER: u32 = 8;
const DYNSET_ADD: u32 = 0;
const DYNSET_UPDATE: u32 = 1;
const DYNSET_DELETE: u32 = 2;
/// `enum ip_conntrack_info`'s bit for a connection that has seen both directions.
const CT_STATE_ESTABLISHED: u32 = 2;

pub(in crate::nft) fn expressions(rule: &Rule) -> ExpressionList {
    let mut list = Expr::default();
    for condition in &rule.matches {
        list.add_match(condition);
    }
    list.add_verdict(&rule.verdict);
    list.0.into_iter().map(Into::into).collect()
}

#[derive(Default)]
struct Expr(Vec<Expressions>);

impl Expr {
    fn add_match(&mut self, condition: &Match) {
        match condition {
            Match::Family(family) => self.family(*family),
            Match::Tcp => self.tcp(),
            Match::PureSyn => {
                self.tcp();
                self.load(TRANSPORT_HEADER, 13, 1);
                self.mask(&[0x17]);
                self.equals(&[0x02]);
            }
            Match::SocketUid(uid) => {
                self.meta(MetaKey::SocketUserId);
                self.equals(&uid.to_ne_bytes());
            }
            Match::SocketUidIn(set) => {
                self.meta(MetaKey::SocketUserId);
                self.is_in(set);
            }
            Match::SocketGidIn(set) => {
                self.meta(MetaKey::SocketGroupId);
                self.is_in(set);
            }
            Match::Mark(mark) => {
                self.meta(MetaKey::Mark);
                self.equals(&mark.to_ne_bytes());
            }
            Match::SocketCgroup { id, level, .. } => {
                self.add(
                    "socket",
                    [
                        (1, SOCKET_CGROUPV2),
                        (2, Register::Reg1.into()),
                        (3, *level),
                    ],
                );
                self.equals(&id.to_ne_bytes());
            }
            Match::OutLoopback => {
                self.meta(MetaKey::Oif);
                self.equals(&LOOPBACK_INDEX.to_ne_bytes());
            }
            Match::DestinationLocal => {
                self.add(
                    "fib",
                    [
                        (1, Register::Reg1.into()),
                        (2, FIB_RESULT_ADDRTYPE),
                        (3, FIB_DADDR),
                    ],
                );
                self.equals(&RTN_LOCAL.to_ne_bytes());
            }
            Match::Destination(net) => {
                self.destination(Family::of(net.addr()));
                if !is_host(net) {
                    self.mask(&octets(net.netmask()));
                }
                self.equals(&octets(net.network()));
            }
            Match::DestinationIn(family, set) => {
                self.destination(*family);
                self.is_in(set);
            }
            Match::Port(port) => {
                self.destination_port();
                self.equals(&port.to_be_bytes());
            }
            Match::PortIn(set) => {
                self.destination_port();
                self.is_in(set);
            }
            Match::UdpPort(port) => {
                self.meta(MetaKey::L4Proto);
                self.equals(&[libc::IPPROTO_UDP as u8]);
                self.load(TRANSPORT_HEADER, 2, 2);
                self.equals(&port.to_be_bytes());
            }
            Match::Payload(number) => {
                self.load(TRANSPORT_HEADER, UDP_HEADER, 8);
                self.equals(&number.to_be_bytes());
            }
            Match::SourceIn(family, set) => {
                self.family(*family);
                self.tcp();
                self.source_of_known_kind(*family);
                self.is_in(set);
            }
            Match::Untracked => {
                self.has_state(CT_STATE_UNTRACKED);
            }
            Match::OutElsewhere => {
                self.meta(MetaKey::Oif);
                self.compare(Operator::NotEqual, &LOOPBACK_INDEX.to_ne_bytes());
            }
            Match::FamilyIn(set) => {
                self.meta(MetaKey::Nfproto);
                self.is_in(set);
            }
            Match::Translated => {
                self.ct(CT_KEY_STATUS, None);
                self.mask(&CT_STATUS_DNAT.to_ne_bytes());
                self.compare(Operator::NotEqual, &[0; 4]);
            }
            Match::ReplyPort(port) => {
                self.tcp();
                self.ct(CT_KEY_PROTO_SRC, Some(CT_REPLY));
                self.equals(&port.to_be_bytes());
            }
            Match::FamilyNotIn(set) => {
                self.meta(MetaKey::Nfproto);
                self.is_not_in(set);
            }
            Match::OriginallyAt(address) => {
                self.original_destination(Family::of(address.ip()));
                self.equals(&octets(address.ip()));
                self.tcp();
                self.ct(CT_KEY_PROTO_DST, Some(CT_ORIGINAL));
                self.equals(&address.port().to_be_bytes());
            }
            // Of an entry of the other family this matches nothing.
            Match::OriginallyTo { family, set, is_in } => {
                self.original_destination(*family);
                self.is_in_or_not(set, *is_in);
            }
            Match::OriginalPort { set, is_in } => {
                self.tcp();
                self.ct(CT_KEY_PROTO_DST, Some(CT_ORIGINAL));
                self.is_in_or_not(set, *is_in);
            }
            Match::Established => {
                self.has_state(CT_STATE_ESTABLISHED);
            }
        }
    }

    fn add_verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Accept => self.verdict(vec![VerdictAttribute::Code(Code::Other(NF_ACCEPT))]),
            Verdict::Return => self.verdict(vec![VerdictAttribute::Code(Code::Return)]),
            Verdict::Jump(chain) => self.verdict(vec![
                VerdictAttribute::Code(Code::Jump),
                VerdictAttribute::Chain((*chain).into()),
            ]),
            Verdict::RedirectTo(port) => {
                self.immediate(
                    Register::Reg1,
                    DataAttribute::Value(port.to_be_bytes().to_vec()),
                );
                self.add(
                    "redir",
                    [
                        (1, Register::Reg1.into()),
                        (3, NF_NAT_RANGE_PROTO_SPECIFIED),
                    ],
                );
            }
            Verdict::LeaveAlone(family) => {
                self.destination(*family);
                self.add(
                    "nat",
                    [
                        (1, NAT_DESTINATION),
                        (2, lease_key(*family)[0].into()),
                        (3, Register::Reg1.into()),
                    ],
                );
            }
            Verdict::Log { reason, group } => {
                self.limit(LOGS_A_SECOND);
                self.log(&log_prefix(*reason), *group);
                self.verdict(vec![VerdictAttribute::Code(Code::Return)]);
            }
            Verdict::RejectWithReset => self.add("reject", [(1, REJECT_TCP_RST)]),
            Verdict::NoteSourceAndDrop {
                family,
                set,
                millis,
            } => {
                self.source_of_known_kind(*family);
                self.alter(DYNSET_UPDATE, set, Some(*millis));
                self.verdict(vec![VerdictAttribute::Code(Code::Other(NF_DROP))]);
            }
            Verdict::NoteSource {
                family,
                set,
                millis,
            } => {
                self.source_of_known_kind(*family);
                self.alter(DYNSET_ADD, set, Some(*millis));
            }
            Verdict::ForgetSource { family, set } => {
                self.source_of_known_kind(*family);
                self.alter(DYNSET_DELETE, set, None);
            }
            Verdict::SetTimeout(name) => self.0.push(Expressions::Other {
                expression_type: "objref".into(),
                attributes: vec![
                    DefaultNla::new(1, OBJECT_CT_TIMEOUT.to_be_bytes().into()),
                    DefaultNla::new(2, text(name)),
                ],
            }),
            Verdict::Renew { set, millis } => {
                self.meta(MetaKey::Nfproto);
                self.alter(DYNSET_UPDATE, set, Some(*millis));
            }
            Verdict::RenewAndDrop { set, millis } => {
                self.meta(MetaKey::Nfproto);
                self.alter(DYNSET_UPDATE, set, Some(*millis));
                self.verdict(vec![VerdictAttribute::Code(Code::Other(NF_DROP))]);
            }
        }
    }

    fn family(&mut self, family: Family) {
        self.meta(MetaKey::Nfproto);
        self.equals(&lease_key(family));
    }

    fn tcp(&mut self) {
        self.meta(MetaKey::L4Proto);
        self.equals(&[libc::IPPROTO_TCP as u8]);
    }

    fn destination(&mut self, family: Family) {
        self.family(family);
        match family {
            Family::V4 => self.load(NETWORK_HEADER, 16, 4),
            Family::V6 => self.load(NETWORK_HEADER, 24, 16),
        }
    }

    fn destination_port(&mut self) {
        self.tcp();
        self.load(TRANSPORT_HEADER, 2, 2);
    }

    fn meta(&mut self, key: MetaKey) {
        self.0.push(Expressions::Meta(vec![
            Meta::Key(key),
            Meta::DestinationRegister(Register::Reg1),
        ]));
    }

    fn load(&mut self, base: u32, offset: u32, length: u32) {
        self.load_into(Register::Reg1, base, offset, length);
    }

    fn load_into(&mut self, register: Register, base: u32, offset: u32, length: u32) {
        self.0.push(Expressions::Payload(vec![
            Payload::DestinationRegister(register),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length),
        ]));
    }

    fn mask(&mut self, mask: &[u8]) {
        self.0.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(mask.len() as u32),
            Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ]));
    }

    fn equals(&mut self, value: &[u8]) {
        self.compare(Operator::Equal, value);
    }

    fn compare(&mut self, operator: Operator, value: &[u8]) {
        self.0.push(Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value.to_vec())),
        ]));
    }

    fn is_in(&mut self, set: &str) {
        self.0.push(Expressions::Lookup(vec![
            Lookup::Set(set.into()),
            Lookup::SourceRegister(Register::Reg1),
        ]));
    }

    fn is_not_in(&mut self, set: &str) {
        self.0.push(Expressions::Lookup(vec![
            Lookup::Set(set.into()),
            Lookup::SourceRegister(Register::Reg1),
            Lookup::Flags(LOOKUP_INVERTED),
        ]));
    }

    fn is_in_or_not(&mut self, set: &str, is_in: bool) {
        if is_in {
            self.is_in(set);
        } else {
            self.is_not_in(set);
        }
    }

    fn ct(&mut self, key: u32, direction: Option<u8>) {
        let number = |kind, number: u32| DefaultNla::new(kind, number.to_be_bytes().to_vec());
        let mut attributes = vec![number(1, Register::Reg1.into()), number(2, key)];
        attributes.extend(direction.map(|of| DefaultNla::new(3, vec![of])));
        self.0.push(Expressions::Other {
            expression_type: "ct".into(),
            attributes,
        });
    }

    /// Of the connection as its first side dialled it, whatever it was translated to.
    fn original_destination(&mut self, family: Family) {
        let key = match family {
            Family::V4 => CT_KEY_DST_IP,
            Family::V6 => CT_KEY_DST_IP6,
        };
        self.ct(key, Some(CT_ORIGINAL));
    }

    fn has_state(&mut self, state: u32) {
        self.ct(CT_KEY_STATE, None);
        self.mask(&state.to_ne_bytes());
        self.compare(Operator::NotEqual, &[0; 4]);
    }

    fn limit(&mut self, a_second: u32) {
        let long = |kind, number: u64| DefaultNla::new(kind, number.to_be_bytes().to_vec());
        let burst = DefaultNla::new(3, a_second.to_be_bytes().to_vec());
        self.0.push(Expressions::Other {
            expression_type: "limit".into(),
            attributes: vec![long(1, a_second.into()), long(2, 1), burst],
        });
    }

    fn log(&mut self, prefix: &str, group: u16) {
        self.0.push(Expressions::Other {
            expression_type: "log".into(),
            attributes: vec![
                DefaultNla::new(1, group.to_be_bytes().to_vec()),
                DefaultNla::new(2, [prefix.as_bytes(), &[0]].concat()),
                DefaultNla::new(3, LOGGED_BYTES.to_be_bytes().to_vec()),
            ],
        });
    }

    fn verdict(&mut self, verdict: Vec<VerdictAttribute>) {
        self.immediate(Register::Verdict, DataAttribute::Verdict(verdict));
    }

    fn immediate(&mut self, register: Register, data: DataAttribute) {
        self.0.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(register),
            Immediate::Data(data),
        ]));
    }

    /// Address and port side by side, where a rule has seen that the packet is TCP of that family.
    fn source_of_known_kind(&mut self, family: Family) {
        let port_register = match family {
            Family::V4 => {
                self.load(NETWORK_HEADER, 12, 4);
                Register::Reg32_01
            }
            Family::V6 => {
                self.load(NETWORK_HEADER, 8, 16);
                Register::Reg2
            }
        };
        self.load_into(port_register, TRANSPORT_HEADER, 0, 2);
    }

    fn alter(&mut self, operation: u32, set: &str, millis: Option<u64>) {
        let number = |kind, number: u32| DefaultNla::new(kind, number.to_be_bytes().to_vec());
        let mut attributes = vec![
            DefaultNla::new(1, text(set)),
            number(3, operation),
            number(4, Register::Reg1.into()),
        ];
        attributes.extend(millis.map(|millis| DefaultNla::new(6, millis.to_be_bytes().to_vec())));
        self.0.push(Expressions::Other {
            expression_type: "dynset".into(),
            attributes,
        });
    }

    /// An expression that the netlink crate has no type for, all of whose attributes are numbers.
    fn add<const N: usize>(&mut self, name: &str, numbers: [(u16, u32); N]) {
        self.0.push(Expressions::Other {
            expression_type: name.into(),
            attributes: numbers
                .iter()
                .map(|(kind, number)| DefaultNla::new(*kind, number.to_be_bytes().to_vec()))
                .collect(),
        });
    }
}

const SOCKET_CGROUPV2: u32 = 3;
const LOOPBACK_INDEX: u32 = 1;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 1 << 1;
const RTN_LOCAL: u32 = 2;
const CT_KEY_STATE: u32 = 0;
const CT_KEY_STATUS: u32 = 2;
const CT_KEY_PROTO_SRC: u32 = 11;
const CT_KEY_PROTO_DST: u32 = 12;
const CT_KEY_DST_IP: u32 = 20;
const CT_KEY_DST_IP6: u32 = 22;
const CT_ORIGINAL: u8 = 0;
const CT_REPLY: u8 = 1;
const CT_STATUS_DNAT: u32 = 1 << 5;
const LOOKUP_INVERTED: u32 = 1;
const CT_STATE_UNTRACKED: u32 = 64;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;
const REJECT_TCP_RST: u32 = 1;

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
