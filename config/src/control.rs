//! What is said over the control socket, an abstract stream socket named `@outrigger/<port>`.
//!
//! One JSON object a line, a reply for each request, in order. Descriptors travel beside the line
//! that speaks of them (SCM_RIGHTS). The socket's name space is the network namespace, so the
//! containers of a pod share it; the name is also the lock that keeps two instances off one port.

mod explain;
mod traffic;
mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use explain::{
    ClusterOutlook, EndpointOutlook, Explanation, Objection, Question, RequestHead, RouteOutlook,
    TargetOutlook, Use,
};
pub use traffic::{ConfigurationState, Counts, DestinationTraffic, Traffic};
pub use watch::{
    Bypass, BypassCount, BypassReason, Bypasses, Drift, DriftEvent, ForeignChain, InIptables,
    RulesTrouble, Watch,
};

use crate::Scope;

/// The longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// How the reason of a [`Reply::Refused`] begins where the request is none that this version knows.
pub const NOT_UNDERSTOOD: &str = "not understood";

/// The abstract name (without the leading NUL) of the instance that listens on `port`.
pub fn socket_name(port: u16) -> String {
    format!("outrigger/{port}")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who are you?
    Hello,
    /// How is the capture doing?
    Status,
    /// What would you do with this request?
    Explain(Box<Question>),
    /// What goes where? The page that begins behind this destination; without one, the first.
    Traffic { after: Option<SocketAddr> },
    /// From now on, answer a connection whose original destination is one of `targets` as a canary:
    /// read one line, the nonce, and answer one line, a [`CanaryAnswer`]. Replaces earlier targets;
    /// an empty list ends it. It ends by itself when this control connection closes.
    ExpectCanary {
        targets: Vec<SocketAddr>,
        nonce: String,
    },
    /// Dial `target` from the proxy's own process, as it dials upstream, and tell what happened:
    /// reaching itself would be a loop.
    LoopProbe { target: SocketAddr },
    /// Hold the one descriptor that came with this line for as long as the process lives (or until
    /// released): the netlink socket that owns a table.
    Hold { table: Tether },
    /// Use the one descriptor that came with this line for as long as the capture of `generation`
    /// is held. Only root can make such a socket, but it goes on working for whoever has it.
    Watch { generation: u64, watch: Watch },
    /// Capture has been widened and read back; the tables held under this generation are in force.
    /// Done once the first beat has renewed every lease of that generation.
    Captured { generation: u64 },
    /// Close the descriptors held under `generation`, so that the kernel removes their tables;
    /// without one, all of them.
    Release { generation: Option<u64> },
}

/// A table that lives as long as the netlink socket that owns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tether {
    pub kind: TetherKind,
    /// The table's name, as `nft list tables` shows it.
    pub table: String,
    /// Rises by one with each install, so that a new table can stand beside the old for a moment.
    pub generation: u64,
    /// What the table was made from, to tell a repeated install from a changed one.
    pub fingerprint: String,
    /// Without one the table works for as long as it is there.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// The descriptor owns no rules: once it is closed they work until the lease has run out.
    #[serde(default)]
    pub outlives: bool,
    /// Whose connections it captures.
    #[serde(default, skip_serializing_if = "Scope::is_netns")]
    pub scope: Scope,
    /// What the kernel knows the scope's cgroup by. One that is removed and made again under the same
    /// path has another number, and nothing of it is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<u64>,
}

/// What keeps a capture at work: the redirect applies only for `millis` after the proxy's last beat,
/// a datagram to each address that carries the generation (8 bytes, big-endian). The rules drop the
/// beat, so that sending it fails with EPERM, by which the proxy knows that they are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    pub millis: u64,
    /// One address per captured family.
    pub beats: Vec<SocketAddr>,
}

/// Where the proxy dials to see that a redirect leads to itself and that it is told the original
/// destination. The rules redirect the proxy's own connections to it (iptables': anybody's), lease or no
/// lease.
/// Each listener has its own, since several instances may run as one user; not at its own port, which no
/// connection is ever passed on to. 127.0.0.0/8 needs no route. IPv6 has no such spare address; the
/// port at `::1` is none that a proxy would dial otherwise.
pub fn probe_address(listener: SocketAddr) -> SocketAddr {
    const DISCARD: u16 = 9;
    let port = match listener.port() ^ 0x8000 {
        0 => DISCARD,
        port => port,
    };
    match listener {
        SocketAddr::V4(_) => (Ipv4Addr::new(127, 192, 0, 3), port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, port).into(),
    }
}

