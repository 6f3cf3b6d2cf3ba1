//! In the words of `nft list`. What has no words here stands in brackets under its own name.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::super::{
    Base, CmpOp, Data, Element, Expression as E, NatKind, Rule, Set, Table, TableFamily, Verdict,
    ct, meta,
};

/// What a register holds: its words, and the mask laid over it.
#[derive(Clone, Debug, Default)]
struct Held {
    words: String,
    mask: Option<Vec<u8>>,
}

pub(super) fn rule(table: &Table, rule: &Rule) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut held: HashMap<usize, Held> = HashMap::new();
    let mut l4proto = String::from("th");
    for expression in &rule.expressions {
        let mut hold = |to: usize, words: String| {
            held.insert(to, Held { words, mask: None });
        };
        match expression {
            E::Payload { base, offset, to } => hold(
                to.start,
                payload(*base, *offset, to.length, table.family, &l4proto),
            ),
            E::Meta { key, to } => hold(*to, meta_words(*key).into()),
            E::Ct { key, is_reply, to } => hold(*to, ct_words(*key, *is_reply)),
            E::Socket { level, to, .. } => hold(*to, format!("socket cgroupv2 level {level}")),
            E::Fib { flags, to, .. } => hold(
                *to,
                format!("fib {} type", if *flags == 1 { "saddr" } else { "daddr" }),
            ),
            E::Immediate { to, value } => hold(*to, literal(value)),
            E::Bitwise { from, to, mask, .. } => {
                let words = held
                    .get(&from.start)
                    .map(|h| h.words.clone())
                    .unwrap_or_default();
                held.insert(
                    *to,
                    Held {
                        words,
                        mask: Some(mask.clone()),
                    },
                );
            }
            E::ByteOrder { from, to, .. } => {
                let found = held.get(&from.start).cloned().unwrap_or_default();
                held.insert(*to, found);
            }
            E::Cmp { op, from, value } => {
                let found = held.get(from).cloned().unwrap_or_default();
                if found.words == "meta l4proto" && *op == CmpOp::Eq {
                    l4proto = if value == &[6] { "tcp" } else { "th" }.into();
                }
                words.push(comparison(&found, *op, value));
            }
            E::Range {
                is_negated,
                from,
                low,
                high,
            } => {
                let found = held.get(from).cloned().unwrap_or_default().words;
                let not = if *is_negated { "!= " } else { "" };
                words.push(format!(
                    "{found} {not}{}-{}",
                    value(&found, low),
                    value(&found, high)
                ));
            }
            E::Lookup {
                set,
                from,
                to,
                is_negated,
            } => {
                let keys = keys(&held, *from, table.sets.get(set));
                let list = members(table, set, &keys);
                match to {
                    Some(0) => words.push(format!("{keys} vmap {list}")),
                    Some(to) => {
                        held.insert(
                            *to,
                            Held {
                                words: format!("{keys} map {list}"),
                                mask: None,
                            },
                        );
                    }
                    None => words.push(format!(
                        "{keys} {}{list}",
                        if *is_negated { "!= " } else { "" }
                    )),
                }
            }
            E::SetPayload { base, offset, from } => words.push(format!(
                "@{},{},{} set {}",
                match base {
                    Base::Link => "ll",
                    Base::Network => "nh",
                    Base::Transport => "th",
                    Base::Inner => "ih",
                },
                offset * 8,
                from.length * 8,
                as_number(&held, from.start)
            )),
            E::SetMeta { key, from } => words.push(format!(
                "{} set {}",
                meta_words(*key),
                as_number(&held, *from)
            )),
            E::SetCt { key, from } => words.push(format!(
                "{} set {}",
                ct_words(*key, false),
                as_number(&held, *from)
            )),
            E::Verdict(verdict) => words.push(verdict_words(verdict)),
            E::Redirect { port } => words.push(match port {
                Some((low, high)) => format!("redirect to :{}", port_words(&held, *low, *high)),
                None => "redirect".into(),
            }),
            E::Nat {
                kind,
                family,
                address,
                port,
            } => {
                let kind = if *kind == NatKind::Source {
                    "snat"
                } else {
                    "dnat"
                };
                let family = match (table.family, family) {
                    (TableFamily::Inet, 10) => " ip6",
                    (TableFamily::Inet, _) => " ip",
                    _ => "",
                };
                let goal = address.map(|(at, _)| {
                    held.get(&at)
                        .map(|h| as_address(&h.words))
                        .unwrap_or_default()
                });
                let port = port.map(|(low, high)| format!(":{}", port_words(&held, low, high)));
                words.push(format!(
                    "{kind}{family} to {}{}",
                    goal.unwrap_or_default(),
                    port.unwrap_or_default()
                ));
            }
            E::Masquerade => words.push("masquerade".into()),
            E::Tproxy { port, .. } => words.push(format!(
                "tproxy to :{}",
                port.map(|p| port_words(&held, p, None)).unwrap_or_default()
            )),
            E::Reject => words.push("reject".into()),
            E::Notrack => words.push("notrack".into()),
            E::Counter => {
                let counters = rule.counters.unwrap_or_default();
                words.push(format!(
                    "counter packets {} bytes {}",
                    counters.packets, counters.bytes
                ));
            }
            E::NoEffect(words_of_it) => words.push(words_of_it.clone().into_owned()),
            E::Unpredictable(name) => words.push(format!("[{name}]")),
            E::XtMatch(_) => words.push("[xt match]".into()),
            E::XtTarget(_) => words.push("[xt target]".into()),
            E::Ip(_) => {}
        }
    }
    // The protocol goes without saying where a field of it follows.
    let says_itself = words.iter().any(|w| w.starts_with("tcp "));
    words.retain(|word| !(says_itself && word == "meta l4proto tcp"));
    let names_family = words
        .iter()
        .any(|w| w.starts_with("ip ") || w.starts_with("ip6 "));
    words.retain(|word| !(names_family && word.starts_with("meta nfproto ")));
    words.extend(
        rule.comment
            .as_ref()
            .map(|text| format!("comment \"{text}\"")),
    );
    words.join(" ")
}

