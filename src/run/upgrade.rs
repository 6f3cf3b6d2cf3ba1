//! Another program or configuration in the place of the one that serves: what is asked for, by whom, and
//! whether it can be had.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    net::SocketAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::Duration,
};

use outrigger_config::Settings;
use rustix::{net::sockopt::socket_peercred, process::geteuid};
use serde::{Deserialize, Serialize};

use super::proxy::Program;

/// The asker has its request ready when it knocks.
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_REQUEST: u64 = 64 << 20;

/// What `proxyctl upgrade` asks for; what is missing stays as it is at the file that was given to `run`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// The text of a configuration file.
    pub(crate) config: Option<String>,
    pub(crate) binary: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Upgraded { proxy_pid: i32 },
    Refused(String),
}

/// An upgrade on its way to the keeper.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub(super) program: Program,
    pub(super) settings: Settings,
    pub(super) asker: Option<UnixStream>,
}

/// What an upgrade must leave as it is, and what it takes without being asked for another.
#[derive(Debug)]
pub(super) struct Upgrades {
    /// As the configuration has it, before ports were moved and the scope was found.
    pub(super) asked: Settings,
    /// As it came to be.
    pub(super) resolved: Settings,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) config: Option<PathBuf>,
    pub(super) binary: OsString,
    pub(super) arguments: Vec<String>,
}

impl Upgrades {
    /// # Errors
    /// Why it cannot be done while the proxy serves.
    pub(super) fn prepare(
        &self,
        request: Request,
        asker: Option<UnixStream>,
    ) -> Result<Upgrade, (Option<UnixStream>, String)> {
        match self.read(&request) {
            Ok((config, settings)) => Ok(Upgrade {
                program: Program {
                    path: request
                        .binary
                        .map_or_else(|| self.binary.clone(), PathBuf::into_os_string),
                    arguments: self.arguments.clone(),
                    config,
                },
                settings,
                asker,
            }),
            Err(why) => Err((asker, why)),
        }
    }

    fn read(&self, request: &Request) -> Result<(String, Settings), String> {
        let text = match (&request.config, &self.config) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => {
                outrigger_config::text(path).map_err(|problem| problem.message)?
            }
            (None, None) => String::new(),
        };
        let mut settings = outrigger_config::parse(&text).map_err(|problems| {
            let messages: Vec<_> = problems.into_iter().map(|p| p.message).collect();
            format!("the configuration: {}", messages.join("; "))
        })?;
        if !self.listen.is_empty() {
            settings.listen.clone_from(&self.listen);
        }
        let fixed = |s: &Settings| (s.listen.clone(), s.admin.clone(), s.capture.proxy_uid);
        if fixed(&settings) != fixed(&self.asked) {
            return Err("listen, admin and capture.proxy_uid cannot change while connections are captured; start `proxyctl run` again for that".into());
        }
        settings.listen.clone_from(&self.resolved.listen);
        settings.admin.clone_from(&self.resolved.admin);
        settings.capture.scope = self.resolved.capture.scope.clone();
        Ok((text, settings))
    }
}

/// Where a supervisor is asked for upgrades.
pub(crate) fn door_name(port: u16) -> String {
    format!("outrigger/{port}/upgrade")
}

/// The next request of whoever may make one; strangers are turned away.
pub(super) fn next_request(door: &UnixListener) -> Option<(Request, UnixStream)> {
    loop {
        let (mut asker, _) = door.accept().ok()?;
        match read_request(&mut asker) {
            Ok(request) => return Some((request, asker)),
            Err(error) => answer(&mut asker, &Outcome::Refused(error.to_string())),
        }
    }
}

/// One that has gone is not told.
pub(super) fn answer(asker: &mut UnixStream, outcome: &Outcome) {
    if let Ok(text) = serde_json::to_vec(outcome) {
        let _ = asker.write_all(&text);
    }
}

fn read_request(asker: &mut UnixStream) -> io::Result<Request> {
    // The name is open to everybody in this network namespace.
    if socket_peercred(&*asker)?.uid != geteuid() {
        return Err(io::Error::other(
            "only the supervisor's own user may ask for an upgrade",
        ));
    }
    asker.set_nonblocking(false)?;
    asker.set_read_timeout(Some(PATIENCE))?;
    asker.set_write_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    asker.take(MAX_REQUEST).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
