//! The system calls that only `unsafe` reaches, each under a plain name.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::UnshareFlags;

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
