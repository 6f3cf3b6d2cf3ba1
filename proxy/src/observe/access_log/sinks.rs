//! The files that access logs are written to. One that stays in the configuration is the same after
//! a reload; one that goes is closed when nobody writes to it any more.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use outrigger_config::AccessLogTarget;

use crate::observe::log_thread::{LogTarget, LogThread};

/// How long lines may gather before they are written: few wake-ups under load, and hardly a wait
/// for someone who watches the file.
const GATHER: Duration = Duration::from_millis(200);

/// One file, or standard output.
#[derive(Debug)]
pub(super) struct Sink(LogThread);

impl Sink {
    pub(super) fn push(&self, worker: usize, line: impl FnOnce(&mut Vec<u8>)) {
        self.0.push(worker, line);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // It ends by itself once it has written what is there.
        self.0.close(Duration::ZERO);
    }
}

/// All of them.
#[derive(Debug)]
pub struct Sinks {
    workers: usize,
    open: Mutex<HashMap<AccessLogTarget, Weak<Sink>>>,
    /// Lines lost, those of files that are no longer open included.
    dropped: Arc<AtomicU64>,
}

impl Sinks {
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            open: Mutex::default(),
            dropped: Arc::default(),
        }
    }

    /// The one for `target`; none where that turns the log off.
    ///
    /// # Errors
    /// When the file cannot be opened or a thread cannot be had.
    pub(super) fn sink(&self, target: &AccessLogTarget) -> Result<Option<Arc<Sink>>, Unopened> {
        let (path, log_target) = match target {
            AccessLogTarget::Off => return Ok(None),
            AccessLogTarget::Stdout => ("stdout".into(), LogTarget::Stdout),
            AccessLogTarget::File(path) => (path.clone(), LogTarget::File(path.clone())),
        };
        let mut open = self.lock();
        if let Some(sink) = open.get(target).and_then(Weak::upgrade) {
            return Ok(Some(sink));
        }
        let dropped = self.dropped.clone();
        let thread = LogThread::start("access-log", log_target, self.workers, GATHER, dropped)
            .map_err(|source| Unopened { path, source })?;
        let sink = Arc::new(Sink(thread));
        open.retain(|_, sink| sink.strong_count() > 0);
        open.insert(target.clone(), Arc::downgrade(&sink));
        Ok(Some(sink))
    }

    /// Lines lost because they could not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Opens every file anew, after someone has moved it away; how many there are.
    pub fn reopen(&self) -> usize {
        let sinks = self.all();
        sinks.iter().for_each(|sink| sink.0.reopen());
        sinks.len()
    }

    /// Writes what has gathered, for at most `patience` in all.
    pub fn close(&self, patience: Duration) {
        let end = std::time::Instant::now() + patience;
        for sink in self.all() {
            sink.0
                .close(end.saturating_duration_since(std::time::Instant::now()));
        }
    }

    fn all(&self) -> Vec<Arc<Sink>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccessLogTarget, Weak<Sink>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that cannot be written to.
#[derive(Debug)]
pub struct Unopened {
    pub path: PathBuf,
    pub source: io::Error,
}
