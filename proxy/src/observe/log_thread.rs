//! Lines on their way to a file or stream that may be slow, full or stuck: gathered in bounded
//! buffers by threads that must never wait, written by a thread of its own.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    mem,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags};

/// Bytes that may wait in one lane: some 3,000 lines, a third of a second of what one worker can
/// serve at most.
const LANE_MAX: usize = 1024 * 1024;

/// Bytes in a lane from which the writer does not gather any longer.
const LANE_URGENT: usize = LANE_MAX / 4;

/// Bytes of a buffer kept once it is empty, so that a burst does not stay in memory.
const LANE_KEPT: usize = 64 * 1024;

/// How often a failure that lasts is told again.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Stdout,
    Stderr,
    File(PathBuf),
}

/// The handle through which lines are pushed.
#[derive(Debug)]
pub struct LogThread {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lanes: Box<[Lane]>,
    orders: Mutex<Orders>,
    changed: Condvar,
    dropped: Arc<AtomicU64>,
}

/// One pushing thread's lines, so that such threads do not wait for one another.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(Mutex<Vec<u8>>);

/// What the writer has been asked for.
#[derive(Debug, Default)]
struct Orders {
    has_lines: bool,
    is_urgent: bool,
    reopen: bool,
    close: bool,
    is_closed: bool,
}

impl LogThread {
    /// Opens `target` and starts its writer, which lets lines gather for `gather` before it writes and
    /// counts those that are lost in `dropped`.
    ///
    /// # Errors
    /// When the target cannot be opened or the thread cannot be had.
    pub fn start(
        name: &str,
        target: LogTarget,
        lanes: usize,
        gather: Duration,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            orders: Mutex::default(),
            changed: Condvar::new(),
            dropped,
        });
        let writer = Writer {
            out: open(&target)?,
            target,
            is_torn: false,
            complained: None,
            inner: inner.clone(),
        };
        thread::Builder::new()
            .name(name.into())
            .spawn(move || writer.run(gather))?;
        Ok(Self { inner })
    }

    /// Lets `line` append one line to `lane`'s buffer. If that is full the line is lost and
    /// counted. The lock is shared with the writer alone, which holds it for an exchange of
    /// pointers.
    pub fn push(&self, lane: usize, line: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = lock(&self.inner.lanes[lane].0);
        let before = buffer.len();
        if before >= LANE_MAX {
            self.inner.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        line(&mut buffer);
        let after = buffer.len();
        drop(buffer);
        if before == 0 {
            self.order(|orders| orders.has_lines = true);
        } else if before < LANE_URGENT && after >= LANE_URGENT {
            self.order(|orders| orders.is_urgent = true);
        }
    }

    /// Asks the writer to open its file anew.
    pub fn reopen(&self) {
        self.order(|orders| orders.reopen = true);
    }

    /// Lines lost because they could not be written.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Has everything written and ends the writer, but waits no longer than `patience`: a stuck
    /// pipe must not keep the process from ending.
    pub fn close(&self, patience: Duration) {
        self.order(|orders| orders.close = true);
        let orders = lock(&self.inner.orders);
        let _ = self
            .inner
            .changed
            .wait_timeout_while(orders, patience, |orders| !orders.is_closed);
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        give(&mut lock(&self.inner.orders));
        self.inner.changed.notify_all();
    }
}

