//! The only unsafe code of this crate: system calls that no library wraps.
#![allow(unsafe_code)]

use std::{io, mem, os::fd::AsRawFd};

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
