//! Whose connections are captured for: what `--scope` means for a command, and the cgroup made for it.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
    str::FromStr,
    time::Duration,
};

use outrigger_config::Scope;
use outrigger_iptables::cgroup::{Cgroup, CgroupError};

use rustix::process::Pid;

use crate::sys;

/// The name of a run's cgroup, before its process id.
const PREFIX: &str = "outrigger-run-";
/// How long the kernel may take to see a cgroup empty whose last process has been reaped.
const EMPTY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScopeArgument {
    /// The command's own, made for it.
    Cgroup,
    Netns,
    /// The user's that the command runs as; without a number whoever runs this.
    Uid(Option<u32>),
}

/// A place for the command to run in.
#[derive(Debug)]
pub(super) struct Place {
    cgroup: Option<Cgroup>,
    uid: Option<u32>,
    /// While this is open the cgroup is ours to remove.
    sweeper: Option<(Pid, io::PipeWriter)>,
}

impl FromStr for ScopeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cgroup" => Ok(Self::Cgroup),
            None if text == "netns" => Ok(Self::Netns),
            None if text == "uid" => Ok(Self::Uid(None)),
            Some(("uid", uid)) => uid
                .parse()
                .map(|uid| Self::Uid(Some(uid)))
                .map_err(|_| "write a number, such as `uid:1000`; `id -u NAME` tells it".into()),
            _ => Err("write `cgroup`, `netns`, `uid` or `uid:UID`".into()),
        }
    }
}

impl Place {
    /// # Errors
    /// Where there is no cgroup to be had, with what to do instead.
    pub(super) fn prepare(scope: ScopeArgument) -> Result<(Self, Scope), String> {
        let mut place = Self {
            cgroup: None,
            uid: None,
            sweeper: None,
        };
        let captured = match scope {
            ScopeArgument::Netns => Scope::Netns,
            ScopeArgument::Uid(uid) => {
                place.uid = uid;
                let uid = uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
                Scope::Uids(vec![uid])
            }
            ScopeArgument::Cgroup => {
                let cgroup = make_cgroup().map_err(|error| {
                    format!("no cgroup for the command: {error}; without one, use --scope netns (everybody's connections in this network namespace) or --scope uid:UID")
                })?;
                let sweeper = start_sweeper(&cgroup).map_err(|error| {
                    let _ = cgroup.remove();
                    format!("cannot start what removes the cgroup: {error}")
                })?;
                let captured = Scope::Cgroup(cgroup.path().into());
                place.cgroup = Some(cgroup);
                place.sweeper = Some(sweeper);
                captured
            }
        };
        Ok((place, captured))
    }

    /// Starts a program in the cgroup made here: see [`Cgroup::spawn`].
    pub(super) fn spawn(&self, words: &[OsString]) -> Option<io::Result<Pid>> {
        let started = self.cgroup.as_ref()?.spawn(words)?;
        Some(
            started.map(|pid| {
                Pid::from_raw(pid.cast_signed()).expect("a process' own number is not 0")
            }),
        )
    }

    /// Has `command` start in here.
    pub(super) fn contain(&self, command: &mut Command) -> Result<(), CgroupError> {
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        match &self.cgroup {
            Some(cgroup) => cgroup.contain(command),
            None => Ok(()),
        }
    }

    /// A process of ours that is none of the command's.
    pub(super) fn sweeper(&self) -> Option<Pid> {
        self.sweeper.as_ref().map(|(pid, _)| *pid)
    }

    /// Ends whatever still runs in the cgroup made here; whether nobody who was captured is left then.
    pub(super) fn end_all(&self) -> bool {
        let Some(cgroup) = &self.cgroup else {
            return false;
        };
        let ended = cgroup.kill().and_then(|()| cgroup.wait_until_empty(EMPTY));
        ended.unwrap_or_else(|error| {
            tracing::error!("{error}");
            false
        })
    }

    /// Removes what was made.
    pub(super) fn remove(self) {
        if let Some(Err(error)) = self.cgroup.map(|cgroup| cgroup.remove()) {
            tracing::error!("{error}");
        }
    }
}

/// Beside the cgroup of a run that this one is itself the command of, since a connection from below
/// that would be captured by both.
fn make_cgroup() -> Result<Cgroup, CgroupError> {
    let own = Cgroup::own()?;
    let parent = match own.path().rsplit_once('/') {
        Some((parent, name)) if name.starts_with(PREFIX) => {
            Cgroup::find(if parent.is_empty() { "/" } else { parent })?
        }
        _ => own,
    };
    parent.create_child(&format!("{PREFIX}{}", std::process::id()))
}

/// A process that removes the cgroup should this one be killed, once the command has ended too.
fn start_sweeper(cgroup: &Cgroup) -> io::Result<(Pid, io::PipeWriter)> {
    let (theirs, ours) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("proxyctl")
        .args(["sweep-cgroup", cgroup.path()])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null());
    sys::start_session(&mut command);
    sys::unblock_signals(&mut command);
    let child = command.spawn()?;
    Ok((Pid::from_child(&child), ours))
}

/// Removes a run's cgroup after its supervisor was killed
#[derive(Debug, clap::Args)]
pub(crate) struct SweepArgs {
    path: String,
}

/// `proxyctl sweep-cgroup`.
pub(crate) fn sweep(args: SweepArgs) -> ExitCode {
    // Nothing is ever written: the end comes when the supervisor does.
    let _ = io::stdin().read(&mut [0]);
    let swept = Cgroup::find(&args.path).and_then(|cgroup| {
        while !cgroup.wait_until_empty(Duration::from_secs(3600))? {}
        cgroup.remove()
    });
    match swept {
        Ok(()) => ExitCode::SUCCESS,
        // As a rule the supervisor has removed it itself.
        Err(_) => ExitCode::SUCCESS,
    }
}