/// The writing side.
struct Writer {
    inner: Arc<Inner>,
    target: LogTarget,
    out: File,
    /// Whether the last line in the file was cut short by a failure.
    is_torn: bool,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, gather: Duration) {
        let mut spare = Vec::new();
        loop {
            let orders = self.wait(gather);
            if orders.reopen {
                self.reopen();
            }
            let inner = self.inner.clone();
            for lane in &inner.lanes {
                mem::swap(&mut *lock(&lane.0), &mut spare);
                self.write(&spare);
                spare.clear();
                spare.shrink_to(LANE_KEPT);
            }
            if orders.close {
                lock(&inner.orders).is_closed = true;
                inner.changed.notify_all();
                return;
            }
        }
    }

    /// Waits until there is something to do, then, unless it is urgent, for more of it.
    fn wait(&self, gather: Duration) -> Orders {
        let is_idle = |o: &mut Orders| !(o.has_lines || o.reopen || o.close);
        let can_wait = |o: &mut Orders| !(o.is_urgent || o.reopen || o.close);
        let orders = self
            .inner
            .changed
            .wait_while(lock(&self.inner.orders), is_idle)
            .unwrap_or_else(PoisonError::into_inner);
        let (mut orders, _) = self
            .inner
            .changed
            .wait_timeout_while(orders, gather, can_wait)
            .unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut orders)
    }

    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.is_torn && write_some(&self.out, b"\n").is_ok() {
            self.is_torn = false;
        }
        let mut written = 0;
        while written < lines.len() {
            match write_some(&self.out, &lines[written..]) {
                Ok(count) => written += count,
                Err(error) => {
                    self.lose(&lines[written..], &error);
                    self.is_torn |= written > 0 && lines[written - 1] != b'\n';
                    return;
                }
            }
        }
        self.complained = None;
    }

    fn lose(&mut self, lines: &[u8], error: &io::Error) {
        let lost = memchr::memchr_iter(b'\n', lines).count() as u64;
        self.inner.dropped.fetch_add(lost, Ordering::Relaxed);
        // Stderr is where complaints go; one about stderr would feed itself.
        let is_due = self
            .complained
            .is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        if is_due && self.target != LogTarget::Stderr {
            self.complained = Some(Instant::now());
            tracing::error!(
                %error,
                target = ?self.target,
                lost = self.inner.dropped.load(Ordering::Relaxed),
                "cannot write the access log; lines are dropped and counted until it can be written again"
            );
        }
    }

    fn reopen(&mut self) {
        match open(&self.target) {
            Ok(out) => {
                self.out = out;
                self.is_torn = false;
                tracing::info!(target = ?self.target, "log reopened");
            }
            Err(error) => {
                tracing::error!(%error, target = ?self.target, "cannot reopen the log; writing on to the old file");
            }
        }
    }
}

fn open(target: &LogTarget) -> io::Result<File> {
    match target {
        // Descriptors of our own: the standard library's handles would buffer what failed.
        LogTarget::Stdout => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        LogTarget::Stderr => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        LogTarget::File(path) => OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            // Opening a FIFO that nobody reads fails at once instead of waiting.
            .custom_flags(libc::O_NONBLOCK)
            .open(path),
    }
}

/// Writes some of `bytes`, waiting while a pipe is full.
fn write_some(mut file: &File, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                rustix::event::poll(&mut [PollFd::new(file, PollFlags::OUT)], None)?;
            }
            result => return result,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::net::UnixStream, process};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn push(log: &LogThread, lane: usize, text: &str) {
        log.push(lane, |out| out.extend_from_slice(text.as_bytes()));
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("outrigger-log-{name}-{}", process::id()))
    }

    #[test]
    fn lines_of_all_lanes_are_written_at_close() {
        let path = path("close");
        let target = LogTarget::File(path.clone());
        // It would gather for an hour; closing does not wait for that.
        let log =
            LogThread::start("log", target, 2, Duration::from_secs(3600), Arc::default()).unwrap();
        push(&log, 0, "a\n");
        push(&log, 1, "b\n");
        push(&log, 0, "c\n");
        log.close(PATIENCE);
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(text, "a\nc\nb\n");
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        let target = LogTarget::File("/dev/full".into());
        let log = LogThread::start("log", target, 1, Duration::ZERO, Arc::default()).unwrap();
        for _ in 0..100 {
            push(&log, 0, "line\n");
        }
        log.close(PATIENCE);
        assert_eq!(log.dropped(), 100);
    }

    #[test]
    fn a_stuck_reader_never_holds_the_pusher_and_the_bound_holds() {
        let path = path("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        let target = LogTarget::File(path.clone());
        let log = LogThread::start("log", target, 1, Duration::ZERO, Arc::default()).unwrap();
        let line = format!("{}\n", "x".repeat(1023));
        let pushed: u64 = 4 * LANE_MAX as u64 / 1024;
        for _ in 0..pushed {
            push(&log, 0, &line);
        }
        let lost_to_bound = log.dropped();
        // The pipe takes 64 KiB, one batch is in the writer's hands, one lane waits.
        assert!(lost_to_bound >= pushed / 4, "{lost_to_bound} of {pushed}");
        log.close(Duration::from_millis(1));
        drop(reader);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_fifo_that_nobody_reads_is_refused_instead_of_waited_for() {
        let path = path("unread-fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let started = LogThread::start(
            "log",
            LogTarget::File(path.clone()),
            1,
            Duration::ZERO,
            Arc::default(),
        );
        fs::remove_file(&path).unwrap();
        assert!(started.is_err());
    }

    #[test]
    fn a_torn_line_does_not_swallow_the_next() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut writer = Writer {
            inner: Arc::new(Inner {
                lanes: Box::default(),
                orders: Mutex::default(),
                changed: Condvar::new(),
                dropped: Arc::default(),
            }),
            target: LogTarget::Stderr,
            out: File::from(std::os::fd::OwnedFd::from(ours)),
            is_torn: true,
            complained: None,
        };
        writer.write(b"whole\n");
        drop(writer);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\nwhole\n");
    }
}
