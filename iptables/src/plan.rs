//! What would be loaded into the kernel, as data: pure, so that `--dry-run`, the netlink encoder,
//! the read back and (later) `explain` all speak of the same thing.

mod build;
mod bypass;
mod intervals;
mod show;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use outrigger_config::{
    IpNet, Scope, Settings,
    control::{BypassReason, Lease},
};
use serde::Serialize;

pub(crate) use build::LEASES;
pub(crate) use bypass::is as is_counting;
pub use intervals::Intervals;
pub(crate) use show::{is_host, log_prefix};

use crate::{
    cgroup::Cgroup,
    error::Refusal,
    host::{Host, Neighbour},
};

/// Below -100, whoever registered last wins against kube-proxy's or Docker's DNAT. Here the proxy
/// always sees the service address, and its own dial is still translated by them. Several instances
/// may capture in one namespace: the narrower scope comes first.
pub(crate) const NAT_PRIORITY: i32 = -150;
/// Of everything in iptables' table nat.
pub(crate) const IPTABLES_NAT_PRIORITY: i32 = -100;
const CGROUP_NAT_PRIORITY: i32 = NAT_PRIORITY - 3;
const UID_NAT_PRIORITY: i32 = NAT_PRIORITY - 2;
const GID_NAT_PRIORITY: i32 = NAT_PRIORITY - 1;
const FILTER_PRIORITY: i32 = 0;
/// Ahead of every translation of ours: whoever decides on it is the last to see the connection.
const TIMEOUT_PRIORITY: i32 = NAT_PRIORITY - 10;
/// Before connection tracking and everybody's raw rules (-300): a beat is nobody else's business.
const HEARTBEAT_PRIORITY: i32 = -310;

/// Two families live in a set of leases, but dead elements count until they are collected.
pub(crate) const LEASES_SIZE: u32 = 256;

/// The room for notes of a family. Over IPv4, connections that begin at once, bound to a device; more than
/// that wait for a retransmission more. Over IPv6 every captured connection is noted for a moment, and
/// the kernel clears forgotten notes away once a second; what finds no room is captured without a note.
pub(crate) fn sources_size(family: Family) -> u32 {
    match family {
        Family::V4 => 4096,
        Family::V6 => 65_536,
    }
}

const NO_TIMEOUTS: &str = "this kernel cannot shorten connection tracking's memory of unanswered connections (it lacks nf_conntrack_timeout): one that began while the proxy hung keeps the way it took for up to two minutes";

const HEARTBEAT: &str = "heartbeat";

/// After everybody's filters: what they drop goes past nobody.
const BYPASS_PRIORITY: i32 = 300;
/// Logged packets a second, of each reason: a flood of connections costs no more than that.
pub(crate) const LOGS_A_SECOND: u32 = 200;
/// Bytes of a logged packet: an IPv6 header and the ports.
pub(crate) const LOGGED_BYTES: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Everything that one install loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub port: u16,
    pub generation: u64,
    /// The families that are captured, never empty.
    pub families: Vec<Family>,
    pub proxy: ProxyIdentity,
    /// Whose connections, with a cgroup's path in full.
    pub scope: Scope,
    pub cgroup: Option<Cgroup>,
    pub neighbours: Vec<Neighbour>,
    pub lease: Lease,
    /// Keeps conntrack hooked while live captured connections need their translation.
    pub anchor: Table,
    pub capture: Table,
    /// Refuses destinations that must not be reached without the proxy, with it or after it.
    pub closed: Option<Table>,
    /// What a user should know that the rules do not say.
    pub notes: Vec<String>,
    fingerprint: String,
}

/// Who the proxy must be, and how its own connections are told from the application's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyIdentity {
    pub uid: u32,
    /// The uid that the rules exclude: none where applications share it.
    pub excluded_uid: Option<u32>,
    pub mark: Option<u32>,
}

/// A table of family `inet`, always owned by the netlink socket that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub comment: String,
    /// Whether it stays, and belongs to nobody, once its owner is gone.
    pub outlives_owner: bool,
    pub timeout: Option<Timeout>,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// For how long connection tracking remembers a TCP connection that has not been answered yet, or that
