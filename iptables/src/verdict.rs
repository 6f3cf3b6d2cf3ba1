//! A connection against a ruleset: where it ends, and by which rules. Pure; what the rules need to
//! know of routes and addresses is asked of [`Surroundings`].
//!
//! Three-valued: a condition that cannot be evaluated is neither true nor false. Where such a rule
//! would change anything, both ways are followed, and the verdict is certain only if they meet.

mod machine;
mod packet;
mod walk;
mod xt;

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::ruleset::{Hook, RuleAt, Ruleset};

/// A TCP connection about to be made: its first SYN is what the rules see.
#[derive(Clone, Debug)]
pub struct Connection {
    pub destination: SocketAddr,
    /// `None`: as the routing table chooses.
    pub source: Option<IpAddr>,
    /// `None`: the kernel chooses it, so that no rule on it can be evaluated.
    pub source_port: Option<u16>,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary.
    pub groups: Vec<u32>,
    /// `SO_MARK`.
    pub mark: u32,
    pub cgroup: Option<Cgroup>,
}

/// Where the socket's maker is in the hierarchy of cgroup v2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// From the root, as in `/proc/PID/cgroup`.
    pub path: String,
    /// The ids of the root and of each part of the path.
    pub ids: Vec<u64>,
}

/// What the routing table says of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub device: String,
    pub device_index: u32,
    /// What a socket that is bound to no address takes.
    pub source: IpAddr,
    /// It ends on this host.
    pub is_local: bool,
}

/// What rules ask of the world around them.
pub trait Surroundings {
    /// # Errors
    /// When there is no route, with the kernel's reason.
    fn route(&self, to: IpAddr, from: Option<IpAddr>, mark: u32, uid: u32)
    -> Result<Route, String>;
    /// As `RTN_…` of rtnetlink: 1 unicast, 2 local, 3 broadcast, 5 multicast…; `None`: not known.
    fn address_type(&self, address: IpAddr) -> Option<u8>;
    fn routing_policy(&self) -> RoutingPolicy;
}

/// What of a packet, besides its addresses and user, this host's rules of routing ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingPolicy {
    pub by_mark: bool,
    pub by_tos: bool,
}

/// Where a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// At a socket of this network namespace.
    Here {
        to: SocketAddr,
    },
    /// Out through a device.
    Leaves {
        to: SocketAddr,
        device: String,
    },
    Dropped,
    /// The client is told.
    Rejected,
    NoRoute {
        reason: String,
    },
    /// The reason that it cannot be told.
    Unknown {
        reason: String,
    },
}

/// One way that the connection may take; with no assumption, the way that it takes.
#[derive(Clone, Debug)]
pub struct Way {
    pub assumptions: Vec<String>,
    pub end: End,
    /// The rule that turned it round, dropped or rejected it; `None` at the end of a chain whose
    /// policy did.
    pub decided_by: Option<RuleAt>,
    /// The rule that changed its destination.
    pub redirected_by: Option<RuleAt>,
    pub source: IpAddr,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub hook: Hook,
    pub at: RuleAt,
    pub matched: Matched,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matched {
    /// With what the rule did.
    Yes(String),
    /// With the condition that failed.
    No(String),
    /// With the condition that could not be evaluated.
    Perhaps(String),
}

#[derive(Clone, Debug)]
pub struct Verdict {
    pub ways: Vec<Way>,
}

impl Verdict {
    /// Where it ends for certain.
    pub fn certain(&self) -> Option<&End> {
        let (first, rest) = self.ways.split_first()?;
        let is_certain = !matches!(first.end, End::Unknown { .. })
            && rest.iter().all(|way| way.end == first.end);
        is_certain.then_some(&first.end)
    }
}

/// Follows `connection` through every hook, in the order in which the kernel does.
pub fn judge(
    ruleset: &Ruleset,
    connection: &Connection,
    surroundings: &dyn Surroundings,
) -> Verdict {
    walk::judge(ruleset, connection, surroundings)
}