/// Where the proxy dials with an application's socket to see what becomes of that application's
/// connections, the best first. An address kept for documentation is nobody's, and is routed as any other
/// on the internet; where no route leads there, the rules are asked at [`probe_address`].
pub fn application_probe_addresses(listener: SocketAddr) -> [SocketAddr; 2] {
    let probe = probe_address(listener);
    let ip = match probe {
        SocketAddr::V4(_) => APPLICATION_PROBE_V4.into(),
        SocketAddr::V6(_) => APPLICATION_PROBE_V6.into(),
    };
    [SocketAddr::new(ip, probe.port()), probe]
}

/// Whether somebody's application probe goes there, whichever proxy's.
pub fn is_application_probe(ip: IpAddr) -> bool {
    ip == APPLICATION_PROBE_V4 || ip == APPLICATION_PROBE_V6
}

const APPLICATION_PROBE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const APPLICATION_PROBE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TetherKind {
    /// The redirect itself: closed first at shutdown.
    Capture,
    /// Keeps conntrack, and with it the live captured connections, alive: closed last.
    Anchor,
    /// Refuses destinations that must not be reached without the proxy. Once its socket is closed the
    /// table stays, owned by nobody.
    Closed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    Hello(Identity),
    Status(Box<Status>),
    Explanation(Box<Explanation>),
    Traffic(Box<Traffic>),
    Done,
    /// What dialling the loop probe's target came to.
    LoopProbe(LoopOutcome),
    /// The request was understood and not done; the text says why.
    Refused(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopOutcome {
    /// Refused or unreachable, as it should be: the proxy's own connections are not captured.
    NotCaptured,
    /// The connection was established: the proxy met itself, or whoever else is redirected to.
    Captured,
    /// No answer in time.
    Silent,
}

/// One running proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Random for each process start.
    pub instance: String,
    pub version: String,
    pub pid: u32,
    pub uid: u32,
    pub workers: usize,
    /// The addresses really listened on.
    pub listeners: Vec<SocketAddr>,
    /// The inode of every listening socket, one per worker and family, or fewer where inherited
    /// sockets are shared: the gate matches them to what the kernel says listens on the port.
    pub listener_inodes: Vec<u64>,
    /// The mark the proxy sets on its own connections, if any.
    pub mark: Option<u32>,
    /// Seconds since the process started to serve.
    pub uptime_secs: u64,
    /// Not accepting any more work: capture would be pointless.
    pub draining: bool,
    /// The tables it holds.
    pub tethers: Vec<Tether>,
    /// Unix time in seconds since which capture is on.
    pub captured_since: Option<u64>,
}

/// A running proxy and its capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    pub proxy: Identity,
    /// Whether new connections are redirected now: rules are held and their lease runs.
    pub is_captured: bool,
    /// How often the lease ran out while rules were held, so that new connections went direct.
    pub lapses: u64,
    /// For how long in all, in seconds.
    pub lapsed_secs: f64,
    /// The last of these windows, newest first.
    #[serde(default)]
    pub windows: Vec<Window>,
    /// What kept the latest beat from renewing the lease.
    pub obstacle: Option<String>,
    /// Connections that went direct while the capture is on.
    pub bypasses: Bypasses,
    /// What others did to the rules, and what stands beside them.
    pub drift: Drift,
    /// The worker that did not answer at that beat: nothing but an end of the process frees the
    /// connections in its queue.
    #[serde(default)]
    pub hung_worker: Option<usize>,
    /// Why the proxy itself has let go of its latest capture; another install takes it on again.
    #[serde(default)]
    pub given_up: Option<String>,
}

/// A time without a lease, in which new connections went direct.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Unix time in seconds at which the lease ran out.
    pub at: u64,
    pub secs: f64,
    /// Whether it lasts.
    pub is_open: bool,
}

/// A canary connection's answer, which proves that the connection went through this instance and
/// that the instance saw where it was really going.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryAnswer {
    pub instance: String,
    pub nonce: String,
    pub worker: usize,
    pub original_destination: SocketAddr,
}
