//! What a user may write. Every key has a default, so that an empty file, or none, is valid; each
//! default is stated here with its unit and its reason.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{PortRange, Span};

/// The whole configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where captured connections arrive. Loopback only: a redirect in OUTPUT maps exactly there,
    /// and anything wider would be an open proxy to other hosts. Default: `127.0.0.1:15001` and
    /// `[::1]:15001`, the port Istio users know.
    pub listen: Vec<SocketAddr>,
    /// The admin listener (`/live`, `/ready`, `/metrics`). Default `127.0.0.1:15000`; `null` turns
    /// it off.
    pub admin: Option<SocketAddr>,
    /// Event loops. Default: the CPUs allowed to the process, a cgroup quota counted.
    pub workers: Option<NonZeroUsize>,
    pub capture: Capture,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub pool: Pool,
    pub access_log: AccessLog,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec![
                SocketAddr::from((Ipv4Addr::LOCALHOST, 15001)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, 15001)),
            ],
            admin: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 15000))),
            workers: None,
            capture: Capture::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            pool: Pool::default(),
            access_log: AccessLog::default(),
        }
    }
}

/// Whose connections are redirected to the proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// The uid that the proxy runs as; its own connections are never captured. Default 1337, as
    /// Istio's.
    pub proxy_uid: u32,
    /// A socket mark that the proxy sets on its own connections, and that is never captured.
    /// Needed only where one uid is all there is (a rootless user namespace); setting it takes
    /// CAP_NET_ADMIN or CAP_NET_RAW. Default: none.
    pub proxy_mark: Option<u32>,
    /// How long the redirect applies after the proxy's last sign of life, of which it gives four in
    /// that time. A proxy that hangs without dying loses new connections, which then go direct,
    /// after this long. From 400 ms (below, a busy machine would be taken for a hung proxy) to 1 m,
    /// in steps of 100 ms, which every kernel's clock can count. Default 2 s.
    pub lease: Span,
    pub include: Include,
    pub exclude: Exclude,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            proxy_uid: 1337,
            proxy_mark: None,
            lease: Span::from_secs(2),
            include: Include::default(),
            exclude: Exclude::default(),
        }
    }
}

/// What is captured unless excluded. Default: every destination that is not local to the host,
/// every port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Include {
    pub cidrs: Vec<IpNet>,
    pub ports: Vec<PortRange>,
}

impl Default for Include {
    fn default() -> Self {
        Self {
            cidrs: vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
            ports: vec![PortRange::ALL],
        }
    }
}

/// What is never captured. Default: port 22, so that a mistake never locks an operator out of the
/// machines that he reaches from here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exclude {
    pub cidrs: Vec<IpNet>,
    pub ports: Vec<PortRange>,
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
}

impl Default for Exclude {
    fn default() -> Self {
        Self {
            cidrs: Vec::new(),
            ports: vec![PortRange::single(22)],
            uids: Vec::new(),
            gids: Vec::new(),
        }
    }
}

/// Bounds against hostile or broken input. None of them caps traffic that would have gone through
/// directly, other than by what the process itself may hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Captured connections at once, process-wide. Default: what the file descriptor limit
    /// allows (two descriptors a connection, some kept for the rest).
    pub max_connections: Option<NonZeroUsize>,
    /// Bytes of one HTTP/1 head or one HTTP/2 header list. Default 60 KiB, Envoy's; a larger
    /// request head gets 431.
    pub max_header_bytes: usize,
    /// Header lines of one head. Default 100, Envoy's.
    pub max_headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_header_bytes: 60 * 1024,
            max_headers: 100,
        }
    }
}

/// How long things may take. `null` means: as long as a direct connection would have taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// How long a client may stay silent after connecting before the upstream is dialled to see
    /// whether it speaks first. Default 10 ms: longer than any client that has something to say,
    /// too short for a person to notice in a database's greeting.
    pub quiet: Span,
    /// Dialling upstream. Default `null`: the kernel's own (about two minutes), since a direct
    /// connection would have had no other.
    pub connect: Option<Span>,
    /// From the first byte of a request head to its last. Default 60 s, nginx's
    /// `client_header_timeout`; then 408.
    pub request_head: Span,
    /// No byte either way on an opaque connection or tunnel. Default 1 h, Envoy's TCP idle
    /// timeout; keepalive probes hold it open while both peers live.
    pub tunnel_idle: Span,
    /// One direction closed, and no byte in the other. Default 50 s: below the 60 s after which
    /// conntrack forgets a half-closed connection, which would leak both sockets for an hour.
    pub half_close: Span,
    /// How long SIGTERM waits for live connections. Default 30 s, the grace period of a
    /// Kubernetes pod.
    pub drain: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            quiet: Span::from_millis(10),
            connect: None,
            request_head: Span::from_secs(60),
            tunnel_idle: Span::from_secs(3600),
            half_close: Span::from_secs(50),
            drain: Span::from_secs(30),
        }
    }
}

