//! How a supervision goes: what `status` is told, and what is said at the end.

use std::{
    io::{self, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::sockets::door_name;

/// Both ends are on this machine and have nothing to think about.
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_REPORT: u64 = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) supervisor_pid: u32,
    pub(crate) port: u16,
    pub(crate) proxy_pid: Option<i32>,
    pub(crate) capture: Capture,
    /// Whether it ever captured: what came since is no failed start.
    pub(crate) has_captured: bool,
    pub(crate) deaths: u64,
    /// Whether the breaker ever tripped.
    pub(crate) has_tripped: bool,
}

/// Where new connections go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Capture {
    Starting,
    Captured,
    /// Direct for the moment, and why.
    Direct(String),
    /// Direct, because a check failed; another attempt will follow.
    Refused {
        why: String,
        check: String,
        advice: String,
    },
    /// Direct, because proxies died too often.
    Tripped(String),
}

impl Report {
    pub(super) fn new(port: u16) -> Self {
        Self {
            supervisor_pid: std::process::id(),
            port,
            proxy_pid: None,
            capture: Capture::Starting,
            has_captured: false,
            deaths: 0,
            has_tripped: false,
        }
    }

    /// What the supervisor of `port` says of itself, where there is one.
    pub(crate) fn ask(port: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(door_name(port)).ok()?;
        let stream = UnixStream::connect_addr(&name).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut text = Vec::new();
        stream.take(MAX_REPORT).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Tells it to whoever has knocked.
    pub(super) fn answer(&self, door: &UnixListener) {
        while let Ok((mut asking, _)) = door.accept() {
            let mut told = || -> io::Result<()> {
                asking.set_write_timeout(Some(PATIENCE))?;
                asking.write_all(&serde_json::to_vec(self)?)
            };
            if let Err(error) = told() {
                tracing::debug!(%error, "an asker was gone before it was answered");
            }
        }
    }

    /// One line for `status`.
    pub(crate) fn in_words(&self) -> String {
        let state = match &self.capture {
            Capture::Starting => "is starting".into(),
            Capture::Captured => "captures".into(),
            Capture::Direct(why) => format!("does not capture just now: {why}"),
            Capture::Refused { why, .. } => format!("cannot capture, and tries again: {why}"),
            Capture::Tripped(why) => format!("captures no more until a proxy lasts: {why}"),
        };
        let Self {
            supervisor_pid,
            deaths,
            ..
        } = self;
        format!("supervisor pid {supervisor_pid} {state}; {deaths} proxies have died")
    }

    /// What a user must know at the end, if anything went wrong.
    pub(super) fn summary(&self) -> Option<String> {
        let fate = match (&self.capture, self.has_tripped) {
            (Capture::Tripped(_), _) => "capture was off at the end, since it died too often",
            (Capture::Refused { .. }, _) => "capture was off at the end, since a check failed",
            (_, true) => "capture was off for a time, since it died too often",
            _ if self.deaths > 0 => "capture went on with the next",
            _ => return None,
        };
        Some(format!("the proxy died {} times; {fate}", self.deaths))
    }
}
