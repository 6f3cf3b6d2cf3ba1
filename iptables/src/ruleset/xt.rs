//! Matches and targets of iptables: the C structures that both of its backends hand over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{NatKind, attributes::string};

/// Inclusive; `is_negated` turns it round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub low: u16,
    pub high: u16,
    pub is_negated: bool,
}

/// `struct ipt_ip` or `ip6t_ip6`: what `-s -d -i -o -p` say.
#[derive(Clone, Debug)]
pub struct IpMatch {
    pub source: (IpAddr, IpAddr, bool),
    pub destination: (IpAddr, IpAddr, bool),
    pub input: (String, bool),
    pub output: (String, bool),
    /// 0: any.
    pub protocol: (u16, bool),
    pub fragments_only: bool,
}

#[derive(Clone, Debug)]
pub enum XtMatch {
    Tcp {
        source: PortRange,
        destination: PortRange,
        option: Option<(u8, bool)>,
        /// Mask, value, negated.
        flags: (u8, u8, bool),
    },
    /// Never of a TCP connection.
    OtherProtocol(&'static str),
    MultiPort {
        /// 0: source, 1: destination, 2: either.
        which: u8,
        ranges: Vec<(u16, u16)>,
        is_negated: bool,
    },
    Owner {
        uid: Option<(u32, u32, bool)>,
        gid: Option<(u32, u32, bool)>,
        /// With the groups that a process has besides.
        with_groups: bool,
        /// Whether there is a socket at all.
        socket: Option<bool>,
    },
    Mark {
        mark: u32,
        mask: u32,
        is_negated: bool,
    },
    ConnMark {
        mark: u32,
        mask: u32,
        is_negated: bool,
    },
    State {
        bits: u32,
        is_negated: bool,
    },
    ConnTrack {
        match_flags: u16,
        invert_flags: u16,
        /// Original source and destination, the reply's source and destination: address and mask.
        addresses: [(Vec<u8>, Vec<u8>); 4],
        protocol: u16,
        /// In the same order.
        ports: [(u16, u16); 4],
        state: u32,
        status: u32,
    },
    AddrType {
        source: u16,
        destination: u16,
        source_inverted: bool,
        destination_inverted: bool,
        limits_interface: bool,
    },
    IpRange {
        source: Option<(IpAddr, IpAddr, bool)>,
        destination: Option<(IpAddr, IpAddr, bool)>,
    },
    CgroupPath {
        path: String,
        is_negated: bool,
    },
    CgroupClass {
        id: u32,
        is_negated: bool,
    },
    Comment(String),
    Unknown(String),
}

/// Addresses and ports that a connection's end may become; a pair is a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    pub address: Option<(IpAddr, IpAddr)>,
    pub port: Option<(u16, u16)>,
    /// Which port of the range is taken is not its first: shifted, or random.
    pub is_offset: bool,
}

#[derive(Clone, Debug)]
pub enum XtTarget {
    Redirect(Nat),
    Nat(NatKind, Nat),
    Masquerade,
    Mark {
        mark: u32,
        mask: u32,
    },
    ConnMark {
        mode: u8,
        ct_mark: u32,
        ct_mask: u32,
        packet_mask: u32,
        is_shifted: bool,
    },
    Reject,
    Notrack,
    Tproxy {
        mark_mask: u32,
        mark: u32,
        address: Vec<u8>,
        port: u16,
    },
    /// Changes nothing of where a connection goes.
    NoEffect(String),
    Unknown(String),
}

const F_INVERT_SOURCE: u8 = 0x08;
const F_INVERT_DESTINATION: u8 = 0x10;