/// Upstream connections kept for reuse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// How long an idle upstream connection is kept when the server does not say how long it
    /// keeps it. Default 4 s: just below the 5 s after which common servers (Node.js, uvicorn)
    /// close, so that a request rarely races that close.
    pub idle: Span,
    /// The longest that a server's `Keep-Alive: timeout=` is believed. Default 60 s.
    pub max_idle: Span,
    /// Idle connections kept per destination and worker. Default 256.
    pub max_idle_per_destination: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            idle: Span::from_secs(4),
            max_idle: Span::from_secs(60),
            max_idle_per_destination: 256,
        }
    }
}

/// One line per request (HTTP) or connection (everything else).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", default, deny_unknown_fields)]
pub struct AccessLog {
    /// `off`, `stdout`, or a file's path. Default `off`.
    pub to: AccessLogTarget,
    /// Default `json`.
    pub format: AccessLogFormat,
}

/// Where access log lines go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum AccessLogTarget {
    #[default]
    Off,
    Stdout,
    File(PathBuf),
}

impl From<String> for AccessLogTarget {
    fn from(text: String) -> Self {
        match text.as_str() {
            "off" => Self::Off,
            "stdout" => Self::Stdout,
            _ => Self::File(text.into()),
        }
    }
}

impl From<AccessLogTarget> for String {
    fn from(target: AccessLogTarget) -> Self {
        match target {
            AccessLogTarget::Off => "off".into(),
            AccessLogTarget::Stdout => "stdout".into(),
            AccessLogTarget::File(path) => path.display().to_string(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogFormat {
    #[default]
    Json,
    Text,
}

impl Settings {
    /// The port that names this instance: its control socket, tables and sockets carry it.
    pub fn port(&self) -> u16 {
        self.listen.first().map_or(0, SocketAddr::port)
    }

    /// Everything wrong with the values that types alone cannot refuse, as (key path, message).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push((
                "listen",
                "no address; write at least one, such as `127.0.0.1:15001`".into(),
            ));
        }
        for address in &self.listen {
            if !is_plain_loopback(address.ip()) {
                problems.push((
                    "listen",
                    format!("{address} is reachable from elsewhere and would be an open proxy; use 127.0.0.1 or [::1]"),
                ));
            }
            if address.port() != self.port() {
                problems.push((
                    "listen",
                    format!("{address} has another port than {}; one instance has one port, in both families", self.listen[0]),
                ));
            }
        }
        for family in [SocketAddr::is_ipv4, SocketAddr::is_ipv6] {
            if self.listen.iter().filter(|a| family(a)).count() > 1 {
                problems.push((
                    "listen",
                    "two addresses of one family; a redirect leads to exactly one".into(),
                ));
            }
        }
        if let Some(admin) = self.admin
            && admin.port() != 0
            && self.listen.contains(&admin)
        {
            problems.push((
                "admin",
                format!("{admin} is in `listen` too; give one of them another port"),
            ));
        }
        if self.capture.proxy_uid == 65534 {
            problems.push(("capture.proxy_uid", "65534 is `nobody`, which also stands for every unmapped user; use a uid of the proxy's own".into()));
        }
        if self.capture.proxy_mark == Some(0) {
            problems.push((
                "capture.proxy_mark",
                "0 is the mark of every unmarked connection; use any other number".into(),
            ));
        }
        let lease = self.capture.lease.0;
        if !(Duration::from_millis(400)..=Duration::from_secs(60)).contains(&lease)
            || !lease.as_nanos().is_multiple_of(100_000_000)
        {
            problems.push((
                "capture.lease",
                "write 400ms to 60s, in steps of 100ms; the default is 2s".into(),
            ));
        }
        if self.limits.max_header_bytes < 1024 {
            problems.push((
                "limits.max_header_bytes",
                "below 1024 ordinary requests no longer fit".into(),
            ));
        }
        if self.limits.max_headers == 0 {
            problems.push((
                "limits.max_headers",
                "0 refuses every request; at least 1".into(),
            ));
        }
        problems
    }
}

/// The two loopback addresses that REDIRECT maps to.
fn is_plain_loopback(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}
