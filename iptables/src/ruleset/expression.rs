//! The expressions of a rule of nftables: small instructions that move bytes between registers.

use std::borrow::Cow;

use super::{
    Data,
    attributes::{Attributes, string},
    xt::{IpMatch, XtMatch, XtTarget},
};

/// A part of the registers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub start: usize,
    pub length: usize,
}

/// All registers are this many bytes; `NFT_REG_1` begins after the verdict's sixteen.
pub(crate) const REGISTERS: usize = 80;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Continue,
    Return,
    Jump(String),
    Goto(String),
    /// To a program in user space, which decides.
    Queue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Link,
    Network,
    Transport,
    Inner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatKind {
    Source,
    Destination,
}

#[derive(Clone, Debug)]
pub enum Expression {
    Payload {
        base: Base,
        offset: usize,
        to: Extent,
    },
    /// Writes into the packet.
    SetPayload {
        base: Base,
        offset: usize,
        from: Extent,
    },
    Meta {
        key: u32,
        to: usize,
    },
    SetMeta {
        key: u32,
        from: usize,
    },
    Ct {
        key: u32,
        is_reply: bool,
        to: usize,
    },
    SetCt {
        key: u32,
        from: usize,
    },
    Socket {
        key: u32,
        level: u32,
        to: usize,
    },
    Fib {
        result: u32,
        flags: u32,
        to: usize,
    },
    Cmp {
        op: CmpOp,
        from: usize,
        value: Vec<u8>,
    },
    Range {
        is_negated: bool,
        from: usize,
        low: Vec<u8>,
        high: Vec<u8>,
    },
    Bitwise {
        from: Extent,
        to: usize,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    ByteOrder {
        from: Extent,
        to: usize,
        size: usize,
    },
    Lookup {
        set: String,
        from: usize,
        to: Option<usize>,
        is_negated: bool,
    },
    Immediate {
        to: usize,
        value: Vec<u8>,
    },
    Verdict(Verdict),
    Nat {
        kind: NatKind,
        /// As in `struct nfgenmsg`: 2 or 10.
        family: u32,
        address: Option<(usize, Option<usize>)>,
        port: Option<(usize, Option<usize>)>,
    },
    Redirect {
        port: Option<(usize, Option<usize>)>,
    },
    Masquerade,
    Tproxy {
        address: Option<usize>,
        port: Option<usize>,
    },
    Reject,
    Notrack,
    Counter,
    /// Changes nothing of where a connection goes: log, a named counter, and so on; in nft's words.
    NoEffect(Cow<'static, str>),
    /// Matches or not by something that no ruleset tells.
    Unpredictable(String),
    /// The IP header conditions of a rule of iptables-legacy.
    Ip(IpMatch),
    XtMatch(XtMatch),
    XtTarget(XtTarget),
}

/// Keys of `meta`.
pub mod meta {
    pub const PROTOCOL: u32 = 1;
    pub const MARK: u32 = 3;
    pub const IIF: u32 = 4;
    pub const OIF: u32 = 5;
    pub const IIFNAME: u32 = 6;
    pub const OIFNAME: u32 = 7;
    pub const SKUID: u32 = 10;
    pub const SKGID: u32 = 11;
    pub const NFPROTO: u32 = 15;
    pub const L4PROTO: u32 = 16;
    pub const CGROUP: u32 = 23;
}

/// Keys of `ct`.
pub mod ct {
    pub const STATE: u32 = 0;
    pub const DIRECTION: u32 = 1;
    pub const STATUS: u32 = 2;
    pub const MARK: u32 = 3;
    pub const L3PROTOCOL: u32 = 7;
    pub const SRC: u32 = 8;
    pub const DST: u32 = 9;
    pub const PROTOCOL: u32 = 10;
    pub const PROTO_SRC: u32 = 11;
    pub const PROTO_DST: u32 = 12;
    pub const ZONE: u32 = 17;
    pub const SRC_IP: u32 = 19;
    pub const DST_IP: u32 = 20;
    pub const SRC_IP6: u32 = 21;
    pub const DST_IP6: u32 = 22;
}

impl Expression {
    /// From a member of `NFTA_RULE_EXPRESSIONS`. What is not understood is [`Self::Unpredictable`]
    /// under its own name.
    pub(super) fn decode(attributes: Attributes<'_>) -> Self {
        let name = attributes.string(1).unwrap_or_default();
        decode(&name, attributes.nested(2)).unwrap_or(Self::Unpredictable(name))
    }
}

fn decode(name: &str, a: Attributes<'_>) -> Option<Expression> {
    use Expression as E;
    Some(match name {
        "payload" => {
            let base = match a.u32(2)? {
                0 => Base::Link,
                1 => Base::Network,
                2 => Base::Transport,
                _ => Base::Inner,
            };
            let offset = a.u32(3)? as usize;
            let extent = |number: u32| -> Option<Extent> {
                within(Extent {
                    start: register(number)?,
                    length: a.u32(4)? as usize,
                })
            };
            match (a.u32(1), a.u32(5)) {
                (Some(to), _) => E::Payload {
                    base,
                    offset,
                    to: extent(to)?,
                },
                (None, from) => E::SetPayload {
                    base,
                    offset,
                    from: extent(from?)?,
                },
            }
        }
        "meta" => match (a.u32(1), a.u32(3)) {
            (Some(to), _) => E::Meta {
                key: a.u32(2)?,
                to: register(to)?,
            },
            (None, from) => E::SetMeta {
                key: a.u32(2)?,
                from: register(from?)?,
            },
        },
        "ct" => match (a.u32(1), a.u32(4)) {
            (Some(to), _) => E::Ct {
                key: a.u32(2)?,
                is_reply: a.find(3) == Some(&[1]),
                to: register(to)?,
            },
            (None, from) => E::SetCt {
                key: a.u32(2)?,
                from: register(from?)?,
            },
        },
        "socket" => E::Socket {
            key: a.u32(1)?,
            level: a.u32(3).unwrap_or(0),
            to: register(a.u32(2)?)?,
        },
        "fib" => E::Fib {
            result: a.u32(2)?,
            flags: a.u32(3)?,
            to: register(a.u32(1)?)?,
        },
        "cmp" => E::Cmp {
            op: match a.u32(2)? {
                0 => CmpOp::Eq,
                1 => CmpOp::Ne,
                2 => CmpOp::Lt,
                3 => CmpOp::Le,
                4 => CmpOp::Gt,
                5 => CmpOp::Ge,
                _ => return None,
            },
            from: register(a.u32(1)?)?,
            value: value(a.nested(3))?,
        },
        "range" => E::Range {
            is_negated: a.u32(2)? == 1,
            from: register(a.u32(1)?)?,
            low: value(a.nested(3))?,
            high: value(a.nested(4))?,
        },
        "bitwise" if a.u32(6).unwrap_or(0) == 0 => E::Bitwise {
            from: within(Extent {
                start: register(a.u32(1)?)?,
                length: a.u32(3)? as usize,
            })?,
            to: register(a.u32(2)?)?,
            mask: value(a.nested(4))?,
            xor: value(a.nested(5))?,
        },
        "byteorder" => E::ByteOrder {
            from: within(Extent {
                start: register(a.u32(1)?)?,
                length: a.u32(4)? as usize,
            })?,
            to: register(a.u32(2)?)?,
            size: a.u32(5)? as usize,
        },
        "lookup" => E::Lookup {
            set: a.string(1)?,
            from: register(a.u32(2)?)?,
            to: match a.u32(3) {
                Some(number) => Some(register_or_verdict(number)?),
                None => None,
            },
            is_negated: a.u32(5).unwrap_or(0) & 1 != 0,
        },
        "immediate" => match data(a.nested(2))? {
            Data::Verdict(verdict) => E::Verdict(verdict),
            Data::Value(value) => E::Immediate {
                to: register(a.u32(1)?)?,
                value,
            },
        },
        "nat" => E::Nat {
            kind: if a.u32(1)? == 0 {
                NatKind::Source
            } else {
                NatKind::Destination
            },
            family: a.u32(2)?,
            address: pair(a, 3, 4)?,
            port: chosen(pair(a, 5, 6)?, a.u32(7))?,
        },
        "redir" => E::Redirect {
            port: chosen(pair(a, 1, 2)?, a.u32(3))?,
        },
        "masq" => E::Masquerade,
        "tproxy" => E::Tproxy {
            address: a.u32(2).and_then(register),
            port: a.u32(3).and_then(register),
        },
        "reject" => E::Reject,
        "notrack" => E::Notrack,
        "counter" => E::Counter,
        "queue" => E::Verdict(Verdict::Queue),
        "log" => E::NoEffect("log".into()),
        "last" => E::NoEffect("last".into()),
        "dup" => E::NoEffect("dup".into()),
        "objref" => E::NoEffect(harmless_object(a.u32(1)?, &a.string(2)?)?.into()),
        "match" => E::XtMatch(XtMatch::decode(&a.string(1)?, revision(a)?, a.find(3)?)),
        "target" => E::XtTarget(XtTarget::decode(&a.string(1)?, revision(a)?, a.find(3)?)),
        _ => return None,
    })
}

/// A named object of the table, `NFT_OBJECT_…`. Quotas and limits end the rule when they are used up.
fn harmless_object(kind: u32, name: &str) -> Option<String> {
    Some(match kind {
        1 => format!("counter name \"{name}\""),
        3 => format!("ct helper set \"{name}\""),
        7 => format!("ct timeout set \"{name}\""),
        8 => format!("meta secmark set \"{name}\""),
        _ => return None,
    })
}

fn revision(a: Attributes<'_>) -> Option<u8> {
    a.u32(2).and_then(|r| u8::try_from(r).ok())
}

/// A pair of registers of which the second says the same as the first, or more.
#[expect(clippy::option_option, reason = "malformed, absent, present")]
fn pair(a: Attributes<'_>, low: u16, high: u16) -> Option<Option<(usize, Option<usize>)>> {
    let Some(first) = a.u32(low) else {
        return Some(None);
    };
    let second = match a.u32(high) {
        Some(number) => Some(register(number)?),
        None => None,
    };
    Some(Some((register(first)?, second)))
}

/// `None`: of these ports a random one.
#[expect(clippy::option_option, reason = "random, absent, present")]
fn chosen(
    port: Option<(usize, Option<usize>)>,
    flags: Option<u32>,
) -> Option<Option<(usize, Option<usize>)>> {
    const RANDOM: u32 = 4 | 16;
    let is_random = flags.unwrap_or(0) & RANDOM != 0;
    let is_range = port.is_some_and(|(low, high)| high.is_some_and(|high| high != low));
    (!(is_random && is_range)).then_some(port)
}

/// Offset in bytes of what nftables numbers: 1 to 4 are registers of sixteen bytes, 8 to 23 of four.
fn register(number: u32) -> Option<usize> {
    match number {
        1..=4 => Some(number as usize * 16),
        8..=23 => Some(16 + (number as usize - 8) * 4),
        _ => None,
    }
}

fn register_or_verdict(number: u32) -> Option<usize> {
    if number == 0 {
        Some(0)
    } else {
        register(number)
    }
}

fn within(extent: Extent) -> Option<Extent> {
    (extent.length > 0 && extent.start + extent.length <= REGISTERS).then_some(extent)
}

pub(super) fn value(a: Attributes<'_>) -> Option<Vec<u8>> {
    match data(a)? {
        Data::Value(value) => Some(value),
        Data::Verdict(_) => None,
    }
}

/// `NFTA_DATA_…`.
pub(super) fn data(a: Attributes<'_>) -> Option<Data> {
    if let Some(bytes) = a.find(1) {
        return (bytes.len() <= 64).then(|| Data::Value(bytes.to_vec()));
    }
    let verdict = a.nested(2);
    let chain = || verdict.find(2).map(string);
    Some(Data::Verdict(match verdict.u32(1)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        code if code & 0xff == 3 => Verdict::Queue,
        _ => return None,
    }))
}
