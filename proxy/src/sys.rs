//! The only unsafe code of this crate: system calls that no library wraps.
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// The sockets that a service manager bound for this process (LISTEN_FDS), taken over once: the
/// variables that speak of them are removed. To be called before any other thread is there.
///
/// # Errors
/// When the variables, or the descriptors that they speak of, are not what they should be.
pub fn take_inherited() -> io::Result<Vec<OwnedFd>> {
    // SAFETY: changing the environment is safe while no other thread reads it, which the caller
    // promises by calling first of all.
    let fds = unsafe { sd_notify::listen_fds_and_unset_env() }?;
    // SAFETY: the numbers are open descriptors (just now set close-on-exec without error), handed
    // to this very process and, the variables being gone, to be had here only once.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// Keeps glibc from making an arena for each of up to eight threads a core: each holds freed memory
/// of its own.
pub(crate) fn limit_malloc_arenas(count: usize) {
    #[cfg(target_env = "gnu")]
    {
        let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
        // SAFETY: takes two integers and changes only the allocator's own settings; it refuses
        // what it does not know, which is then left as it was.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, count) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// How many bytes of ours the peer has acknowledged over the life of the connection
/// (`tcpi_bytes_acked`, Linux 4.1).
pub(crate) fn tcp_bytes_acked(socket: &impl AsRawFd) -> io::Result<u64> {
    // SAFETY: `tcp_info` is plain integers, for which all zeroes is a valid value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers are valid for `length` bytes and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(info.tcpi_bytes_acked)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the next byte to be read is urgent.
pub(crate) fn is_at_urgent_mark(socket: &impl AsRawFd) -> bool {
    // The same number on every architecture; asm-generic/sockios.h.
    const SIOCATMARK: libc::Ioctl = 0x8905;
    let mut is_at_mark: libc::c_int = 0;
    // SAFETY: the request writes one int, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCATMARK, &raw mut is_at_mark) };
    done == 0 && is_at_mark != 0
}