impl IpMatch {
    /// `struct ipt_ip` or `struct ip6t_ip6`.
    pub(super) fn decode(bytes: &[u8], is_v6: bool) -> Option<Self> {
        let (width, interfaces) = if is_v6 { (16, 64) } else { (4, 16) };
        let address = |n: usize| ip(bytes.get(n * width..(n + 1) * width)?, is_v6);
        let tail = interfaces + 64;
        let (flags, invert) = if is_v6 {
            (tail + 3, tail + 4)
        } else {
            (tail + 2, tail + 3)
        };
        let invert = *bytes.get(invert)?;
        // The order is source, destination, their masks; the name and then the mask of each interface.
        let interface = |n: usize| -> Option<String> {
            let name = bytes.get(interfaces + n * 16..interfaces + n * 16 + 16)?;
            let mask = bytes.get(interfaces + 32 + n * 16..interfaces + 48 + n * 16)?;
            let name = string(name);
            let covered = mask.iter().filter(|b| **b != 0).count();
            Some(match covered {
                0 => String::new(),
                // The zero that ends the name is covered where the whole name counts.
                n if n > name.len() => name,
                // The plus sign itself stays in the name, uncovered.
                n => name.get(..n)?.to_owned() + "+",
            })
        };
        Some(Self {
            source: (address(0)?, address(2)?, invert & F_INVERT_SOURCE != 0),
            destination: (address(1)?, address(3)?, invert & F_INVERT_DESTINATION != 0),
            input: (interface(0)?, invert & 0x01 != 0),
            output: (interface(1)?, invert & 0x02 != 0),
            protocol: (u16_at(bytes, tail)?, invert & 0x40 != 0),
            fragments_only: !is_v6 && bytes.get(flags)? & 1 != 0,
        })
    }
}

impl XtMatch {
    pub(super) fn decode(name: &str, revision: u8, bytes: &[u8]) -> Self {
        decode_match(name, revision, bytes).unwrap_or_else(|| Self::Unknown(name.to_owned()))
    }
}

