//! The only unsafe code of this crate: system calls that no library wraps.
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::io::unix::AsyncFd;

/// The descriptors that a service manager passed to this process (LISTEN_FDS), with their names, taken over
/// once: the variables that speak of them are removed. To be called before any other thread is there.
///
/// # Errors
/// When the variables, or the descriptors that they speak of, are not what they should be.
pub(crate) fn take_inherited() -> io::Result<Vec<(OwnedFd, String)>> {
    // SAFETY: changing the environment is safe while no other thread reads it, which the caller
    // promises by calling first of all.
    let fds = unsafe { sd_notify::listen_fds_with_names_and_unset_env() }?;
    // SAFETY: the numbers are open descriptors (just now set close-on-exec without error), handed
    // to this very process and, the variables being gone, to be had here only once.
    Ok(fds
        .map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name))
        .collect())
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

/// Gives the operating system what has been freed: glibc by itself does so at the end of an arena only,
/// and what a configuration was read with lies below what it was read to.
pub(crate) fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer and touches nothing that is allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the event loop tell when `fd` has something to read.
pub(crate) fn readiness_of(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, and nobody can
    // take it out of the `AsyncFd` without ending the registration.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
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

/// What the allocator says that it holds, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeapFigures {
    pub(crate) arena: u64,
    pub(crate) in_use: u64,
    pub(crate) free: u64,
    pub(crate) mapped: u64,
    pub(crate) mapped_blocks: u64,
    pub(crate) releasable: u64,
}

/// None where it does not say.
pub(crate) fn heap_figures() -> Option<HeapFigures> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes nothing, and locks each arena while it looks.
        let told = unsafe { libc::mallinfo2() };
        Some(HeapFigures {
            arena: told.arena as u64,
            in_use: told.uordblks as u64,
            free: told.fordblks as u64,
            mapped: told.hblkhd as u64,
            mapped_blocks: told.hblks as u64,
            releasable: told.keepcost as u64,
        })
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Samples a second of CPU: not a divisor of what timers in programs do, so as to hide nothing.
pub(crate) const PROFILE_HZ: u64 = 99;

/// Frames of one stack.
const MAX_DEPTH: usize = 64;

/// 8 MiB, kept from the first profile on; a minute of two busy CPUs takes 11,880.
const MAX_SAMPLES: usize = 16_384;

/// Where the signal handler puts what it sees. Never freed: a signal may be late.
struct Sampler {
    is_on: AtomicBool,
    taken: AtomicUsize,
    frames: Box<[AtomicUsize]>,
}

static SAMPLER: OnceLock<Sampler> = OnceLock::new();

/// What a profile is made of.
#[derive(Debug)]
pub(crate) struct Samples {
    frames: Vec<usize>,
    lost: usize,
}

impl Samples {
    /// Addresses of code, the innermost frame first.
    pub(crate) fn stacks(&self) -> impl Iterator<Item = &[usize]> {
        let stacks = self.frames.chunks_exact(MAX_DEPTH).map(|stack| {
            let depth = stack.iter().position(|frame| *frame == 0);
            &stack[..depth.unwrap_or(MAX_DEPTH)]
        });
        stacks.filter(|stack| !stack.is_empty())
    }

    pub(crate) fn lost(&self) -> usize {
        self.lost
    }
}

/// Begins to note where whichever thread runs is, [`PROFILE_HZ`] times in a second of CPU. Only one
/// may run at a time.
pub(crate) fn start_profile() -> io::Result<()> {
    let sampler = SAMPLER.get_or_init(|| Sampler {
        is_on: AtomicBool::new(false),
        taken: AtomicUsize::new(0),
        frames: (0..MAX_DEPTH * MAX_SAMPLES)
            .map(|_| AtomicUsize::new(0))
            .collect(),
    });
    let used = sampler.taken.swap(0, Ordering::Relaxed).min(MAX_SAMPLES) * MAX_DEPTH;
    for frame in &sampler.frames[..used] {
        frame.store(0, Ordering::Relaxed);
    }
    // What the first walk has to load is loaded here and not in the handler.
    backtrace::trace(|_| true);
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, touches nothing but atomics that
    // are never freed, allocates nothing and takes no lock; it stays in place for good, because the
    // default action of a late signal would end the process.
    let installed = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = note_stack as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut())
    };
    if installed != 0 {
        return Err(io::Error::last_os_error());
    }
    sampler.is_on.store(true, Ordering::Release);
    set_profile_timer((1_000_000 / PROFILE_HZ) as libc::suseconds_t)
}

