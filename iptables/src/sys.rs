//! The system calls that no crate wraps safely.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
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
            libc::waitpid(self.0, ptr::null_mut(), 0);
        }
    }
}

/// Runs `action` in a copy of this process, which has all its descriptors, in the cgroup whose directory is
/// `cgroup`, if one is named. The action may only make system calls: another thread may have held any lock at
/// the fork, and none of them lives in the copy.
pub(crate) fn fork(
    cgroup: Option<BorrowedFd<'_>>,
    action: &mut impl FnMut(),
) -> io::Result<Helper> {
    // SAFETY: the child runs `action` alone, which by contract (its one caller keeps it) makes system
    // calls on descriptors and its own stack, and takes no lock that a thread of the parent could
    // have held; it then ends without unwinding into the parent's frames or running exit handlers.
    match unsafe { raw_fork(cgroup) }? {
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

/// Starts the program `words[0]`, looked for as a shell would, in the cgroup whose directory is `cgroup`: it is
/// there from its first instruction on. No signal is blocked for it. The outer error says that nothing can be
/// started there in this way; the inner one is the program's.
pub(crate) fn spawn(
    cgroup: BorrowedFd<'_>,
    words: &[CString],
) -> io::Result<Result<u32, io::Error>> {
    let arguments: Vec<_> = words
        .iter()
        .map(|word| word.as_ptr())
        .chain([ptr::null()])
        .collect();
    let (mut failed, failure) = io::pipe()?;
    // SAFETY: the child makes system calls alone, on what was made before it: `execvp` allocates nothing, and
    // `arguments` ends with a null pointer and points to strings that outlive it. It then ends without
    // unwinding into the parent's frames or running exit handlers.
    let pid = unsafe {
        match raw_fork(Some(cgroup))? {
            0 => {
                let error = exec(&arguments).raw_os_error().unwrap_or(libc::ENOENT);
                let bytes = error.to_ne_bytes();
                libc::write(failure.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                libc::_exit(127)
            }
            pid => pid,
        }
    };
    drop(failure);
    let mut error = [0; 4];
    // The other end closes when the program begins.
    match failed.read_exact(&mut error) {
        Err(_) => Ok(Ok(pid.unsigned_abs())),
        Ok(()) => {
            // SAFETY: plain system call on a child of ours, which is about to end.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            let error = i32::from_ne_bytes(error);
            Ok(Err(io::Error::from_raw_os_error(error)))
        }
    }
}

/// # Safety
/// To be called after [`raw_fork`] in the child; `arguments` are C strings, the last one null.
unsafe fn exec(arguments: &[*const libc::c_char]) -> io::Error {
    // SAFETY: a set on the stack, plain numbers, and strings by the caller's promise.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        // Which Rust's runtime has ignored.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execvp(arguments[0], arguments.as_ptr());
    }
    io::Error::last_os_error()
}

/// Since Linux 5.7 (linux/sched.h); it does not fit in the type that libc gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A copy of this process with its calling thread only: 0 in the copy. To begin in a cgroup is quick; to be moved
/// there makes the kernel wait some 10 ms for all that begins or ends elsewhere.
///
/// # Safety
/// The child may only make system calls, and must end by one.
unsafe fn raw_fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<libc::pid_t> {
    let forked = match cgroup {
        None => {
            #[expect(
                clippy::disallowed_methods,
                reason = "the copy lives while the gate probes, before any table is owned, and dies with this process"
            )]
            // SAFETY: by the caller's promise.
            unsafe {
                libc::fork()
            }
        }
        Some(cgroup) => {
            // SAFETY: integers only.
            let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
            how.flags = CLONE_INTO_CGROUP;
            how.exit_signal = libc::SIGCHLD as u64;
            how.cgroup = cgroup.as_raw_fd() as u64;
            // SAFETY: the kernel reads a structure of this size, which asks for a copy of everything, as `fork`
            // does; the rest is the caller's promise.
            let forked =
                unsafe { libc::syscall(libc::SYS_clone3, &raw mut how, size_of_val(&how)) };
            forked as libc::pid_t
        }
    };
    match forked {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
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
