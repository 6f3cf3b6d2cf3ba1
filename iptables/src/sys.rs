//! The system calls that no crate wraps safely.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// Who made (for a client: listens on) the other end of a UNIX socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    /// 0 for a process of a pid namespace that this one does not see; rustix' type has no room for
    /// that zero, which is why this is not rustix'.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

pub(crate) fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `credentials`, a plain C struct of
    // exactly that size that outlives the call, and the descriptor is borrowed for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PeerCredentials {
        pid: credentials.pid,
        uid: credentials.uid,
    })
}

/// Has `action` done by the process that `command` starts, before it becomes the program. The action
/// may only make system calls: another thread may have held the allocator's lock at the fork.
pub(crate) fn before_exec(
    command: &mut Command,
    action: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: what runs between fork and exec is `action` alone; its callers in this crate pass
    // closures that make plain system calls on descriptors and numbers of their own.
    unsafe { command.pre_exec(action) };
}

/// A copy of this process, killed and reaped when dropped, or when this process ends.
pub(crate) struct Helper(libc::pid_t);

impl Helper {
    pub(crate) fn pid(&self) -> u32 {
        self.0.unsigned_abs()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // SAFETY: plain system calls on a child of ours, which nobody else waits for, so that its
        // number is not given to another before the second call.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Runs `action` in a copy of this process, which has all its descriptors. The action may only make
/// system calls: another thread may have held any lock at the fork, and none of them lives in the copy.
pub(crate) fn fork(action: impl FnOnce()) -> io::Result<Helper> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the copy lives while the gate probes, before any table is owned, and dies with this process"
    )]
    // SAFETY: the child runs `action` alone, which by contract (its one caller keeps it) makes system
    // calls on descriptors and its own stack, and takes no lock that a thread of the parent could
    // have held; it then ends without unwinding into the parent's frames or running exit handlers.
    let forked = unsafe { libc::fork() };
    match forked {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: a plain system call with numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        pid => Ok(Helper(pid)),
    }
}

/// Makes files and sockets of the calling thread belong to `uid`, for the rest of its life.
pub(crate) fn take_file_uid(uid: u32) -> io::Result<()> {
    // SAFETY: changes a number of the calling thread only.
    let now = unsafe {
        libc::setfsuid(uid);
        // It answers the old one, whether it worked or not, and this value is never taken.
        libc::setfsuid(u32::MAX)
    };
    taken(now, uid)
}

/// The same for the group.
pub(crate) fn take_file_gid(gid: u32) -> io::Result<()> {
    // SAFETY: changes a number of the calling thread only.
    let now = unsafe {
        libc::setfsgid(gid);
        libc::setfsgid(u32::MAX)
    };
    taken(now, gid)
}

fn taken(now: i32, wanted: u32) -> io::Result<()> {
    if now.cast_unsigned() == wanted {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("this process may not act as {wanted}"),
        ))
    }
}

/// Moves the calling thread, and what it starts from now on, to an empty network namespace.
#[cfg(test)]
pub(crate) fn enter_new_network_namespace() -> io::Result<()> {
    // SAFETY: of all the flags only FILES is a hazard to Rust's ownership of descriptors, and it
    // is not used here.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Which rules a table of iptables-legacy has: how many bytes, and the bytes.
pub(crate) const XTABLES_GET_INFO: i32 = 64;
pub(crate) const XTABLES_GET_ENTRIES: i32 = 65;

/// Asks iptables-legacy of the calling thread's network namespace; question and answer share `bytes`.
pub(crate) fn xtables_option(is_v6: bool, option: i32, bytes: &mut [u8]) -> io::Result<()> {
    let (domain, level) = if is_v6 {
        (socket2::Domain::IPV6, libc::IPPROTO_IPV6)
    } else {
        (socket2::Domain::IPV4, libc::IPPROTO_IP)
    };
    let socket = socket2::Socket::new(domain, socket2::Type::RAW, Some(libc::IPPROTO_RAW.into()))?;
    let given = bytes.len() as libc::socklen_t;
    let mut length = given;
    // SAFETY: the kernel reads and writes at most `length` bytes at `bytes`, which is that long,
    // initialised, and outlives the call; any bytes are valid in it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // A short answer would leave zeros that look like rules.
    if length != given {
        return Err(io::Error::from_raw_os_error(libc::EAGAIN));
    }
    Ok(())
}
