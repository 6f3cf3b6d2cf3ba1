//! The only unsafe code of the tests: system calls that no library wraps safely.
#![allow(unsafe_code)]

use std::{fs::File, io, os::unix::fs::FileExt, thread};

use rustix::{
    process::Pid,
    thread::{UnshareFlags, unshare_unsafe},
};

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

/// Turns one thread of another process in a circle, for ever: it executes a jump to itself, at a
/// place in its program that nothing else executes.
pub fn spin(thread: Pid) -> io::Result<()> {
    #[cfg(target_arch = "x86_64")]
    const JUMP_TO_ITSELF: &[u8] = &[0xEB, 0xFE];
    #[cfg(target_arch = "aarch64")]
    const JUMP_TO_ITSELF: &[u8] = &[0x00, 0x00, 0x00, 0x14];

    let place = end_of_program(thread)? - JUMP_TO_ITSELF.len() as u64;
    trace(libc::PTRACE_SEIZE, thread, 0, std::ptr::null_mut())?;
    trace(libc::PTRACE_INTERRUPT, thread, 0, std::ptr::null_mut())?;
    // SAFETY: the status is not asked for.
    if unsafe {
        libc::waitpid(
            thread.as_raw_nonzero().get(),
            std::ptr::null_mut(),
            libc::__WALL,
        )
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    // The kernel lets a tracer write where the program itself may not.
    let memory = File::options()
        .write(true)
        .open(format!("/proc/{}/mem", thread.as_raw_nonzero()))?;
    memory.write_all_at(JUMP_TO_ITSELF, place)?;
    // SAFETY: plain numbers, for which zero is a value.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec {
        iov_base: (&raw mut registers).cast(),
        iov_len: size_of_val(&registers),
    };
    trace(
        libc::PTRACE_GETREGSET,
        thread,
        libc::NT_PRSTATUS,
        (&raw mut vector).cast(),
    )?;
    #[cfg(target_arch = "x86_64")]
    {
        registers.rip = place;
        // Else the kernel would go back to restart the system call that was interrupted.
        registers.orig_rax = u64::MAX;
    }
    #[cfg(target_arch = "aarch64")]
    {
        registers.pc = place;
    }
    trace(
        libc::PTRACE_SETREGSET,
        thread,
        libc::NT_PRSTATUS,
        (&raw mut vector).cast(),
    )?;
    trace(libc::PTRACE_DETACH, thread, 0, std::ptr::null_mut())
}

/// Where the page that ends with padding, and may be executed, ends.
fn end_of_program(thread: Pid) -> io::Result<u64> {
    let pid = thread.as_raw_nonzero();
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    maps.lines()
        .find(|line| line.contains(" r-xp ") && line.ends_with(&*program.to_string_lossy()))
        .and_then(|line| {
            let (_, end) = line.split(' ').next()?.split_once('-')?;
            u64::from_str_radix(end, 16).ok()
        })
        .ok_or_else(|| io::Error::other(format!("no executable part of {}", program.display())))
}

fn trace(
    request: libc::c_uint,
    thread: Pid,
    what: libc::c_int,
    data: *mut libc::c_void,
) -> io::Result<()> {
    // SAFETY: `data` is null, or an iovec over registers that outlives the call.
    let done = unsafe { libc::ptrace(request, thread.as_raw_nonzero().get(), what as usize, data) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
