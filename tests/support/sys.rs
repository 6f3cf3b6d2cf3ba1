//! The only unsafe code of the tests: system calls that no library wraps safely.
#![allow(unsafe_code)]

use std::{fs::File, io, thread};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A new network namespace, which lives as long as the descriptor or a process within.
pub(super) fn new_network_namespace() -> io::Result<File> {
    let maker = thread::spawn(|| {
        // SAFETY: this changes the network namespace of this thread only, which ends right after;
        // no descriptor table is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        File::open("/proc/thread-self/ns/net")
    });
    maker.join().expect("the thread does not panic")
}