fn payload(base: Base, offset: usize, length: usize, family: TableFamily, l4proto: &str) -> String {
    let is_v6 = family == TableFamily::Ip6 || length == 16;
    match (base, offset, length, is_v6) {
        (Base::Network, 12, 1..=4, false) => "ip saddr".into(),
        (Base::Network, 16, 1..=4, false) => "ip daddr".into(),
        (Base::Network, 8, _, true) => "ip6 saddr".into(),
        (Base::Network, 24, _, true) => "ip6 daddr".into(),
        (Base::Transport, 0, 2, _) => format!("{l4proto} sport"),
        (Base::Transport, 2, 2, _) => format!("{l4proto} dport"),
        (Base::Transport, 13, 1, _) => "tcp flags".into(),
        _ => format!(
            "@{},{},{}",
            match base {
                Base::Link => "ll",
                Base::Network => "nh",
                Base::Transport => "th",
                Base::Inner => "ih",
            },
            offset * 8,
            length * 8
        ),
    }
}

fn meta_words(key: u32) -> &'static str {
    match key {
        meta::PROTOCOL => "meta protocol",
        meta::MARK => "meta mark",
        meta::IIF => "iif",
        meta::OIF => "oif",
        meta::IIFNAME => "iifname",
        meta::OIFNAME => "oifname",
        meta::SKUID => "meta skuid",
        meta::SKGID => "meta skgid",
        meta::NFPROTO => "meta nfproto",
        meta::L4PROTO => "meta l4proto",
        meta::CGROUP => "meta cgroup",
        _ => "[meta]",
    }
}

fn ct_words(key: u32, is_reply: bool) -> String {
    let direction = if is_reply { "reply" } else { "original" };
    match key {
        ct::STATE => "ct state".into(),
        ct::DIRECTION => "ct direction".into(),
        ct::STATUS => "ct status".into(),
        ct::MARK => "ct mark".into(),
        ct::SRC_IP => format!("ct {direction} ip saddr"),
        ct::DST_IP => format!("ct {direction} ip daddr"),
        ct::SRC_IP6 => format!("ct {direction} ip6 saddr"),
        ct::DST_IP6 => format!("ct {direction} ip6 daddr"),
        ct::PROTO_SRC => format!("ct {direction} proto-src"),
        ct::PROTO_DST => format!("ct {direction} proto-dst"),
        _ => "[ct]".into(),
    }
}

