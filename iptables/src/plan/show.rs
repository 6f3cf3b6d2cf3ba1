//! A plan in the syntax of the `nft` program: what `--dry-run` prints.

use std::{
    fmt::{self, Display, Formatter},
    net::{Ipv4Addr, Ipv6Addr},
};

use outrigger_config::control::BypassReason;

use super::{
    Chain, Elements, Family, Hook, HookKind, Intervals, IpNet, LEASES_SIZE, LOGGED_BYTES,
    LOGS_A_SECOND, Match, Place, Plan, Rule, Set, Table, Timeout, Verdict, sources_size,
};

/// Elements on one line, above which each gets its own.
const SHORT_SET: usize = 8;

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "# {note}")?;
        }
        for (index, table) in self.tables().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            write!(f, "{gap}{table}")?;
        }
        Ok(())
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        writeln!(f, "\tcomment \"{}\"", self.comment)?;
        let persist = if self.outlives_owner { ",persist" } else { "" };
        writeln!(f, "\tflags owner{persist}")?;
        if let Some(timeout) = &self.timeout {
            write!(f, "\n{timeout}")?;
        }
        for set in &self.sets {
            write!(f, "\n{set}")?;
        }
        for chain in &self.chains {
            write!(f, "\n{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Timeout {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { name, seconds } = self;
        writeln!(f, "\tct timeout {name} {{\n\t\tprotocol tcp")?;
        writeln!(
            f,
            "\t\tpolicy = {{ syn_sent : {seconds}, syn_recv : {seconds}, close : {seconds} }}\n\t}}"
        )
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (kind, size) = match &self.elements {
            Elements::Leases => ("nf_proto", LEASES_SIZE),
            Elements::Sources(family @ Family::V4) => {
                ("ipv4_addr . inet_service", sources_size(*family))
            }
            Elements::Sources(family @ Family::V6) => {
                ("ipv6_addr . inet_service", sources_size(*family))
            }
            _ => return self.fmt_static(f),
        };
        writeln!(f, "\tset {} {{\n\t\ttype {kind}", self.name)?;
        writeln!(f, "\t\tsize {size}\n\t\tflags dynamic,timeout\n\t}}")
    }
}

impl Set {
    fn fmt_static(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (kind, is_interval) = match &self.elements {
            Elements::V4(_) => ("ipv4_addr", true),
            Elements::V6(_) => ("ipv6_addr", true),
            Elements::Ports(_) => ("inet_service", true),
            Elements::Uids(_) => ("uid", false),
            Elements::Gids(_) => ("gid", false),
            Elements::Leases | Elements::Sources(_) => return Ok(()),
        };
        writeln!(f, "\tset {} {{\n\t\ttype {kind}", self.name)?;
        if is_interval {
            writeln!(f, "\t\tflags interval")?;
        }
        let elements = self.elements.words();
        let separator = if elements.len() > SHORT_SET {
            ",\n\t\t\t"
        } else {
            ", "
        };
        writeln!(f, "\t\telements = {{ {} }}\n\t}}", elements.join(separator))
    }
}

impl Elements {
    fn words(&self) -> Vec<String> {
        match self {
            Self::V4(nets) => ranges(nets, |n| Ipv4Addr::from(n as u32).to_string()),
            Self::V6(nets) => ranges(nets, |n| Ipv6Addr::from(n).to_string()),
            Self::Ports(ports) => ports
                .iter()
                .map(|(first, last)| {
                    if first == last {
                        first.to_string()
                    } else {
                        format!("{first}-{last}")
                    }
                })
                .collect(),
            Self::Uids(ids) | Self::Gids(ids) => ids.iter().map(ToString::to_string).collect(),
            Self::Leases | Self::Sources(_) => Vec::new(),
        }
    }
}

