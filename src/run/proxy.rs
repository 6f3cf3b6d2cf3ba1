//! One proxy of a supervisor: `serve` in a session of its own, at the other end of a link.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use outrigger_proxy::supervised::{self, Word};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, pidfd_send_signal},
};

use super::{deaths::Deaths, sockets::Sockets};
use crate::sys;

/// From its start until it serves; it takes milliseconds on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    /// The proxy leaves when this closes, which the kernel sees to should this process be killed.
    link: UnixStream,
}

/// How every proxy of a supervisor is started.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: OsString,
    pub(super) arguments: Vec<String>,
    /// The text of the configuration file as it was read at the start: a restart must not depend on
    /// what a file holds meanwhile.
    pub(super) config: String,
}

impl Proxy {
    /// Starts one and waits until it has all that it needs to serve, and has taken nothing yet.
    ///
    /// # Errors
    /// What went wrong; the process is then on its way out.
    pub(super) fn prepare(
        program: &Program,
        sockets: &Sockets,
        deaths: &Deaths,
    ) -> Result<Self, (Option<Self>, io::Error)> {
        let proxy = Self::spawn(program, deaths).map_err(|error| (None, error))?;
        let admin = sockets.admin.as_ref().map(AsFd::as_fd);
        let prepared = supervised::offer(&proxy.link, &program.config, &sockets.listeners, admin)
            .and_then(|()| supervised::await_prepared(&proxy.link));
        match prepared {
            Ok(()) => Ok(proxy),
            Err(error) => {
                proxy.signal(Signal::KILL);
                Err((Some(proxy), error))
            }
        }
    }

    /// Lets a prepared one serve, and waits until it does.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn begin(&self) -> io::Result<()> {
        supervised::go(&self.link)?;
        supervised::await_ready(&self.link)
    }

    /// # Errors
    /// When it does not do it; it is then of no more use.
    pub(super) fn say(&self, word: Word) -> io::Result<()> {
        supervised::say(&self.link, word)
    }

    fn spawn(program: &Program, deaths: &Deaths) -> io::Result<Self> {
        let (link, theirs) = UnixStream::pair()?;
        link.set_read_timeout(Some(START_LIMIT))?;
        link.set_write_timeout(Some(START_LIMIT))?;
        let mut command = Command::new(&program.path);
        command
            .arg0("proxyctl")
            .arg("serve")
            .arg("--supervised")
            .args(&program.arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // The command's output is the command's alone.
            .stdout(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?));
        for ours in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(ours);
        }
        // The terminal's signals are for the command: ^C ends that, and then we end the proxy.
        sys::start_session(&mut command);
        sys::unblock_signals(&mut command);
        let (pid, pidfd) = deaths.spawn(&mut command)?;
        Ok(Self { pid, pidfd, link })
    }

    pub(super) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll_within(&mut fds, Duration::ZERO);
        !fds[0].revents().is_empty()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // One that has ended needs none.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Has it end at once: nobody is left to be captured for.
    pub(super) fn desert(&self) -> io::Result<()> {
        supervised::desert(&self.link)
    }

    /// Waits for its end, and for `orders` to have something to read.
    pub(super) fn watch(&self, orders: impl AsFd, limit: Duration) -> Seen {
        let mut fds = [
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::new(&orders, PollFlags::IN),
        ];
        poll_within(&mut fds, limit);
        if !fds[0].revents().is_empty() {
            Seen::Death
        } else if !fds[1].revents().is_empty() {
            Seen::Order
        } else {
            Seen::Nothing
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    Order,
    Death,
}

/// Polls for as long as `limit`, whatever interrupts.
pub(super) fn poll_within(fds: &mut [PollFd<'_>], limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(fds, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}
