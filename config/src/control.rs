//! What is said over the control socket, an abstract stream socket named `@outrigger/<port>`.
//!
//! One JSON object a line, a reply for each request, in order. Descriptors travel beside the line
//! that speaks of them (SCM_RIGHTS). The socket's name space is the network namespace, so the
//! containers of a pod share it; the name is also the lock that keeps two instances off one port.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// The abstract name (without the leading NUL) of the instance that listens on `port`.
pub fn socket_name(port: u16) -> String {
    format!("outrigger/{port}")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who are you?
    Hello,
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
    /// Capture has been widened and read back; the tables held under this generation are in force.
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TetherKind {
    /// The redirect itself: closed first at shutdown.
    Capture,
    /// Keeps conntrack, and with it the live captured connections, alive: closed last.
    Anchor,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    Hello(Identity),
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
