//! Matches and targets of iptables against a packet.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Not,
    rc::Rc,
};

use super::{
    Surroundings,
    machine::{Action, redirect_address},
    packet::{Known, Packet},
};
use crate::ruleset::{IpMatch, Nat, NatKind, PortRange, XtMatch, XtTarget};

/// Whether a condition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tri {
    Yes,
    No(String),
    Unknown(String),
}

impl Tri {
    fn of(is_so: bool, why_not: impl FnOnce() -> String) -> Self {
        if is_so {
            Self::Yes
        } else {
            Self::No(why_not())
        }
    }

    fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Yes => other(),
            Self::No(_) => self,
            Self::Unknown(_) => match other() {
                Self::No(reason) => Self::No(reason),
                _ => self,
            },
        }
    }
}

pub(super) fn ip(conditions: &IpMatch, packet: &Packet<'_>) -> Tri {
    let to = packet.destination.ip();
    let address = |ip: IpAddr, (net, mask, not): (IpAddr, IpAddr, bool), what: &str| {
        Tri::of(
            masked(ip, mask) == net && !not || masked(ip, mask) != net && not,
            || format!("the {what} address is {ip}"),
        )
    };
    let device = |found: &Option<(String, u32)>, (name, not): &(String, bool), what: &str| {
        let found = found.as_ref().map_or("", |d| d.0.as_str());
        let is_it = match name.strip_suffix('+') {
            Some(start) => found.starts_with(start),
            None => name.is_empty() || found == name,
        };
        Tri::of(is_it != *not, || {
            format!("the {what} device is \"{found}\"")
        })
    };
    let (protocol, not) = conditions.protocol;
    address(packet.source, conditions.source, "source")
        .and(|| address(to, conditions.destination, "destination"))
        .and(|| device(&packet.input, &conditions.input, "input"))
        .and(|| device(&packet.output, &conditions.output, "output"))
        .and(|| {
            Tri::of(protocol == 0 || (protocol == 6) != not, || {
                "the protocol is tcp".into()
            })
        })
        .and(|| Tri::of(!conditions.fragments_only, || "it is no fragment".into()))
}