fn decode_match(name: &str, revision: u8, b: &[u8]) -> Option<XtMatch> {
    Some(match (name, revision) {
        ("tcp", 0) => {
            let invert = *b.get(11)?;
            let range = |at, bit| -> Option<PortRange> {
                Some(PortRange {
                    low: u16_at(b, at)?,
                    high: u16_at(b, at + 2)?,
                    is_negated: invert & bit != 0,
                })
            };
            XtMatch::Tcp {
                source: range(0, 1)?,
                destination: range(4, 2)?,
                option: (b[8] != 0).then_some((b[8], invert & 8 != 0)),
                flags: (b[9], b[10], invert & 4 != 0),
            }
        }
        ("udp", _) => XtMatch::OtherProtocol("udp"),
        ("icmp", _) => XtMatch::OtherProtocol("icmp"),
        ("icmp6", _) => XtMatch::OtherProtocol("icmp6"),
        ("sctp", _) => XtMatch::OtherProtocol("sctp"),
        ("multiport", 1) => {
            let (which, count) = (*b.first()?, usize::from(*b.get(1)?).min(15));
            let mut ranges = Vec::new();
            let mut n = 0;
            while n < count {
                let low = u16_at(b, 2 + 2 * n)?;
                // A flag marks the beginning of a range, whose end is the next member.
                let is_range = *b.get(32 + n)? != 0;
                n += usize::from(is_range);
                ranges.push((low, u16_at(b, 2 + 2 * n)?));
                n += 1;
            }
            XtMatch::MultiPort {
                which,
                ranges,
                is_negated: *b.get(47)? != 0,
            }
        }
        ("owner", 1) => {
            let (kinds, invert) = (*b.get(16)?, *b.get(17)?);
            let range = |bit, at| -> Option<_> {
                Some((kinds & bit != 0).then_some((
                    u32_at(b, at)?,
                    u32_at(b, at + 4)?,
                    invert & bit != 0,
                )))
            };
            XtMatch::Owner {
                uid: range(1, 0)?,
                gid: range(2, 8)?,
                with_groups: kinds & 8 != 0,
                socket: (kinds & 4 != 0).then_some(invert & 4 == 0),
            }
        }
        ("mark", 1) => XtMatch::Mark {
            mark: u32_at(b, 0)?,
            mask: u32_at(b, 4)?,
            is_negated: *b.get(8)? != 0,
        },
        ("connmark", 1) => XtMatch::ConnMark {
            mark: u32_at(b, 0)?,
            mask: u32_at(b, 4)?,
            is_negated: *b.get(8)? != 0,
        },
        ("state", 0) => XtMatch::State {
            bits: u32_at(b, 0)?,
            is_negated: false,
        },
        ("conntrack", 2 | 3) => {
            let part = |n: usize| b.get(n * 16..(n + 1) * 16).map(<[u8]>::to_vec);
            // Revision 3 has the low ends here, and the high ends after the rest; 2 is in network order.
            let port = |at: usize, high: usize| -> Option<(u16, u16)> {
                if revision == 3 {
                    Some((u16_at(b, at)?, u16_at(b, high)?))
                } else {
                    let port = u16_at(b, at)?.swap_bytes();
                    Some((port, port))
                }
            };
            XtMatch::ConnTrack {
                addresses: [
                    (part(0)?, part(1)?),
                    (part(2)?, part(3)?),
                    (part(4)?, part(5)?),
                    (part(6)?, part(7)?),
                ],
                protocol: u16_at(b, 136)?,
                ports: [
                    port(138, 154)?,
                    port(140, 156)?,
                    port(142, 158)?,
                    port(144, 160)?,
                ],
                status: u16_at(b, 152)?.into(),
                match_flags: u16_at(b, 146)?,
                invert_flags: u16_at(b, 148)?,
                state: u16_at(b, 150)?.into(),
            }
        }
        ("addrtype", 0) => XtMatch::AddrType {
            source: u16_at(b, 0)?,
            destination: u16_at(b, 2)?,
            source_inverted: u32_at(b, 4)? != 0,
            destination_inverted: u32_at(b, 8)? != 0,
            limits_interface: false,
        },
        ("addrtype", 1) => {
            let flags = u32_at(b, 4)?;
            XtMatch::AddrType {
                source: u16_at(b, 0)?,
                destination: u16_at(b, 2)?,
                source_inverted: flags & 1 != 0,
                destination_inverted: flags & 2 != 0,
                limits_interface: flags & 12 != 0,
            }
        }
        ("iprange", 1) => {
            let flags = *b.get(64)?;
            // The structure does not tell the family; an IPv4 address leaves the rest zero, as in the
            // comparison of the kernel for either family.
            let range = |low: usize, bit: u8, not: u8| -> Option<_> {
                let bound = |at: usize| unspecific_ip(b.get(at..at + 16)?);
                Some((flags & bit != 0).then_some((
                    bound(low)?,
                    bound(low + 16)?,
                    flags & not != 0,
                )))
            };
            XtMatch::IpRange {
                source: range(0, 1, 16)?,
                destination: range(32, 2, 32)?,
            }
        }
        ("cgroup", 0) => XtMatch::CgroupClass {
            id: u32_at(b, 0)?,
            is_negated: u32_at(b, 4)? != 0,
        },
        ("cgroup", 1 | 2) => {
            if *b.first()? != 0 {
                let length = if revision == 1 { 4096 } else { 512 };
                XtMatch::CgroupPath {
                    path: string(b.get(4..4 + length)?),
                    is_negated: b[2] != 0,
                }
            } else {
                let at = if revision == 1 { 4 + 4096 } else { 4 };
                XtMatch::CgroupClass {
                    id: u32_at(b, at)?,
                    is_negated: *b.get(3)? != 0,
                }
            }
        }
        ("comment", _) => XtMatch::Comment(string(b)),
        _ => return None,
    })
}

impl XtTarget {
    pub(super) fn decode(name: &str, revision: u8, bytes: &[u8]) -> Self {
        decode_target(name, revision, bytes).unwrap_or_else(|| Self::Unknown(name.to_owned()))
    }
}

