//! Who ended, and how. A supervisor reaps whatever ends below it, and only one thread may do so; the
//! other learns here what became of its proxies.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait};

#[derive(Debug, Default)]
pub(super) struct Deaths {
    /// The proxies that were started, and their end where it has come.
    proxies: Mutex<HashMap<Pid, Option<WaitStatus>>>,
    news: Condvar,
}

impl Deaths {
    /// Starts a proxy whose end will be told here.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<(Pid, OwnedFd)> {
        // Nobody is reaped meanwhile, so that the number still means this process.
        let mut proxies = self.proxies();
        let mut child: Child = command.spawn()?;
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => {
                proxies.insert(pid, None);
                Ok((pid, pidfd))
            }
            Err(errno) => {
                let _ = child.kill();
                Err(errno.into())
            }
        }
    }

    /// How the proxy `pid`, which has ended, did so.
    pub(super) fn of(&self, pid: Pid) -> Option<WaitStatus> {
        const REAPED: Duration = Duration::from_secs(5);
        let is_missing = |proxies: &mut HashMap<Pid, Option<WaitStatus>>| {
            matches!(proxies.get(&pid), Some(None))
        };
        let (mut proxies, _) = self
            .news
            .wait_timeout_while(self.proxies(), REAPED, |p| is_missing(p))
            .unwrap_or_else(PoisonError::into_inner);
        proxies.remove(&pid).flatten()
    }

    /// Reaps all that has ended; returns those that are no proxies.
    pub(super) fn reap(&self) -> Vec<(Pid, WaitStatus)> {
        let mut proxies = self.proxies();
        let mut others = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            match proxies.get_mut(&pid) {
                Some(proxy) => *proxy = Some(status),
                None => others.push((pid, status)),
            }
        }
        self.news.notify_all();
        others
    }

    pub(super) fn is_proxy(&self, pid: Pid) -> bool {
        self.proxies().contains_key(&pid)
    }

    fn proxies(&self) -> MutexGuard<'_, HashMap<Pid, Option<WaitStatus>>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As a shell would tell it.
pub(super) fn describe(status: Option<WaitStatus>) -> String {
    let Some(status) = status else {
        return "ended".into();
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => "ended".into(),
    }
}

/// The exit code by which a shell would pass it on.
pub(super) fn exit_code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (_, Some(signal)) => 128 + signal,
        _ => 1,
    };
    u8::try_from(code).unwrap_or(1)
}