fn comparison(held: &Held, op: CmpOp, compared: &[u8]) -> String {
    let words = &held.words;
    let sign = match op {
        CmpOp::Eq => "",
        CmpOp::Ne => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Le => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Ge => ">= ",
    };
    let Some(mask) = &held.mask else {
        // A network on a byte's border is compared by its first bytes.
        let width = if words.starts_with("ip6 ") { 16 } else { 4 };
        if words.ends_with("addr") && compared.len() < width {
            let mut bytes = compared.to_vec();
            bytes.resize(width, 0);
            return format!(
                "{words} {sign}{}/{}",
                value(words, &bytes),
                compared.len() * 8
            );
        }
        return format!("{words} {sign}{}", value(words, compared));
    };
    let bits: u32 = mask.iter().map(|b| b.count_ones()).sum();
    if words.ends_with("addr") {
        return format!("{words} {sign}{}/{bits}", value(words, compared));
    }
    let is_zero = compared.iter().all(|b| *b == 0);
    match (op, is_zero) {
        // "Any of these bits".
        (CmpOp::Ne, true) => format!("{words} {}", value(words, mask)),
        _ if words == "tcp flags" => format!(
            "{words} & ({}) {}{}",
            flags(mask, " | "),
            if sign.is_empty() { "== " } else { sign },
            flags(compared, " | ")
        ),
        _ => format!(
            "{words} & {} {}{}",
            value(words, mask),
            if sign.is_empty() { "== " } else { sign },
            value(words, compared)
        ),
    }
}

fn value(words: &str, bytes: &[u8]) -> String {
    let host_order = || bytes.try_into().map(u32::from_ne_bytes).ok();
    match (words, bytes.len()) {
        ("meta l4proto", 1) => match bytes[0] {
            6 => "tcp".into(),
            17 => "udp".into(),
            1 => "icmp".into(),
            n => n.to_string(),
        },
        ("meta nfproto", 1) => if bytes[0] == 10 { "ipv6" } else { "ipv4" }.into(),
        ("iifname" | "oifname", _) => {
            let name = super::super::attributes::string(bytes);
            let star = if bytes.contains(&0) { "" } else { "*" };
            format!("\"{name}{star}\"")
        }
        ("tcp flags", 1) => flags(bytes, ","),
        ("meta mark" | "ct mark", 4) => {
            host_order().map_or_else(String::new, |n| format!("{n:#010x}"))
        }
        ("ct state", 4) => {
            let bits = host_order().unwrap_or(0);
            let names = [
                (1, "invalid"),
                (2, "established"),
                (4, "related"),
                (8, "new"),
                (64, "untracked"),
            ];
            let found: Vec<_> = names
                .iter()
                .filter(|(bit, _)| bits & bit != 0)
                .map(|(_, n)| *n)
                .collect();
            found.join(",")
        }
        (words, 4) if words.starts_with("fib ") => {
            host_order().map_or_else(String::new, address_type)
        }
        ("ct status", 4) => status(host_order().unwrap_or(0)),
        // Of every network namespace the first device.
        ("iif" | "oif", 4) if host_order() == Some(1) => "\"lo\"".into(),
        (words, 4) if words.ends_with("addr") => {
            Ipv4Addr::from(<[u8; 4]>::try_from(bytes).expect("four bytes")).to_string()
        }
        (words, 16) if words.ends_with("addr") => {
            Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes")).to_string()
        }
        (words, 2) if words.ends_with("port") || words.contains(" proto-") => {
            u16::from_be_bytes([bytes[0], bytes[1]]).to_string()
        }
        ("ct direction", 1) => if bytes[0] == 0 { "original" } else { "reply" }.into(),
        (words, _) if words.starts_with('@') => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            match hex.trim_start_matches('0') {
                "" => "0x0".into(),
                digits => format!("0x{digits}"),
            }
        }
        (_, 4) => host_order().map_or_else(String::new, |n| n.to_string()),
        (_, 8) => bytes
            .try_into()
            .map(u64::from_ne_bytes)
            .map_or_else(|_| String::new(), |n| n.to_string()),
        _ => literal(bytes),
    }
}

/// `RTN_…` of rtnetlink.
pub(crate) fn address_type(number: u32) -> String {
    let name = match number {
        1 => "unicast",
        2 => "local",
        3 => "broadcast",
        4 => "anycast",
        5 => "multicast",
        6 => "blackhole",
        7 => "unreachable",
        8 => "prohibit",
        other => return other.to_string(),
    };
    name.into()
}