fn decode_target(name: &str, revision: u8, b: &[u8]) -> Option<XtTarget> {
    Some(match (name, revision) {
        // nf_nat_ipv4_multi_range_compat, or for IPv6 nf_nat_range.
        ("REDIRECT", 0) if b.len() < 40 => XtTarget::Redirect(nat_v4(b)?),
        ("REDIRECT", 0) => XtTarget::Redirect(nat_range(b, Some(false))?),
        ("DNAT", 0) => XtTarget::Nat(NatKind::Destination, nat_v4(b)?),
        ("DNAT", 1 | 2) => XtTarget::Nat(NatKind::Destination, nat_range(b, None)?),
        ("SNAT", 0) => XtTarget::Nat(NatKind::Source, nat_v4(b)?),
        ("SNAT", 1 | 2) => XtTarget::Nat(NatKind::Source, nat_range(b, None)?),
        ("MASQUERADE", _) => XtTarget::Masquerade,
        ("MARK", 2) => XtTarget::Mark {
            mark: u32_at(b, 0)?,
            mask: u32_at(b, 4)?,
        },
        ("CONNMARK", 1 | 2) => XtTarget::ConnMark {
            ct_mark: u32_at(b, 0)?,
            ct_mask: u32_at(b, 4)?,
            packet_mask: u32_at(b, 8)?,
            mode: *b.get(if revision == 1 { 12 } else { 14 })?,
            is_shifted: revision == 2 && *b.get(13)? != 0,
        },
        ("REJECT", _) => XtTarget::Reject,
        ("NOTRACK", _) => XtTarget::Notrack,
        ("CT", _) if u16_at(b, 0)? & 1 != 0 => XtTarget::Notrack,
        ("TPROXY", 0) => XtTarget::Tproxy {
            mark_mask: u32_at(b, 0)?,
            mark: u32_at(b, 4)?,
            address: b.get(8..12)?.to_vec(),
            port: u16_at(b, 12)?.swap_bytes(),
        },
        ("TPROXY", 1) => XtTarget::Tproxy {
            mark_mask: u32_at(b, 0)?,
            mark: u32_at(b, 4)?,
            address: b.get(8..24)?.to_vec(),
            port: u16_at(b, 24)?.swap_bytes(),
        },
        (
            "LOG" | "NFLOG" | "TRACE" | "CLASSIFY" | "TCPMSS" | "TOS" | "DSCP" | "TTL" | "HL"
            | "CT" | "SECMARK" | "CONNSECMARK" | "CHECKSUM" | "ECN" | "AUDIT" | "TEE" | "ULOG"
            | "IDLETIMER" | "LED" | "RATEEST" | "SET",
            _,
        ) if !ends_life(name, b)? => XtTarget::NoEffect(name.to_owned()),
        _ => return None,
    })
}

/// Whether a target may leave a packet too few hops to arrive: all but setting more than one, and
/// adding.
fn ends_life(name: &str, b: &[u8]) -> Option<bool> {
    Some(match name {
        "TTL" | "HL" => !matches!((*b.first()?, *b.get(1)?), (0, 2..) | (1, _)),
        _ => false,
    })
}

fn nat_v4(b: &[u8]) -> Option<Nat> {
    let flags = u32_at(b, 4)?;
    let address = |at: usize| ip(b.get(at..at + 4)?, false);
    let port = |at| u16_at(b, at).map(u16::swap_bytes);
    nat(flags, (address(8)?, address(12)?), (port(16)?, port(18)?))
}

/// `struct nf_nat_range` or `nf_nat_range2`. `is_v4`: known; otherwise told by the address.
fn nat_range(b: &[u8], is_v4: Option<bool>) -> Option<Nat> {
    let address = |at: usize| {
        let bytes = b.get(at..at + 16)?;
        if is_v4 == Some(false) {
            ip(bytes, true)
        } else {
            unspecific_ip(bytes)
        }
    };
    let port = |at| u16_at(b, at).map(u16::swap_bytes);
    nat(
        u32_at(b, 0)?,
        (address(4)?, address(20)?),
        (port(36)?, port(38)?),
    )
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "its callers pass on what they could not read"
)]
fn nat(flags: u32, address: (IpAddr, IpAddr), port: (u16, u16)) -> Option<Nat> {
    Some(Nat {
        address: (flags & 1 != 0).then_some(address),
        port: (flags & 2 != 0).then_some(port),
        is_offset: flags & 0x60 != 0 || flags & 0x14 != 0 && port.0 != port.1,
    })
}

/// Of a union that holds either family: an IPv6 address beginning with its last twelve bytes zero is
/// not one that a host has.
fn unspecific_ip(bytes: &[u8]) -> Option<IpAddr> {
    let is_v4 = bytes.get(4..16)?.iter().all(|b| *b == 0);
    ip(if is_v4 { &bytes[..4] } else { bytes }, !is_v4)
}

fn ip(bytes: &[u8], is_v6: bool) -> Option<IpAddr> {
    if is_v6 {
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
    } else {
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into())
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
