//! The system calls that only `unsafe` reaches, each under a plain name.
#![allow(unsafe_code)]

use std::{
    io::{self, Read},
    mem,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
};

use rustix::{process::Signal, thread::UnshareFlags};

/// Moves this process into new namespaces of the kinds named.
///
/// # Errors
/// The kernel's own.
pub(crate) fn enter_new_namespaces(kinds: UnshareFlags) -> io::Result<()> {
    debug_assert!(!kinds.contains(UnshareFlags::FILES));
    // SAFETY: the only hazard of the call is unsharing the descriptor table among threads
    // (CLONE_FILES), which no caller asks for.
    unsafe { rustix::thread::unshare_unsafe(kinds) }.map_err(io::Error::from)
}

/// Makes what `command` starts the leader of a session of its own, without a terminal.
pub(crate) fn start_session(command: &mut Command) {
    // SAFETY: between fork and exec the child makes one system call, which allocates nothing and
    // takes no lock.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
}

/// Lets `command` have every signal, whatever this process has blocked: a mask is inherited.
pub(crate) fn unblock_signals(command: &mut Command) {
    // SAFETY: between fork and exec the child fills a set on its stack and makes one system call,
    // which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut none);
            match libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        })
    };
}

/// Signals that wait here to be read instead of interrupting.
#[derive(Debug)]
pub(crate) struct Signals(std::fs::File);

/// A signal that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caught {
    pub(crate) signal: Signal,
    /// Sent by the terminal or the kernel, and then to the whole process group.
    pub(crate) by_kernel: bool,
    /// Whose it was otherwise; 0 for one that this pid namespace does not see.
    pub(crate) sender: i32,
}

impl Signals {
    /// Blocks `signals` in this thread, and in all that it starts: see [`unblock_signals`].
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub(crate) fn block(signals: &[Signal]) -> io::Result<Self> {
        // SAFETY: a signal set is plain data that `sigemptyset` initialises, every pointer is to
        // it, and the descriptor that comes back is new and nobody else's.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, signal.as_raw());
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            match libc::signalfd(-1, &raw const set, flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(OwnedFd::from_raw_fd(fd).into())),
            }
        }
    }

    /// The next one, if one has come.
    pub(crate) fn next(&self) -> Option<Caught> {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut bytes).ok()?;
        // SAFETY: the kernel fills exactly this structure, which is integers only.
        let info: libc::signalfd_siginfo = unsafe { mem::transmute(bytes) };
        Some(Caught {
            signal: Signal::from_named_raw(info.ssi_signo.cast_signed())?,
            by_kernel: info.ssi_code == libc::SI_KERNEL,
            sender: info.ssi_pid.cast_signed(),
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
