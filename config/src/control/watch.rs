//! What goes past the capture, and what others do to its rules.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a socket that the installer hands over tells. Only root can make such a one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Watch {
    /// NFLOG: the first packet of each connection that goes past the capture.
    Bypasses {
        /// Connections that lived already, which no rule can redirect any more.
        live_before: u64,
    },
    /// nftables' notifications of changed rules.
    Changes {
        /// Chains that translate before the capture does, and what is known of their rules.
        ahead: Vec<ForeignChain>,
        /// Of a capture whose rules are iptables', which translate later than nftables' own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        iptables: Option<InIptables>,
    },
    /// A TCP socket, not connected, that an application of the scope opened: what is dialled with it is that
    /// application's in the eyes of every rule.
    Application,
}

/// Where the rules of a capture by iptables are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InIptables {
    /// What OUTPUT of table nat must lead to first of all, where nftables notifies of that chain:
    /// with iptables-nft. The kernel tells nobody of a change by iptables-legacy.
    pub chain: Option<String>,
}

/// A chain of somebody else's that is hooked in for translation before ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignChain {
    /// As `nft` names it: `ip`, `ip6` or `inet`.
    pub family: String,
    pub table: String,
    pub chain: String,
    /// Whether a rule of its table translates destinations.
    pub translates: bool,
}

/// Connections that began while capture was on and went direct.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bypasses {
    /// Whether anything is counted: the `nft` backend can, where the kernel has NFLOG.
    pub is_watched: bool,
    /// Connections that lived when the capture began; they end as they began, direct.
    pub live_before: u64,
    /// Those that happened, of each reason; past 200 a second of one reason they are not seen.
    pub counts: Vec<BypassCount>,
    /// The last ones, newest first.
    pub recent: Vec<Bypass>,
    /// Times that they came faster than they could be read, so that some are not counted.
    pub overruns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BypassCount {
    pub reason: BypassReason,
    /// Whether the settings ask for it: nothing to worry about.
    pub is_chosen: bool,
    pub explanation: String,
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bypass {
    pub reason: BypassReason,
    /// Unix time in seconds.
    pub at: u64,
    pub destination: SocketAddr,
    /// The user whose socket it is, where the kernel says.
    pub uid: Option<u32>,
}

/// Why a connection went past the capture, as the rules found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BypassReason {
    Loopback,
    LocalDestination,
    LinkLocal,
    ExcludedUid,
    ExcludedGid,
    ExcludedCidr,
    ExcludedPort,
    BoundToDevice,
    Untracked,
    ForeignNat,
    Lapsed,
    OlderEntry,
}

impl BypassReason {
    pub const ALL: [Self; 12] = [
        Self::Loopback,
        Self::LocalDestination,
        Self::LinkLocal,
        Self::ExcludedUid,
        Self::ExcludedGid,
        Self::ExcludedCidr,
        Self::ExcludedPort,
        Self::BoundToDevice,
        Self::Untracked,
        Self::ForeignNat,
        Self::Lapsed,
        Self::OlderEntry,
    ];

    /// The word in metrics, in JSON and in the rules.
    pub fn label(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::LocalDestination => "local_destination",
            Self::LinkLocal => "link_local",
            Self::ExcludedUid => "excluded_uid",
            Self::ExcludedGid => "excluded_gid",
            Self::ExcludedCidr => "excluded_cidr",
            Self::ExcludedPort => "excluded_port",
            Self::BoundToDevice => "bound_to_device",
            Self::Untracked => "untracked",
            Self::ForeignNat => "foreign_nat",
            Self::Lapsed => "lapsed",
            Self::OlderEntry => "older_entry",
        }
    }

    /// Whether the settings, or how capture is defined, ask for it.
    pub fn is_chosen(self) -> bool {
        match self {
            Self::Loopback
            | Self::LocalDestination
            | Self::LinkLocal
            | Self::ExcludedUid
            | Self::ExcludedGid
            | Self::ExcludedCidr
            | Self::ExcludedPort => true,
            Self::BoundToDevice
            | Self::Untracked
            | Self::ForeignNat
            | Self::Lapsed
            | Self::OlderEntry => false,
        }
    }

    pub fn explanation(self) -> &'static str {
        match self {
            Self::Loopback => "over the loopback interface, which is never captured",
            Self::LocalDestination => "to an address of this host, which is never captured",
            Self::LinkLocal => "to a link-local IPv6 address, which needs its interface",
            Self::ExcludedUid => "of a user in capture.exclude.uids",
            Self::ExcludedGid => "of a group in capture.exclude.gids",
            Self::ExcludedCidr => "to a network in capture.exclude.cidrs",
            Self::ExcludedPort => "to a port in capture.exclude.ports",
            Self::BoundToDevice => "bound to a network device, which a redirect cannot leave",
            Self::Untracked => {
                "a foreign rule keeps it from connection tracking (notrack), so nothing can redirect it"
            }
            Self::ForeignNat => "a foreign rule translated its destination before ours could",
            Self::Lapsed => "the lease had run out, because the proxy could not prove itself",
            Self::OlderEntry => {
                "connection tracking took it for one from before, or a foreign rule decided for it"
            }
        }
    }
}

/// What others did to the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    /// Whether changes of rules are notified; those of iptables-legacy never are.
    pub is_watched: bool,
    /// Foreign chains that translate destinations before ours do.
    pub shadowed_by: Vec<ForeignChain>,
    /// What speaks against the rules, by the latest beat.
    #[serde(default)]
    pub trouble: Option<RulesTrouble>,
    /// Whether running `install-rules` again ends the trouble.
    pub needs_repair: bool,
    /// How often something of either kind was noticed.
    pub count: u64,
    /// The last ones, newest first.
    pub recent: Vec<DriftEvent>,
    /// Times that changes came faster than they could be read.
    pub overruns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftEvent {
    /// Unix time in seconds.
    pub at: u64,
    /// What was seen, naming the table and chain.
    pub what: String,
}

/// Why the rules do not do what they were installed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RulesTrouble {
    /// Taken away, or (in iptables) pushed behind another's.
    Gone,
    /// Rules of another are asked first, and ours cannot be put before them.
    Overruled,
    /// Rules of another drop what the capture needs.
    Dropped,
    /// Connections are redirected, and nobody knows any more where to.
    NoOriginalDestination,
}

impl RulesTrouble {
    /// Whether it helps to install anew.
    pub fn is_repairable(self) -> bool {
        match self {
            Self::Gone => true,
            Self::Overruled | Self::Dropped | Self::NoOriginalDestination => false,
        }
    }

    /// What is wrong, and what to do.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Gone => {
                "rules of the capture are gone, or another's come first: run install-rules again"
            }
            Self::Overruled => {
                "rules of another come first, and to install again does not help: find and remove them (`nft list ruleset`, `proxyctl doctor`)"
            }
            Self::Dropped => {
                "rules of another drop what the capture needs on the loopback interface: find and remove them (`nft list ruleset`)"
            }
            Self::NoOriginalDestination => {
                "connections arrive without their original destination: rules of another put them into a zone of connection tracking (`ct zone`)"
            }
        }
    }
}