pub(super) fn condition(
    condition: &XtMatch,
    packet: &Packet<'_>,
    surroundings: &dyn Surroundings,
) -> Tri {
    const SYN: u8 = 2;
    let source_port = packet
        .connection
        .source_port
        .filter(|_| !packet.is_source_changed);
    let port = packet.destination.port();
    let no_port = || Tri::Unknown("the source port, which the kernel chooses".into());
    match condition {
        XtMatch::Tcp {
            source,
            destination,
            option,
            flags,
        } => {
            let (mask, value, not) = *flags;
            Tri::of(within(*destination, port), || {
                format!("the destination port is {port}")
            })
            .and(|| {
                Tri::of(((SYN & mask) == value) != not, || {
                    "the flags are those of a SYN".into()
                })
            })
            .and(|| match source_port {
                _ if is_any(*source) => Tri::Yes,
                Some(port) => Tri::of(within(*source, port), || {
                    format!("the source port is {port}")
                }),
                None => no_port(),
            })
            .and(|| match option {
                Some(_) => Tri::Unknown("TCP options".into()),
                None => Tri::Yes,
            })
        }
        XtMatch::OtherProtocol(name) => Tri::No(format!("it is not {name}")),
        XtMatch::MultiPort {
            which,
            ranges,
            is_negated,
        } => {
            let has = |port: u16| {
                ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&port))
            };
            match (which, source_port) {
                (1, _) => Tri::of(has(port) != *is_negated, || {
                    format!("the destination port is {port}")
                }),
                (0, Some(source)) => Tri::of(has(source) != *is_negated, || {
                    format!("the source port is {source}")
                }),
                (0, None) => no_port(),
                // Either: one that is known may decide.
                (_, None) if has(port) => {
                    Tri::of(!is_negated, || format!("the destination port is {port}"))
                }
                (_, None) => no_port(),
                (_, Some(source)) => Tri::of((has(port) || has(source)) != *is_negated, || {
                    format!("the ports are {source} and {port}")
                }),
            }
        }
        XtMatch::Owner {
            uid,
            gid,
            with_groups,
            socket,
        } => {
            if !packet.has_socket() {
                return Tri::of(*socket == Some(false), || {
                    format!("there is no owner in {}", packet.hook)
                });
            }
            let connection = packet.connection;
            let range = |range: Option<(u32, u32, bool)>, ids: &[u32], what: &str| match range {
                None => Tri::Yes,
                Some((low, high, not)) => {
                    let is_in = ids.iter().any(|id| (low..=high).contains(id));
                    Tri::of(is_in != not, || format!("the {what} is {}", ids[0]))
                }
            };
            let mut groups = vec![connection.gid];
            if *with_groups {
                groups.extend(&connection.groups);
            }
            Tri::of(*socket != Some(false), || "it has a socket".into())
                .and(|| range(*uid, &[connection.uid], "user"))
                .and(|| range(*gid, &groups, "group"))
        }
        XtMatch::Mark {
            mark,
            mask,
            is_negated,
        } => number(&packet.mark, *mark, *mask, *is_negated, "mark"),
        XtMatch::ConnMark { .. } if !packet.is_tracked() => {
            Tri::No("conntrack does not know it here".into())
        }
        XtMatch::ConnMark {
            mark,
            mask,
            is_negated,
        } => number(
            &packet.ct_mark,
            *mark,
            *mask,
            *is_negated,
            "connection mark",
        ),
        XtMatch::State { bits, is_negated } => state(*bits, *is_negated, packet),
        XtMatch::ConnTrack { .. } => conntrack(condition, packet),
        XtMatch::AddrType {
            source,
            destination,
            source_inverted,
            destination_inverted,
            limits_interface,
        } => {
            if *limits_interface {
                return Tri::Unknown("`addrtype --limit-iface`".into());
            }
            let kind = |ip: IpAddr, mask: u16, not: bool, what: &str| match surroundings
                .address_type(ip)
            {
                _ if mask == 0 => Tri::Yes,
                None => Tri::Unknown(format!("the type of address {ip}")),
                Some(kind) => {
                    let is_in = 1_u32.checked_shl(kind.into()).unwrap_or(0) & u32::from(mask) != 0;
                    Tri::of(is_in != not, || {
                        format!("the {what} address {ip} is of type {}", type_name(kind))
                    })
                }
            };
            kind(packet.source, *source, *source_inverted, "source").and(|| {
                kind(
                    packet.destination.ip(),
                    *destination,
                    *destination_inverted,
                    "destination",
                )
            })
        }
        XtMatch::IpRange {
            source,
            destination,
        } => {
            let range = |ip: IpAddr, range: Option<(IpAddr, IpAddr, bool)>, what: &str| match range
            {
                None => Tri::Yes,
                Some((low, high, not)) => Tri::of((low <= ip && ip <= high) != not, || {
                    format!("the {what} address is {ip}")
                }),
            };
            range(packet.source, *source, "source")
                .and(|| range(packet.destination.ip(), *destination, "destination"))
        }
        XtMatch::CgroupPath { path, is_negated } => {
            if !packet.has_socket() {
                return Tri::No(format!("there is no socket in {}", packet.hook));
            }
            match &packet.connection.cgroup {
                None => Tri::Unknown("the cgroup of the connecting process".into()),
                Some(cgroup) => {
                    let wanted = path.trim_matches('/');
                    let own = cgroup.path.trim_matches('/');
                    let is_under = wanted.is_empty()
                        || own == wanted
                        || own
                            .strip_prefix(wanted)
                            .is_some_and(|rest| rest.starts_with('/'));
                    Tri::of(is_under != *is_negated, || {
                        format!("the cgroup is {}", cgroup.path)
                    })
                }
            }
        }
        XtMatch::CgroupClass { .. } => Tri::Unknown("the class of net_cls".into()),
        XtMatch::Comment(_) => Tri::Yes,
        XtMatch::Unknown(name) => Tri::Unknown(format!("match `{name}`")),
    }
}

/// Bits of `--ctstate` and `--state`.
const INVALID: u32 = 1;
const NEW: u32 = 8;
const SNAT: u32 = 1 << 6;
const DNAT: u32 = 1 << 7;
const UNTRACKED: u32 = 1 << 8;

fn state(bits: u32, is_negated: bool, packet: &Packet<'_>) -> Tri {
    // `state` and `conntrack` number the bit of UNTRACKED alike; only the latter knows SNAT, DNAT.
    let found = if packet.is_untracked {
        UNTRACKED
    } else if packet.is_tracked() {
        let mut found = NEW;
        found |= if packet.redirected_by.is_some() {
            DNAT
        } else {
            0
        };
        found | if packet.is_source_changed { SNAT } else { 0 }
    } else {
        INVALID
    };
    Tri::of((found & bits != 0) != is_negated, || {
        let name = if packet.is_untracked {
            "UNTRACKED"
        } else if packet.is_tracked() {
            "NEW"
        } else {
            "INVALID"
        };
        format!("the connection is {name}")
    })
}

