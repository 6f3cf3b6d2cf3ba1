//! A planned table as netlink messages. Numbers are those of the kernel's
//! `include/uapi/linux/netfilter/nf_tables.h`; the expressions are those that `nft --debug=netlink`
//! shows for the same text, so that both list alike.

use std::net::IpAddr;

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_NONREC,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions,
    Hook as HookAttribute, Immediate, InetHookNumber, ListAttribute, Lookup, Meta, MetaKey,
    NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, SetAttribute,
    SetDescription, SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage,
    SetFlags, SetMessage, TableAttribute, TableFlags, TableMessage, Verdict as Code,
    VerdictAttribute,
};

use super::socket::Step;
use crate::plan::{
    Chain, Elements, Family, Hook, HookKind, Intervals, LEASES_SIZE, LOGGED_BYTES, LOGS_A_SECOND,
    Match, Place, Rule, Set, Table, Timeout, Verdict, is_host, log_prefix, sources_size,
};

pub(super) type ExpressionList = Vec<ListAttribute<ExpressionAttribute>>;

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

/// `enum nft_nat_types`: of the destination.
const NAT_DESTINATION: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const UDP_HEADER: u32 = 8;
const DYNSET_ADD: u32 = 0;
const DYNSET_UPDATE: u32 = 1;
const DYNSET_DELETE: u32 = 2;
/// `enum ip_conntrack_info`'s bit for a connection that has seen both directions.
const CT_STATE_ESTABLISHED: u32 = 2;

pub(super) fn expressions(rule: &Rule) -> ExpressionList {
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