/// `IPS_…` of connection tracking, as far as nft has words for them.
fn status(bits: u32) -> String {
    let names = [
        (1 << 0, "expected"),
        (1 << 1, "seen-reply"),
        (1 << 2, "assured"),
        (1 << 3, "confirmed"),
        (1 << 4, "snat"),
        (1 << 5, "dnat"),
        (1 << 9, "dying"),
    ];
    let known: u32 = names.iter().map(|(bit, _)| bit).sum();
    if bits == 0 || bits & !known != 0 {
        return bits.to_string();
    }
    let found = names.iter().filter(|(bit, _)| bits & bit != 0);
    found.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

fn flags(bits: &[u8], join: &str) -> String {
    let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    let bits = bits.first().copied().unwrap_or(0);
    let found: Vec<_> = (0..8)
        .filter(|n| bits & (1 << n) != 0)
        .map(|n| names[n])
        .collect();
    found.join(join)
}

/// The selectors that together make the key of `set`.
fn keys(held: &HashMap<usize, Held>, from: usize, set: Option<&Set>) -> String {
    let fields = set.map_or(&[][..], |set| &set.fields);
    let mut at = from;
    let mut found = Vec::new();
    for length in fields {
        found.push(held.get(&at).map(|h| h.words.clone()).unwrap_or_default());
        at += length.next_multiple_of(4);
    }
    found.join(" . ")
}

fn members(table: &Table, name: &str, keys: &str) -> String {
    let Some(set) = table.sets.get(name).filter(|set| set.is_anonymous) else {
        return format!("@{name}");
    };
    const MOST: usize = 20;
    let words: Vec<_> = keys.split(" . ").collect();
    let mut sorted: Vec<&Element> = set.elements.iter().collect();
    sorted.sort_by(|a, b| (&a.key, !a.is_end).cmp(&(&b.key, !b.is_end)));
    let mut list = Vec::new();
    for (n, element) in sorted.iter().enumerate().filter(|(_, e)| !e.is_end) {
        let key = |bytes: &[u8]| -> Vec<String> {
            let mut at = 0;
            words
                .iter()
                .zip(&set.fields)
                .map(|(words, length)| {
                    let field = bytes.get(at..at + length).unwrap_or_default();
                    at += length.next_multiple_of(4);
                    value(words, field)
                })
                .collect()
        };
        let low = key(&element.key);
        // The end of an interval is the first key behind it.
        let high = match (&element.key_end, sorted.get(n + 1)) {
            (Some(end), _) => key(end),
            (None, Some(next)) if set.is_interval && next.is_end => key(&before(&next.key)),
            _ => low.clone(),
        };
        let text: Vec<_> = low
            .iter()
            .zip(&high)
            .map(|(l, h)| {
                if l == h {
                    l.clone()
                } else {
                    format!("{l}-{h}")
                }
            })
            .collect();
        let text = if element.is_catch_all {
            "*".into()
        } else {
            text.join(" . ")
        };
        list.push(match &element.data {
            Some(Data::Verdict(verdict)) => format!("{text} : {}", verdict_words(verdict)),
            Some(Data::Value(bytes)) => format!("{text} : {}", literal(bytes)),
            None => text,
        });
    }
    let more = list.len().saturating_sub(MOST);
    list.truncate(MOST);
    if more > 0 {
        list.push(format!("[{more} more]"));
    }
    format!("{{ {} }}", list.join(", "))
}

fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    key
}

fn verdict_words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Continue => "continue".into(),
        Verdict::Return => "return".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Queue => "queue".into(),
    }
}

/// Bytes whose meaning only their use tells.
fn literal(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("0x{hex}")
}

fn port_words(held: &HashMap<usize, Held>, low: usize, high: Option<usize>) -> String {
    let one = |at: usize| {
        let words = held.get(&at).map(|h| h.words.clone()).unwrap_or_default();
        let hex = words
            .strip_prefix("0x")
            .and_then(|hex| u16::from_str_radix(hex, 16).ok());
        hex.map_or(words, |port| port.to_string())
    };
    match high.map(one) {
        Some(high) if high != one(low) => format!("{}-{high}", one(low)),
        _ => one(low),
    }
}

fn as_address(words: &str) -> String {
    let Some(hex) = words.strip_prefix("0x") else {
        return words.into();
    };
    match (
        hex.len(),
        u32::from_str_radix(hex, 16),
        u128::from_str_radix(hex, 16),
    ) {
        (8, Ok(number), _) => Ipv4Addr::from(number).to_string(),
        (32, _, Ok(number)) => Ipv6Addr::from(number).to_string(),
        _ => words.into(),
    }
}

fn as_number(held: &HashMap<usize, Held>, at: usize) -> String {
    let words = held.get(&at).map(|h| h.words.clone()).unwrap_or_default();
    match words
        .strip_prefix("0x")
        .and_then(|hex| u32::from_str_radix(hex, 16).ok())
    {
        Some(number) => format!("{:#010x}", number.swap_bytes()),
        None => words,
    }
}
