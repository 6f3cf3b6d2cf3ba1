//! What would be loaded into the kernel, as data: pure, so that `--dry-run`, the netlink encoder,
//! the read back and (later) `explain` all speak of the same thing.

mod build;
mod intervals;
mod show;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use outrigger_config::{IpNet, Settings};
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
        let proxy = build::identify(settings, host)?;
        let (families, notes) = build::captured_families(settings, host)?;
        let port = settings.port();
        let capture = Table {
            name: table_name(port, generation),
            comment: format!(
                "Outrigger: captured for the proxy on port {port}, gone when it is gone"
            ),
            sets: build::sets(settings, &families),
            chains: vec![
                build::output_chain(),
                build::capture_chain(settings, &proxy, &families, port),
            ],
        };
        Ok(Self {
            port,
            generation,
            families,
            proxy,
            anchor: build::anchor(port, generation),
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
