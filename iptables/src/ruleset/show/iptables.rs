//! In the words of `iptables-save`. iptables-nft keeps some conditions as expressions of nftables.

use std::{fmt::Write, net::IpAddr};

use super::super::{
    Base, CmpOp, Expression as E, IpMatch, Nat, NatKind, PortRange, Rule, Table, Verdict, XtMatch,
    XtTarget, meta,
};

pub(super) fn rule(table: &Table, rule: &Rule) -> String {
    let mut text = String::new();
    // What the register in use holds, and its mask.
    let mut held: Option<(&'static str, Vec<u8>)> = None;
    let mut protocol_written = false;
    for expression in &rule.expressions {
        match expression {
            E::Meta { key, .. } => {
                let option = match *key {
                    meta::L4PROTO => "-p",
                    meta::IIFNAME => "-i",
                    meta::OIFNAME => "-o",
                    meta::MARK => "-m mark --mark",
                    _ => "[meta]",
                };
                held = Some((option, Vec::new()));
            }
            E::Payload { base, offset, to } => {
                let is_v6 = table.family == super::super::TableFamily::Ip6;
                let option = match (base, offset, is_v6) {
                    (Base::Network, 12, false) | (Base::Network, 8, true) => "-s",
                    (Base::Network, 16, false) | (Base::Network, 24, true) => "-d",
                    (Base::Transport, 0, _) => "--sport",
                    (Base::Transport, 2, _) => "--dport",
                    (Base::Transport, 13, _) => "--tcp-flags",
                    _ => "[payload]",
                };
                // A network on a byte's border is compared without a mask, by its first bytes.
                let mask = vec![0xff; to.length];
                held = Some((option, mask));
            }
            E::Bitwise { mask, .. } => {
                if let Some((_, held)) = &mut held {
                    held.clone_from(mask);
                }
            }
            E::Cmp { op, value, .. } => {
                if let Some((option, mask)) = &held {
                    compared(
                        &mut text,
                        option,
                        *op == CmpOp::Ne,
                        value,
                        mask,
                        &mut protocol_written,
                    );
                }
            }
            E::Range {
                is_negated,
                low,
                high,
                ..
            } => {
                if let (Some((option, _)), [a, b], [c, d]) =
                    (&held, low.as_slice(), high.as_slice())
                {
                    let (low, high) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                    let not = if *is_negated { " !" } else { "" };
                    let _ = write!(text, " -m tcp{not} {option} {low}:{high}");
                }
            }
            E::Ip(conditions) => ip(&mut text, conditions),
            E::XtMatch(condition) => matched(&mut text, condition),
            E::XtTarget(target) => targeted(&mut text, target),
            E::Verdict(verdict) => {
                text += &match verdict {
                    Verdict::Accept => " -j ACCEPT".to_owned(),
                    Verdict::Drop => " -j DROP".to_owned(),
                    Verdict::Return => " -j RETURN".to_owned(),
                    Verdict::Jump(chain) => format!(" -j {chain}"),
                    Verdict::Goto(chain) => format!(" -g {chain}"),
                    Verdict::Queue => " -j NFQUEUE".to_owned(),
                    Verdict::Continue => String::new(),
                }
            }
            E::Redirect { .. } => text += " -j REDIRECT [ports]",
            E::Masquerade => text += " -j MASQUERADE",
            E::Reject => text += " -j REJECT",
            E::Counter => {}
            _ => text += " [condition]",
        }
    }
    text
}

fn compared(
    text: &mut String,
    option: &str,
    is_negated: bool,
    value: &[u8],
    mask: &[u8],
    protocol_written: &mut bool,
) {
    let not = if is_negated { " !" } else { "" };
    let _ = match option {
        "-p" if *protocol_written => Ok(()),
        "-p" => {
            *protocol_written = true;
            write!(
                text,
                "{not} -p {}",
                protocol(value.first().copied().unwrap_or(0).into())
            )
        }
        "-i" | "-o" => {
            let name = super::super::attributes::string(value);
            // Without the zero that ends it, it is the beginning of a name.
            let plus = if value.contains(&0) { "" } else { "+" };
            write!(text, "{not} {option} {name}{plus}")
        }
        "-s" | "-d" => {
            let mut bytes = value.to_vec();
            let width = if mask.len() > 4 || value.len() > 4 {
                16
            } else {
                4
            };
            bytes.resize(width, 0);
            let bits: u32 = mask.iter().map(|b| b.count_ones()).sum();
            match address(&bytes) {
                Some(ip) => write!(text, "{not} {option} {ip}/{bits}"),
                None => write!(text, " [address]"),
            }
        }
        "--sport" | "--dport" if value.len() == 2 => {
            write!(
                text,
                " -m tcp{not} {option} {}",
                u16::from_be_bytes([value[0], value[1]])
            )
        }
        "--tcp-flags" => {
            let mask = mask.first().copied().unwrap_or(0);
            write!(
                text,
                " -m tcp{not} --tcp-flags {} {}",
                flags(mask),
                flags(value.first().copied().unwrap_or(0))
            )
        }
        "-m mark --mark" if value.len() == 4 => {
            let number = |b: &[u8]| b.try_into().map(u32::from_ne_bytes).unwrap_or(0);
            let mask = if mask.len() == 4 {
                format!("/{:#x}", number(mask))
            } else {
                String::new()
            };
            write!(text, " -m mark{not} --mark {:#x}{mask}", number(value))
        }
        _ => write!(text, " [condition]"),
    };
}

fn ip(text: &mut String, conditions: &IpMatch) {
    let mut address = |option: &str, (ip, mask, not): (IpAddr, IpAddr, bool)| {
        let bits: u32 = match mask {
            IpAddr::V4(mask) => u32::from(mask).count_ones(),
            IpAddr::V6(mask) => u128::from(mask).count_ones(),
        };
        if bits > 0 || not {
            let _ = write!(text, "{} {option} {ip}/{bits}", if not { " !" } else { "" });
        }
    };
    address("-s", conditions.source);
    address("-d", conditions.destination);
    for (option, (name, not)) in [("-i", &conditions.input), ("-o", &conditions.output)] {
        if !name.is_empty() {
            let _ = write!(text, "{} {option} {name}", if *not { " !" } else { "" });
        }
    }
    let (number, not) = conditions.protocol;
    if number != 0 {
        let _ = write!(
            text,
            "{} -p {}",
            if not { " !" } else { "" },
            protocol(number)
        );
    }
    if conditions.fragments_only {
        *text += " -f";
    }
}

fn matched(text: &mut String, condition: &XtMatch) {
    let not = |is_negated: bool| if is_negated { " !" } else { "" };
    let _ = match condition {
        XtMatch::Tcp {
            source,
            destination,
            option,
            flags: (mask, value, negated),
        } => {
            *text += " -m tcp";
            for (name, range) in [("--sport", source), ("--dport", destination)] {
                if (range.low, range.high) != (0, u16::MAX) || range.is_negated {
                    let PortRange {
                        low,
                        high,
                        is_negated,
                    } = *range;
                    let _ = write!(text, "{} {name} {low}", not(is_negated));
                    if low != high {
                        let _ = write!(text, ":{high}");
                    }
                }
            }
            if let Some((number, negated)) = option {
                let _ = write!(text, "{} --tcp-option {number}", not(*negated));
            }
            if *mask == 0 && !negated {
                Ok(())
            } else {
                write!(
                    text,
                    "{} --tcp-flags {} {}",
                    not(*negated),
                    flags(*mask),
                    flags(*value)
                )
            }
        }
        XtMatch::OtherProtocol(name) => write!(text, " -m {name} [conditions]"),
        XtMatch::MultiPort {
            which,
            ranges,
            is_negated,
        } => {
            let option = ["--sports", "--dports", "--ports"][usize::from(*which).min(2)];
            let ranges: Vec<_> = ranges
                .iter()
                .map(|(low, high)| {
                    if low == high {
                        low.to_string()
                    } else {
                        format!("{low}:{high}")
                    }
                })
                .collect();
            write!(
                text,
                " -m multiport{} {option} {}",
                not(*is_negated),
                ranges.join(",")
            )
        }
        XtMatch::Owner {
            uid,
            gid,
            with_groups,
            socket,
        } => {
            *text += " -m owner";
            for (option, range) in [("--uid-owner", uid), ("--gid-owner", gid)] {
                if let Some((low, high, negated)) = range {
                    let _ = write!(text, "{} {option} {low}", not(*negated));
                    if low != high {
                        let _ = write!(text, "-{high}");
                    }
                }
            }
            if let Some(exists) = socket {
                let _ = write!(text, "{} --socket-exists", not(!exists));
            }
            if *with_groups {
                write!(text, " --suppl-groups")
            } else {
                Ok(())
            }
        }
        XtMatch::Mark {
            mark,
            mask,
            is_negated,
        } => write!(
            text,
            " -m mark{} --mark {}",
            not(*is_negated),
            masked(*mark, *mask)
        ),
        XtMatch::ConnMark {
            mark,
            mask,
            is_negated,
        } => {
            write!(
                text,
                " -m connmark{} --mark {}",
                not(*is_negated),
                masked(*mark, *mask)
            )
        }
        XtMatch::State { bits, is_negated } => write!(
            text,
            " -m state{} --state {}",
            not(*is_negated),
            states(*bits)
        ),
        XtMatch::ConnTrack {
            match_flags,
            invert_flags,
            state,
            ..
        } if match_flags & !0x2001 == 0 => {
            write!(
                text,
                " -m conntrack{} --ctstate {}",
                not(invert_flags & 1 != 0),
                states(*state)
            )
        }
        XtMatch::ConnTrack { .. } => write!(text, " -m conntrack [conditions]"),
        XtMatch::AddrType {
            source,
            destination,
            source_inverted,
            destination_inverted,
            limits_interface,
        } => {
            *text += " -m addrtype";
            for (option, mask, negated) in [
                ("--src-type", source, source_inverted),
                ("--dst-type", destination, destination_inverted),
            ] {
                if *mask != 0 {
                    let names: Vec<_> = (0..12)
                        .filter(|n| mask & (1 << n) != 0)
                        .map(|n| {
                            [
                                "UNSPEC",
                                "UNICAST",
                                "LOCAL",
                                "BROADCAST",
                                "ANYCAST",
                                "MULTICAST",
                                "BLACKHOLE",
                                "UNREACHABLE",
                                "PROHIBIT",
                                "THROW",
                                "NAT",
                                "XRESOLVE",
                            ][n]
                        })
                        .collect();
                    let _ = write!(text, "{} {option} {}", not(*negated), names.join(","));
                }
            }
            if *limits_interface {
                write!(text, " [limit-iface]")
            } else {
                Ok(())
            }
        }
        XtMatch::IpRange {
            source,
            destination,
        } => {
            *text += " -m iprange";
            for (option, range) in [("--src-range", source), ("--dst-range", destination)] {
                if let Some((low, high, negated)) = range {
                    let _ = write!(text, "{} {option} {low}-{high}", not(*negated));
                }
            }
            Ok(())
        }
        XtMatch::CgroupPath { path, is_negated } => {
            write!(text, " -m cgroup{} --path {path}", not(*is_negated))
        }
        XtMatch::CgroupClass { id, is_negated } => {
            write!(text, " -m cgroup{} --cgroup {id}", not(*is_negated))
        }
        XtMatch::Comment(words) if words.contains([' ', '"', '\'', '\\']) => {
            write!(
                text,
                " -m comment --comment \"{}\"",
                words.replace('\\', "\\\\").replace('"', "\\\"")
            )
        }
        XtMatch::Comment(words) => write!(text, " -m comment --comment {words}"),
        XtMatch::Unknown(name) => write!(text, " -m {name} [conditions]"),
    };
}

fn targeted(text: &mut String, target: &XtTarget) {
    let _ = match target {
        XtTarget::Redirect(nat) => match nat.port {
            Some((low, high)) if low == high => write!(text, " -j REDIRECT --to-ports {low}"),
            Some((low, high)) => write!(text, " -j REDIRECT --to-ports {low}-{high}"),
            None => write!(text, " -j REDIRECT"),
        },
        XtTarget::Nat(NatKind::Destination, nat) => {
            write!(text, " -j DNAT --to-destination {}", goal(nat))
        }
        XtTarget::Nat(NatKind::Source, nat) => write!(text, " -j SNAT --to-source {}", goal(nat)),
        XtTarget::Masquerade => write!(text, " -j MASQUERADE"),
        XtTarget::Mark { mark, mask } => write!(text, " -j MARK --set-xmark {mark:#x}/{mask:#x}"),
        XtTarget::ConnMark {
            mode: 0,
            ct_mark,
            ct_mask,
            ..
        } => {
            write!(text, " -j CONNMARK --set-xmark {ct_mark:#x}/{ct_mask:#x}")
        }
        XtTarget::ConnMark {
            mode,
            ct_mask,
            packet_mask,
            ..
        } => {
            let option = if *mode == 1 {
                "--save-mark"
            } else {
                "--restore-mark"
            };
            write!(
                text,
                " -j CONNMARK {option} --nfmask {packet_mask:#x} --ctmask {ct_mask:#x}"
            )
        }
        XtTarget::Reject => write!(text, " -j REJECT [how]"),
        XtTarget::Notrack => write!(text, " -j CT --notrack"),
        XtTarget::Tproxy {
            port,
            mark,
            mark_mask,
            ..
        } => {
            write!(
                text,
                " -j TPROXY --on-port {port} --tproxy-mark {mark:#x}/{mark_mask:#x} [on-ip]"
            )
        }
        XtTarget::NoEffect(name) | XtTarget::Unknown(name) => write!(text, " -j {name} [options]"),
    };
}

fn goal(nat: &Nat) -> String {
    let mut text = String::new();
    if let Some((low, high)) = nat.address {
        let brackets = low.is_ipv6() && nat.port.is_some();
        text += &if brackets {
            format!("[{low}]")
        } else {
            low.to_string()
        };
        if low != high {
            let _ = write!(text, "-{high}");
        }
    }
    if let Some((low, high)) = nat.port {
        let _ = write!(text, ":{low}");
        if low != high {
            let _ = write!(text, "-{high}");
        }
    }
    text
}

fn masked(mark: u32, mask: u32) -> String {
    if mask == u32::MAX {
        format!("{mark:#x}")
    } else {
        format!("{mark:#x}/{mask:#x}")
    }
}

fn states(bits: u32) -> String {
    let names = [
        (1, "INVALID"),
        (8, "NEW"),
        (4, "RELATED"),
        (2, "ESTABLISHED"),
        (64, "SNAT"),
        (128, "DNAT"),
        (256, "UNTRACKED"),
    ];
    let found: Vec<_> = names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    found.join(",")
}

fn flags(bits: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    let found: Vec<_> = (0..6)
        .filter(|n| bits & (1 << n) != 0)
        .map(|n| names[n])
        .collect();
    if found.is_empty() {
        "NONE".into()
    } else {
        found.join(",")
    }
}

fn protocol(number: u16) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "ipv6-icmp".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => Some(octets.into()),
        Err(_) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}