/// was reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeout {
    pub name: &'static str,
    pub seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: &'static str,
    pub elements: Elements,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    V4(Intervals),
    V6(Intervals),
    Ports(Intervals),
    Uids(Vec<u32>),
    Gids(Vec<u32>),
    /// The families whose lease runs: filled by rules, and emptied by time.
    Leases,
    /// Addresses and ports that connections came from: filled and emptied likewise.
    Sources(Family),
}

impl Elements {
    /// Whether rules fill it, so that what it holds is no matter of the plan.
    pub(crate) fn are_dynamic(&self) -> bool {
        matches!(self, Self::Leases | Self::Sources(_))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    /// Hooked in, or only jumped to.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub place: Place,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Output,
    Postrouting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Nat,
    Filter,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    Family(Family),
    Tcp,
    /// The first packet of a connection that begins now: when conntrack first hooks in, packets of
    /// connections that already live count as new, and redirecting those resets them.
    PureSyn,
    SocketUid(u32),
    SocketUidIn(&'static str),
    SocketGidIn(&'static str),
    Mark(u32),
    /// Of that cgroup, or of one below it. The level counts from the cgroup namespace of who loads
    /// the rule.
    SocketCgroup {
        path: String,
        id: u64,
        level: u32,
    },
    OutLoopback,
    DestinationLocal,
    Destination(IpNet),
    DestinationIn(Family, &'static str),
    Port(u16),
    PortIn(&'static str),
    UdpPort(u16),
    /// The first 8 bytes of a datagram.
    Payload(u64),
    FamilyIn(&'static str),
    SourceIn(Family, &'static str),
    /// A foreign rule keeps it from connection tracking.
    Untracked,
    OutElsewhere,
    Established,
    /// Its destination was translated, by us or by others.
    Translated,
    /// Answers to it come from this port.
    ReplyPort(u16),
    FamilyNotIn(&'static str),
    /// Where it was going before anybody translated it.
    OriginallyAt(SocketAddr),
    OriginallyTo {
        family: Family,
        set: &'static str,
        is_in: bool,
    },
    OriginalPort {
        set: &'static str,
        is_in: bool,
    },
}

/// What a rule does with a packet; whatever does not decide on it lets the next rule see it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Return,
    Jump(&'static str),
    RedirectTo(u16),
    /// Translates the connection to where it is going anyway: no chain behind decides on it any more.
    LeaveAlone(Family),
    RejectWithReset,
    /// Hands the packet's head to whoever listens on the NFLOG group, up to a rate, and returns.
    Log {
        reason: BypassReason,
        group: u16,
    },
    /// Puts the packet's family into the set, to stay for so long, and drops the packet.
    RenewAndDrop {
        set: &'static str,
        millis: u64,
    },
    /// The same, and leaves the packet to other rules.
    Renew {
        set: &'static str,
        millis: u64,
    },
    /// Drops the packet and puts its source into the set.
    NoteSourceAndDrop {
        family: Family,
        set: &'static str,
        millis: u64,
    },
    /// Puts it there unless it is noted already or there is no room, and nothing else.
    NoteSource {
        family: Family,
        set: &'static str,
        millis: u64,
    },
    ForgetSource {
        family: Family,
        set: &'static str,
    },
    /// Of the new connection, with the table's own.
    SetTimeout(&'static str),
}

impl Plan {
    /// What `settings` ask for on this `host`.
    ///
    /// # Errors
    /// When the proxy could not be told from the applications, or nothing would be captured.
    pub fn new(settings: &Settings, host: &Host, generation: u64) -> Result<Self, Refusal> {
        let proxy = build::identify(settings, host)?;
        let (families, mut notes) = build::captured_families(settings, host)?;
        let scope = build::scope(settings, host, &proxy)?;
        notes.extend(build::scope_note(host));
        if !host.can_shorten_timeouts {
            notes.push(NO_TIMEOUTS.into());
        }
        let port = settings.port();
        let lease = build::lease(settings, &families);
        let closed = build::closed(settings, host, &proxy, &families)?;
        let tables = |generation| {
            let mut closed = closed.clone();
            if let Some(table) = &mut closed {
                table.name = closed_name(port, generation);
            }
            let mut capture = build::capture(settings, host, &proxy, &families, &lease, generation);
            let group = log_group(port, generation);
            let chains = bypass::chains(settings, host, &proxy, &families, group);
            capture.chains.extend(chains);
            (
                build::anchor(settings, host, &proxy, generation),
                capture,
                closed,
            )
        };
        let (anchor, capture, closed) = tables(0);
        let closed = closed.map_or_else(String::new, |table| table.to_string());
        // The text has a cgroup's path only, and the same path may mean another one tomorrow.
        let cgroup = host.cgroup.as_ref().map(|cgroup| cgroup.id().to_string());
        let text = format!("{anchor}{capture}{closed}{}", cgroup.unwrap_or_default());
        let (anchor, capture, closed) = tables(generation);
        Ok(Self {
            port,
            generation,
            anchor,
            capture,
            closed,
            fingerprint: format!("{:016x}", fnv1a(text.as_bytes())),
            families,
            proxy,
            scope,
            cgroup: host.cgroup.clone(),
            neighbours: host.neighbours.clone(),
            lease,
            notes,
        })
    }

    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        [&self.anchor, &self.capture]
            .into_iter()
            .chain(&self.closed)
    }

    /// Tells a repeated install from a changed one: what the tables hold, whatever the generation.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What stands beside a capture whose rules are iptables', and does what those cannot: it counts
    /// connections that go past, and has sockets that are bound to a device do so. Its own lease runs like
    /// theirs, by the same beats, which it leaves to them.
    pub(crate) fn companion(&self) -> Table {
        let mut table = Table {
            name: companion_name(self.port, self.generation),
            comment: format!(
                "Outrigger: what iptables cannot do for the capture of the proxy on port {}",
                self.port
            ),
            ..self.capture.clone()
        };
        for chain in &mut table.chains {
            if bypass::is(chain) {
                let probes = bypass::application_probes(&self.lease);
                chain
                    .rules
                    .splice(0..0, probes.filter(|_| chain.hook.is_none()));
                continue;
            }
            // The redirect is iptables'.
            chain
                .rules
                .retain(|rule| !matches!(rule.verdict, Verdict::RedirectTo(_)));
            for rule in &mut chain.rules {
                match (&rule.verdict, &rule.matches[..]) {
                    (Verdict::RenewAndDrop { set, .. }, _) => {
                        rule.verdict = Verdict::Renew {
                            set,
                            millis: self.lease.millis,
                        };
                    }
                    (Verdict::Return, [Match::SourceIn(family, _)]) => {
                        rule.verdict = Verdict::LeaveAlone(*family);
                    }
                    _ => {}
                }
            }
        }
        table
    }

    /// For a kernel without NFLOG: nothing is counted then.
    pub(crate) fn without_counting(mut self) -> Self {
        self.capture.chains.retain(|chain| !bypass::is(chain));
        self
    }

    /// The probe of the gate: redirects `targets` and nothing else, past the same exclusion of the
    /// proxy itself as the capture has, and resets what was not redirected.
    pub fn canary(&self, targets: &[SocketAddr]) -> Table {
        let to = |target: &SocketAddr| {
            [
                Match::Destination(target.ip().into()),
                Match::Port(target.port()),
            ]
        };
        let mut probe = build::exclude_proxy(&self.proxy);
        probe.extend(
            targets
                .iter()
                .map(|target| Rule::new(to(target), Verdict::RedirectTo(self.port))),
        );
        let reset = targets
            .iter()
            .map(|target| Rule::new(to(target), Verdict::RejectWithReset))
            .collect();
        Table {
            name: format!("outrigger_{}_canary", self.port),
            comment: "Outrigger: a probe, gone in a moment".into(),
            outlives_owner: false,
            timeout: None,
            sets: build::scope_sets(&self.scope),
            chains: vec![
                Chain {
                    name: "output",
                    hook: Some(Hook::NAT),
                    rules: vec![Rule::new(
                        std::iter::once(Match::PureSyn)
                            .chain(build::in_scope(&self.scope, self.cgroup.as_ref())),
                        Verdict::Jump("probe"),
                    )],
                },
                Chain {
                    name: "probe",
                    hook: None,
                    rules: probe,
                },
                // A redirected packet carries the proxy's address by the time it comes here.
                Chain {
                    name: "unredirected",
                    hook: Some(Hook::FILTER),
                    rules: reset,
                },
            ],
        }
    }
}

impl Hook {
    const NAT: Self = Self {
        kind: HookKind::Nat,
        place: Place::Output,
        priority: NAT_PRIORITY,
    };
    const FILTER: Self = Self {
        kind: HookKind::Filter,
        place: Place::Output,
        priority: FILTER_PRIORITY,
    };
    const BEFORE_NAT: Self = Self {
        priority: TIMEOUT_PRIORITY,
        ..Self::NAT
    };
    const LEAVING: Self = Self {
        place: Place::Postrouting,
        ..Self::FILTER
    };
    const BYPASS: Self = Self {
        priority: BYPASS_PRIORITY,
        ..Self::FILTER
    };
    const HEARTBEAT: Self = Self {
        kind: HookKind::Filter,
        place: Place::Output,
        priority: HEARTBEAT_PRIORITY,
    };
}

impl Rule {
    fn new(matches: impl IntoIterator<Item = Match>, verdict: Verdict) -> Self {
        Self {
            matches: matches.into_iter().collect(),
            verdict,
        }
    }
}

/// An empty table, to try whether the kernel takes such a one.
pub(crate) fn trial(with_timeout: bool, outlives_owner: bool) -> Table {
    Table {
        // Several may be tried at once.
        name: format!("outrigger_trial_{}", std::process::id()),
        comment: "Outrigger: a trial, gone at once".into(),
        outlives_owner,
        timeout: with_timeout.then_some(build::PASSING),
        sets: Vec::new(),
        chains: Vec::new(),
    }
}

pub fn table_name(port: u16, generation: u64) -> String {
    format!("outrigger_{port}_g{generation}")
}

/// Two generations stand side by side for a moment, and other programs (ulogd) have low numbers.
pub(crate) fn log_group(port: u16, generation: u64) -> u16 {
    const HIGH: u16 = 0x4000;
    port.wrapping_add(generation as u16) | HIGH
}

fn closed_name(port: u16, generation: u64) -> String {
    format!("outrigger_{port}_closed_g{generation}")
}

/// Whether `table` is the one of ours for `port`, of any generation, that refuses what must not go
/// direct.
pub fn is_closed(table: &str, port: u16) -> bool {
    generation_of(table, port).is_some_and(|generation| table == closed_name(port, generation))
}

fn companion_name(port: u16, generation: u64) -> String {
    format!("outrigger_{port}_bypass_g{generation}")
}

fn anchor_name(port: u16, generation: u64) -> String {
    format!("outrigger_{port}_anchor_g{generation}")
}

/// Whether `table` is one of ours for `port`, of any generation.
pub fn is_ours(table: &str, port: u16) -> bool {
    table.starts_with(&format!("outrigger_{port}_"))
}

/// The generation that one of our table names carries.
pub fn generation_of(table: &str, port: u16) -> Option<u64> {
    let rest = table.strip_prefix(&format!("outrigger_{port}_"))?;
    rest.strip_prefix("anchor_")
        .or_else(|| rest.strip_prefix("closed_"))
        .or_else(|| rest.strip_prefix("bypass_"))
        .unwrap_or(rest)
        .strip_prefix('g')?
        .parse()
        .ok()
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn elements(self, intervals: Intervals) -> Elements {
        match self {
            Self::V4 => Elements::V4(intervals),
            Self::V6 => Elements::V6(intervals),
        }
    }
}

/// FNV-1a, 64 bits: stable across builds, unlike the standard hasher, and no secret depends on it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