fn conntrack(condition: &XtMatch, packet: &Packet<'_>) -> Tri {
    const STATE: u16 = 1;
    const PROTOCOL: u16 = 2;
    const ORIGINAL_SOURCE: u16 = 4;
    const ORIGINAL_DESTINATION: u16 = 8;
    const ORIGINAL_SOURCE_PORT: u16 = 1 << 8;
    const ORIGINAL_DESTINATION_PORT: u16 = 1 << 9;
    const REPLY_SOURCE: u16 = 16;
    const REPLY_DESTINATION: u16 = 32;
    const STATUS: u16 = 64;
    const REPLY_SOURCE_PORT: u16 = 1 << 10;
    const REPLY_DESTINATION_PORT: u16 = 1 << 11;
    const DIRECTION: u16 = 1 << 12;
    const STATE_ALIAS: u16 = 1 << 13;
    let XtMatch::ConnTrack {
        match_flags,
        invert_flags,
        addresses,
        protocol,
        ports,
        state: bits,
        status,
    } = condition
    else {
        return Tri::Unknown("`conntrack`".into());
    };
    let asks = |bit: u16| match_flags & bit != 0;
    let negated = |bit: u16| invert_flags & bit != 0;
    let mut found = if asks(STATE) {
        state(*bits, negated(STATE), packet)
    } else {
        Tri::Yes
    };
    if !packet.is_tracked() {
        return found.and(|| {
            Tri::of(match_flags & !(STATE | STATE_ALIAS) == 0, || {
                "conntrack does not know it here".into()
            })
        });
    }
    let known = STATE
        | PROTOCOL
        | ORIGINAL_SOURCE
        | ORIGINAL_DESTINATION
        | ORIGINAL_SOURCE_PORT
        | ORIGINAL_DESTINATION_PORT
        | REPLY_SOURCE
        | REPLY_DESTINATION
        | REPLY_SOURCE_PORT
        | REPLY_DESTINATION_PORT
        | STATUS
        | DIRECTION
        | STATE_ALIAS;
    if match_flags & !known != 0 {
        found = found.and(|| Tri::Unknown("`conntrack` beyond state, status and addresses".into()));
    }
    let sides = [
        (ORIGINAL_SOURCE, packet.original_source),
        (ORIGINAL_DESTINATION, packet.original.ip()),
        // A reply comes from where the connection was turned to.
        (REPLY_SOURCE, packet.destination.ip()),
        (REPLY_DESTINATION, packet.source),
    ];
    for ((bit, ip), (net, mask)) in sides.into_iter().zip(addresses) {
        if asks(bit) {
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let is_in = octets
                .iter()
                .zip(mask)
                .zip(net)
                .all(|((o, m), n)| o & m == *n);
            found = found.and(|| {
                Tri::of(is_in != negated(bit), || {
                    format!("the address that conntrack keeps is {ip}")
                })
            });
        }
    }
    if asks(PROTOCOL) {
        found = found.and(|| {
            Tri::of((*protocol == 6) != negated(PROTOCOL), || {
                "the protocol is tcp".into()
            })
        });
    }
    let source_port = packet.connection.source_port;
    let sides = [
        (ORIGINAL_SOURCE_PORT, source_port),
        (ORIGINAL_DESTINATION_PORT, Some(packet.original.port())),
        (REPLY_SOURCE_PORT, Some(packet.destination.port())),
        // Masquerading may choose another port.
        (
            REPLY_DESTINATION_PORT,
            source_port.filter(|_| !packet.is_source_changed),
        ),
    ];
    for ((bit, port), (low, high)) in sides.into_iter().zip(ports) {
        if asks(bit) {
            found = found.and(|| match port {
                None => Tri::Unknown("the source port, which the kernel chooses".into()),
                Some(port) => Tri::of((*low..=*high).contains(&port) != negated(bit), || {
                    format!("the port that conntrack keeps is {port}")
                }),
            });
        }
    }
    if asks(STATUS) {
        let (set, known) = packet.status();
        found = found.and(|| {
            if status & !known != 0 {
                return Tri::Unknown("a bit of `--ctstatus`".into());
            }
            Tri::of((set & status != 0) != negated(STATUS), || {
                "the connection's status is another".into()
            })
        });
    }
    if asks(DIRECTION) {
        // Inverted means reply.
        found = found.and(|| Tri::of(!negated(DIRECTION), || "it is no reply".into()));
    }
    found
}