/// What was noted since [`start_profile`].
pub(crate) fn stop_profile() -> Samples {
    let _ = set_profile_timer(0);
    let Some(sampler) = SAMPLER.get() else {
        return Samples {
            frames: Vec::new(),
            lost: 0,
        };
    };
    sampler.is_on.store(false, Ordering::Release);
    let taken = sampler.taken.load(Ordering::Acquire);
    let kept = &sampler.frames[..taken.min(MAX_SAMPLES) * MAX_DEPTH];
    Samples {
        frames: kept.iter().map(|f| f.load(Ordering::Relaxed)).collect(),
        lost: taken.saturating_sub(MAX_SAMPLES),
    }
}

fn set_profile_timer(micros: libc::suseconds_t) -> io::Result<()> {
    let interval = libc::timeval {
        tv_sec: 0,
        tv_usec: micros,
    };
    let timer = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: the kernel reads one `itimerval`, which outlives the call.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler: the stack of the thread that it interrupted, from there outwards.
extern "C" fn note_stack(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(sampler) = SAMPLER.get().filter(|s| s.is_on.load(Ordering::Acquire)) else {
        return;
    };
    let sample = sampler.taken.fetch_add(1, Ordering::Relaxed);
    if sample >= MAX_SAMPLES {
        return;
    }
    let stack = &sampler.frames[sample * MAX_DEPTH..][..MAX_DEPTH];
    let interrupted_at = interrupted_at(context);
    let (mut depth, mut is_outside) = (0, interrupted_at == 0);
    // SAFETY: walking a stack reads memory of this thread alone and the unwind tables, which glibc
    // finds without a lock (_dl_find_object, since 2.35); libgcc's own walk allocates nothing.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            let at = frame.ip().addr();
            // What comes before are this handler and the kernel's trampoline.
            is_outside |= at == interrupted_at;
            if is_outside {
                stack[depth].store(at, Ordering::Relaxed);
                depth += 1;
            }
            depth < MAX_DEPTH
        });
    }
    if depth == 0 {
        stack[0].store(interrupted_at, Ordering::Relaxed);
    }
}

/// The instruction at which a signal came; 0 where that is not known.
fn interrupted_at(context: *mut libc::c_void) -> usize {
    let context = context.cast::<libc::ucontext_t>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel gives a handler installed with SA_SIGINFO a whole `ucontext_t`.
    let at = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] } as usize;
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    let at = unsafe { (*context).uc_mcontext.pc } as usize;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let at = {
        let _ = context;
        0
    };
    at
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_profile_finds_the_function_that_spins() {
        #[inline(never)]
        fn spins_for_the_profile(until: Instant) -> u64 {
            let mut sum = 0u64;
            while Instant::now() < until {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
            }
            sum
        }
        start_profile().expect("a timer");
        let begun = Instant::now();
        let stacks = loop {
            spins_for_the_profile(Instant::now() + Duration::from_millis(200));
            let sampler = SAMPLER.get().expect("it was made");
            if sampler.taken.load(Ordering::Relaxed) >= 10 {
                break stop_profile();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no samples");
        };
        let mut names = Vec::new();
        for frame in stacks.stacks().flatten() {
            backtrace::resolve(ptr::without_provenance_mut(*frame), |symbol| {
                names.extend(symbol.name().map(|name| name.to_string()));
            });
        }
        let is_found = names
            .iter()
            .any(|name| name.contains("spins_for_the_profile"));
        assert!(is_found, "{names:?}");
    }
}