fn ranges(nets: &Intervals, address: impl Fn(u128) -> String) -> Vec<String> {
    nets.iter()
        .map(|(first, last)| match nets.prefix(first, last) {
            Some(length) if length == nets.bits() => address(first),
            Some(length) => format!("{}/{length}", address(first)),
            None => format!("{}-{}", address(first), address(last)),
        })
        .collect()
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(hook) = self.hook {
            writeln!(f, "\t\t{hook}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HookKind::Nat => "nat",
            HookKind::Filter => "filter",
        };
        let place = match self.place {
            Place::Output => "output",
            Place::Postrouting => "postrouting",
        };
        write!(
            f,
            "type {kind} hook {place} priority {}; policy accept;",
            self.priority
        )
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        write!(f, "{}", self.verdict)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::PureSyn => f.write_str("tcp flags & (fin | syn | rst | ack) == syn"),
            Self::SocketUid(uid) => write!(f, "meta skuid {uid}"),
            Self::SocketUidIn(set) => write!(f, "meta skuid @{set}"),
            Self::SocketGidIn(set) => write!(f, "meta skgid @{set}"),
            Self::Mark(mark) => write!(f, "meta mark {mark:#010x}"),
            Self::SocketCgroup { path, level, .. } => write!(
                f,
                "socket cgroupv2 level {level} \"{}\"",
                path.trim_start_matches('/')
            ),
            Self::OutLoopback => f.write_str("oif \"lo\""),
            Self::DestinationLocal => f.write_str("fib daddr type local"),
            Self::Destination(net) => {
                write!(f, "{} daddr ", Family::of(net.addr()).word())?;
                if is_host(net) {
                    write!(f, "{}", net.addr())
                } else {
                    write!(f, "{net}")
                }
            }
            Self::DestinationIn(family, set) => write!(f, "{} daddr @{set}", family.word()),
            Self::Port(port) => write!(f, "tcp dport {port}"),
            Self::PortIn(set) => write!(f, "tcp dport @{set}"),
            Self::UdpPort(port) => write!(f, "udp dport {port}"),
            Self::Payload(number) => write!(f, "@th,64,64 {number:#x}"),
            Self::SourceIn(family, set) => {
                write!(f, "{} saddr . tcp sport @{set}", family.word())
            }
            Self::OutElsewhere => f.write_str("oif != \"lo\""),
            Self::FamilyIn(set) => write!(f, "meta nfproto @{set}"),
            Self::Established => f.write_str("ct state established"),
            Self::Translated => f.write_str("ct status dnat"),
            Self::ReplyPort(port) => write!(f, "meta l4proto tcp ct reply proto-src {port}"),
            Self::Untracked => f.write_str("ct state untracked"),
            Self::FamilyNotIn(set) => write!(f, "meta nfproto != @{set}"),
            Self::OriginallyAt(address) => write!(
                f,
                "ct original {} daddr {} meta l4proto tcp ct original proto-dst {}",
                Family::of(address.ip()).word(),
                address.ip(),
                address.port()
            ),
            Self::OriginallyTo { family, set, is_in } => {
                write!(
                    f,
                    "ct original {} daddr {}@{set}",
                    family.word(),
                    not(*is_in)
                )
            }
            Self::OriginalPort { set, is_in } => {
                write!(
                    f,
                    "meta l4proto tcp ct original proto-dst {}@{set}",
                    not(*is_in)
                )
            }
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::RedirectTo(port) => write!(f, "redirect to :{port}"),
            Self::Log { reason, group } => write!(
                f,
                "limit rate {LOGS_A_SECOND}/second burst {LOGS_A_SECOND} packets \
                 log prefix \"{}\" group {group} snaplen {LOGGED_BYTES} return",
                log_prefix(*reason)
            ),
            Self::LeaveAlone(family) => {
                let word = family.word();
                write!(f, "dnat {word} to {word} daddr")
            }
            Self::RejectWithReset => f.write_str("reject with tcp reset"),
            Self::NoteSourceAndDrop {
                family,
                set,
                millis,
            } => write!(
                f,
                "update @{set} {{ {} saddr . tcp sport timeout {millis}ms }} drop",
                family.word()
            ),
            Self::NoteSource {
                family,
                set,
                millis,
            } => write!(
                f,
                "add @{set} {{ {} saddr . tcp sport timeout {millis}ms }}",
                family.word()
            ),
            Self::ForgetSource { family, set } => {
                write!(f, "delete @{set} {{ {} saddr . tcp sport }}", family.word())
            }
            Self::SetTimeout(name) => write!(f, "ct timeout set \"{name}\""),
            Self::Renew { set, millis } => {
                write!(f, "update @{set} {{ meta nfproto timeout {millis}ms }}")
            }
            Self::RenewAndDrop { set, millis } => {
                write!(
                    f,
                    "update @{set} {{ meta nfproto timeout {millis}ms }} drop"
                )
            }
        }
    }
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// What the proxy knows the reason by.
pub(crate) fn log_prefix(reason: BypassReason) -> String {
    format!("outrigger:{}", reason.label())
}

fn not(is_in: bool) -> &'static str {
    if is_in { "" } else { "!= " }
}

pub(crate) fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}