/// `Err`: a target of this name, whose doing is not known.
pub(super) fn target(target: &XtTarget, packet: &mut Packet<'_>) -> Result<Action, String> {
    Ok(match target {
        XtTarget::Redirect(nat) => {
            let address = redirect_address(packet);
            let port = nat_port(nat, packet.destination.port());
            Action::Destination(port.map(|port| SocketAddr::new(address, port)))
        }
        XtTarget::Nat(NatKind::Destination, nat) => {
            let address = nat_address(nat, packet.destination.ip());
            let port = nat_port(nat, packet.destination.port());
            Action::Destination(address.and_then(|address| Ok(SocketAddr::new(address, port?))))
        }
        XtTarget::Nat(NatKind::Source, nat) => Action::Source(nat_address(nat, packet.source)),
        XtTarget::Masquerade => Action::Source(Ok(packet.route.source)),
        XtTarget::Mark { mark, mask } => {
            packet.mark = packet.mark.clone().map(|old| old & mask.not() ^ mark);
            Action::Next
        }
        XtTarget::ConnMark {
            is_shifted: true, ..
        } => {
            packet.ct_mark = Err("a shifted CONNMARK".into());
            packet.mark = Err("a shifted CONNMARK".into());
            Action::Next
        }
        XtTarget::ConnMark {
            mode,
            ct_mark,
            ct_mask,
            packet_mask,
            ..
        } => {
            let (mark, connection) = (packet.mark.clone(), packet.ct_mark.clone());
            match mode {
                0 => packet.ct_mark = connection.map(|old| old & ct_mask.not() ^ ct_mark),
                1 => {
                    packet.ct_mark =
                        connection.and_then(|old| Ok(old & ct_mask.not() ^ (mark? & packet_mask)))
                }
                _ => {
                    packet.mark =
                        mark.and_then(|old| Ok(old & packet_mask.not() ^ (connection? & ct_mask)))
                }
            }
            Action::Next
        }
        XtTarget::Reject => Action::Reject,
        XtTarget::Notrack => {
            packet.is_untracked = true;
            Action::Next
        }
        XtTarget::Tproxy {
            mark_mask,
            mark,
            address,
            port,
        } => {
            packet.mark = packet.mark.clone().map(|old| old & mark_mask.not() ^ mark);
            let old = packet.destination;
            let is_any = address.iter().all(|b| *b == 0);
            let ip = match <[u8; 4]>::try_from(address.get(..4).unwrap_or_default()) {
                Ok(octets) if !is_any && !packet.is_v6() => octets.into(),
                _ if is_any => old.ip(),
                _ => <[u8; 16]>::try_from(address.as_slice()).map_or(old.ip(), IpAddr::from),
            };
            let port = if *port == 0 { old.port() } else { *port };
            Action::Tproxy(Ok(SocketAddr::new(ip, port)))
        }
        XtTarget::NoEffect(name) => {
            match name.as_str() {
                "CT" => packet.ct_zone = Err("what target CT sets".into()),
                "TOS" | "DSCP" => packet.is_tos_changed = true,
                _ => {}
            }
            Action::Next
        }
        XtTarget::Unknown(name) if name == "HMARK" => {
            packet.mark = Err("target HMARK".into());
            Action::Next
        }
        XtTarget::Unknown(name) => return Err(name.clone()),
    })
}

/// The kernel keeps a port that is in the range, and else begins with its first.
pub(super) fn port_within(old: u16, low: u16, high: u16) -> u16 {
    if (low..=high).contains(&old) {
        old
    } else {
        low
    }
}

fn nat_port(nat: &Nat, old: u16) -> Known<u16> {
    match nat.port {
        Some(_) if nat.is_offset => Err("a shifted port".into()),
        Some((low, high)) => Ok(port_within(old, low, high)),
        None => Ok(old),
    }
}

fn nat_address(nat: &Nat, old: IpAddr) -> Known<IpAddr> {
    match nat.address {
        Some((low, high)) if low == high => Ok(low),
        Some(_) => Err(Rc::from("which address of a range")),
        None => Ok(old),
    }
}

fn number(found: &Known<u32>, value: u32, mask: u32, is_negated: bool, what: &str) -> Tri {
    match found {
        _ if mask == 0 => Tri::of((value == 0) != is_negated, || {
            format!("the {what} does not count")
        }),
        Ok(found) => Tri::of((found & mask == value) != is_negated, || {
            format!("the {what} is {found:#x}")
        }),
        Err(reason) => Tri::Unknown(format!("the {what}: {reason}")),
    }
}

fn within(range: PortRange, port: u16) -> bool {
    (range.low..=range.high).contains(&port) != range.is_negated
}

fn is_any(range: PortRange) -> bool {
    range.low == 0 && range.high == u16::MAX && !range.is_negated
}

fn masked(ip: IpAddr, mask: IpAddr) -> IpAddr {
    match (ip, mask) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => (ip & mask).into(),
        (IpAddr::V6(ip), IpAddr::V6(mask)) => (ip & mask).into(),
        _ => ip,
    }
}

pub(super) fn type_name(kind: u8) -> &'static str {
    match kind {
        1 => "UNICAST",
        2 => "LOCAL",
        3 => "BROADCAST",
        4 => "ANYCAST",
        5 => "MULTICAST",
        6 => "BLACKHOLE",
        7 => "UNREACHABLE",
        8 => "PROHIBIT",
        _ => "another kind",
    }
}
