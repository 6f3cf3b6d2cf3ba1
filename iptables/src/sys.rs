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

/// Moves the calling thread, and what it starts from now on, to an empty network namespace.
#[cfg(test)]
pub(crate) fn enter_new_network_namespace() -> io::Result<()> {
    // SAFETY: of all the flags only FILES is a hazard to Rust's ownership of descriptors, and it
    // is not used here.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    Ok(())
}
