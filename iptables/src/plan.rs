//! What would be loaded into the kernel, as data: pure, so that `--dry-run`, the netlink encoder,
//! the read back and (later) `explain` all speak of the same thing.

mod intervals;
mod show;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::Ipv6Net;
use outrigger_config::{IpNet, PortRange, Settings};
use serde::Serialize;

pub use intervals::Intervals;
pub(crate) use show::is_host;

use crate::{error::Refusal, host::Host};

/// Below -100, whoever registered last wins against kube-proxy's or Docker's DNAT. Here the proxy
/// always sees the service address, and its own dial is still translated by them.
const NAT_PRIORITY: i32 = -150;
const FILTER_PRIORITY: i32 = 0;

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
    /// Keeps conntrack hooked while live captured connections need their translation.
    pub anchor: Table,
    pub capture: Table,
    /// What a user should know that the rules do not say.
    pub notes: Vec<String>,
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
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
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
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    /// Hooked into output, or only jumped to.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub priority: i32,
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
    OutLoopback,
    DestinationLocal,
    Destination(IpNet),
    DestinationIn(Family, &'static str),
    Port(u16),
    PortIn(&'static str),
    Established,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Return,
    Jump(&'static str),
    RedirectTo(u16),
    RejectWithReset,
}

impl Plan {
    /// What `settings` ask for on this `host`.
    ///
    /// # Errors
    /// When the proxy could not be told from the applications, or nothing would be captured.
    pub fn new(settings: &Settings, host: &Host, generation: u64) -> Result<Self, Refusal> {
        let proxy = identify(settings, host)?;
        let (families, notes) = captured_families(settings, host)?;
        let port = settings.port();
        let capture = Table {
            name: table_name(port, generation),
            comment: format!(
                "Outrigger: captured for the proxy on port {port}, gone when it is gone"
            ),
            sets: sets(settings, &families),
            chains: vec![
                output_chain(),
                capture_chain(settings, &proxy, &families, port),
            ],
        };
        Ok(Self {
            port,
            generation,
            families,
            proxy,
            anchor: anchor(port, generation),
            capture,
            notes,
        })
    }

    /// Tells a repeated install from a changed one: what the tables hold, whatever the generation.
    pub fn fingerprint(&self) -> String {
        let neutral = Table {
            name: String::new(),
            ..self.capture.clone()
        };
        format!("{:016x}", fnv1a(neutral.to_string().as_bytes()))
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
        let mut probe = exclude_proxy(&self.proxy);
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
            sets: Vec::new(),
            chains: vec![
                Chain {
                    name: "output",
                    hook: Some(Hook::NAT),
                    rules: vec![Rule::new([Match::PureSyn], Verdict::Jump("probe"))],
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
        priority: NAT_PRIORITY,
    };
    const FILTER: Self = Self {
        kind: HookKind::Filter,
        priority: FILTER_PRIORITY,
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

pub fn table_name(port: u16, generation: u64) -> String {
    format!("outrigger_{port}_g{generation}")
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
        .unwrap_or(rest)
        .strip_prefix('g')?
        .parse()
        .ok()
}

/// Rules exclude by uid, and by mark where one is set. By mark alone where the installer, who
/// stands for the applications, has the proxy's uid: in a rootless namespace there is no other.
fn identify(settings: &Settings, host: &Host) -> Result<ProxyIdentity, Refusal> {
    let mark = settings.capture.proxy_mark;
    let uid = host.only_uid.unwrap_or(settings.capture.proxy_uid);
    let shared = uid == host.uid;
    match (shared, mark) {
        (true, None) if host.only_uid.is_some() => Err(Refusal::OnlyOneUid { uid }),
        (true, None) => Err(Refusal::InstallerIsProxy { uid }),
        _ => Ok(ProxyIdentity {
            uid,
            excluded_uid: (!shared).then_some(uid),
            mark,
        }),
    }
}

fn captured_families(
    settings: &Settings,
    host: &Host,
) -> Result<(Vec<Family>, Vec<String>), Refusal> {
    let mut notes = Vec::new();
    let mut families = Vec::new();
    for family in Family::ALL {
        let name = family.name();
        let listens = settings.listen.iter().any(|a| Family::of(a.ip()) == family);
        let included = settings
            .capture
            .include
            .cidrs
            .iter()
            .any(|net| Family::of(net.addr()) == family);
        if !included {
            notes.push(format!(
                "{name} is not captured: capture.include.cidrs has no {name} network"
            ));
        } else if !listens {
            notes.push(format!(
                "{name} is not captured: listen has no {name} address"
            ));
        } else if family == Family::V6 && !host.ipv6_on_loopback {
            notes.push("IPv6 is not captured: the loopback interface has no ::1 here".into());
        } else {
            families.push(family);
        }
    }
    if families.is_empty() || settings.capture.include.ports.is_empty() {
        return Err(Refusal::NothingToCapture { notes });
    }
    Ok((families, notes))
}

const EXCLUDED_UIDS: &str = "excluded_uids";
const EXCLUDED_GIDS: &str = "excluded_gids";
const EXCLUDED_PORTS: &str = "excluded_ports";
const INCLUDED_PORTS: &str = "included_ports";

const fn excluded(family: Family) -> &'static str {
    match family {
        Family::V4 => "excluded_v4",
        Family::V6 => "excluded_v6",
    }
}

const fn included(family: Family) -> &'static str {
    match family {
        Family::V4 => "included_v4",
        Family::V6 => "included_v6",
    }
}

/// Only sets that restrict something: an absent set keeps a rule, and each connect, shorter.
fn sets(settings: &Settings, families: &[Family]) -> Vec<Set> {
    let capture = &settings.capture;
    let mut sets = Vec::new();
    let mut add = |name, elements| sets.push(Set { name, elements });
    for (name, ids, kind) in [
        (
            EXCLUDED_UIDS,
            &capture.exclude.uids,
            Elements::Uids as fn(_) -> _,
        ),
        (EXCLUDED_GIDS, &capture.exclude.gids, Elements::Gids),
    ] {
        let mut ids = ids.clone();
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            add(name, kind(ids));
        }
    }
    for &family in families {
        let excluded_nets = networks(&capture.exclude.cidrs, family);
        if !excluded_nets.is_empty() {
            add(excluded(family), family.elements(excluded_nets));
        }
        let included_nets = networks(&capture.include.cidrs, family);
        if !included_nets.is_everything() {
            add(included(family), family.elements(included_nets));
        }
    }
    let excluded_ports = ports(&capture.exclude.ports);
    if !excluded_ports.is_empty() {
        add(EXCLUDED_PORTS, Elements::Ports(excluded_ports));
    }
    if !has_every_port(&capture.include.ports) {
        add(
            INCLUDED_PORTS,
            Elements::Ports(ports(&capture.include.ports)),
        );
    }
    sets
}

fn output_chain() -> Chain {
    Chain {
        name: "output",
        hook: Some(Hook::NAT),
        rules: vec![Rule::new([Match::PureSyn], Verdict::Jump("capture"))],
    }
}

fn capture_chain(
    settings: &Settings,
    proxy: &ProxyIdentity,
    families: &[Family],
    port: u16,
) -> Chain {
    let capture = &settings.capture;
    let mut rules = exclude_proxy(proxy);
    let mut leave = |condition| rules.push(Rule::new([condition], Verdict::Return));
    leave(Match::OutLoopback);
    leave(Match::DestinationLocal);
    if families.contains(&Family::V6) {
        // Link-local destinations need their interface, which the proxy's dial would not have.
        leave(Match::Destination(LINK_LOCAL_V6));
    }
    if !capture.exclude.uids.is_empty() {
        leave(Match::SocketUidIn(EXCLUDED_UIDS));
    }
    if !capture.exclude.gids.is_empty() {
        leave(Match::SocketGidIn(EXCLUDED_GIDS));
    }
    for &family in families {
        if !networks(&capture.exclude.cidrs, family).is_empty() {
            leave(Match::DestinationIn(family, excluded(family)));
        }
    }
    if !capture.exclude.ports.is_empty() {
        leave(Match::PortIn(EXCLUDED_PORTS));
    }
    for &family in families {
        let destination = if networks(&capture.include.cidrs, family).is_everything() {
            Match::Family(family)
        } else {
            Match::DestinationIn(family, included(family))
        };
        let port_condition = if has_every_port(&capture.include.ports) {
            Match::Tcp
        } else {
            Match::PortIn(INCLUDED_PORTS)
        };
        rules.push(Rule::new(
            [destination, port_condition],
            Verdict::RedirectTo(port),
        ));
    }
    Chain {
        name: "capture",
        hook: None,
        rules,
    }
}

const LINK_LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    10,
));

fn exclude_proxy(proxy: &ProxyIdentity) -> Vec<Rule> {
    let uid = proxy.excluded_uid.map(Match::SocketUid);
    let mark = proxy.mark.map(Match::Mark);
    uid.into_iter()
        .chain(mark)
        .map(|own| Rule::new([own], Verdict::Return))
        .collect()
}

/// In a bare namespace the redirect is conntrack's only user: without these two chains (either
/// alone is not enough) conntrack unhooks with it, and live captured connections are reset or hang.
fn anchor(port: u16, generation: u64) -> Table {
    Table {
        name: anchor_name(port, generation),
        comment: format!(
            "Outrigger: keeps live connections of the proxy on port {port} translated"
        ),
        sets: Vec::new(),
        chains: vec![
            Chain {
                name: "translate",
                hook: Some(Hook::NAT),
                rules: Vec::new(),
            },
            Chain {
                name: "track",
                hook: Some(Hook::FILTER),
                rules: vec![Rule::new([Match::Established], Verdict::Accept)],
            },
        ],
    }
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

fn networks(nets: &[IpNet], family: Family) -> Intervals {
    let bits = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let of_family = nets.iter().filter(|net| Family::of(net.addr()) == family);
    Intervals::new(
        bits,
        of_family.map(|net| (number(net.network()), number(net.broadcast()))),
    )
}

fn ports(ranges: &[PortRange]) -> Intervals {
    Intervals::new(
        16,
        ranges
            .iter()
            .map(|range| (range.first.into(), range.last.into())),
    )
}

/// Port 0 cannot be dialled, so 1 to 65535 is all.
fn has_every_port(ranges: &[PortRange]) -> bool {
    ports(ranges).iter().eq([(1, u16::MAX.into())])
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// FNV-1a, 64 bits: stable across builds, unlike the standard hasher, and no secret depends on it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
