//! What is counted for the whole process.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio::runtime::RuntimeMetrics;

use super::reason;
use crate::failure::Failure;

#[derive(Debug)]
pub struct Metrics {
    refused: [AtomicU64; reason::COUNT],
    of_worker: Box<[Arc<WorkerMetrics>]>,
    pub(crate) started: SystemTime,
    has_native_histograms: AtomicBool,
}

/// One worker's figures, on lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct WorkerMetrics {
    accepted: AtomicU64,
    idle_upstream: AtomicU64,
    runtime: OnceLock<RuntimeMetrics>,
}

impl Default for Metrics {
    /// For one worker.
    fn default() -> Self {
        Self::new(1)
    }
}

impl Metrics {
    pub fn new(workers: usize) -> Self {
        Self {
            refused: Default::default(),
            of_worker: (0..workers).map(|_| Arc::default()).collect(),
            started: SystemTime::now(),
            has_native_histograms: AtomicBool::new(false),
        }
    }

    pub fn workers(&self) -> usize {
        self.of_worker.len()
    }

    /// Keeps latencies in fine buckets as well; to be asked before the first is counted.
    pub(crate) fn keep_native_histograms(&self) {
        self.has_native_histograms.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_native_histograms(&self) -> bool {
        self.has_native_histograms.load(Ordering::Relaxed)
    }

    /// What tokio counts of `worker`'s event loop.
    pub(crate) fn runtime_of(&self, worker: usize, metrics: RuntimeMetrics) {
        let _ = self.of_worker[worker].runtime.set(metrics);
    }

    /// The event loops that have begun, with their workers' numbers.
    pub(crate) fn runtimes(&self) -> impl Iterator<Item = (usize, &RuntimeMetrics)> {
        (self.of_worker.iter().enumerate())
            .filter_map(|(id, worker)| Some((id, worker.runtime.get()?)))
    }

    /// Counts a connection taken from a listener's queue, whatever becomes of it.
    pub fn connection_accepted(&self, worker: usize) {
        self.of_worker[worker]
            .accepted
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was closed before it was anybody's request.
    pub fn connection_refused(&self, failure: Failure) {
        self.refused[reason::number(failure)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn accepted(&self) -> u64 {
        let accepted = |w: &Arc<WorkerMetrics>| w.accepted.load(Ordering::Relaxed);
        self.of_worker.iter().map(accepted).sum()
    }

    /// Refused connections by reason: those that have happened and, at 0, those that accepting can
    /// refuse for, since an alert needs a series to start from.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let accepting = [
            Failure::NotRedirected,
            Failure::Loop,
            Failure::ConnectionLimit,
            Failure::OutOfResources,
        ]
        .map(Failure::label);
        self.refused
            .iter()
            .enumerate()
            .map(|(number, count)| (reason::label(number), count.load(Ordering::Relaxed)))
            .filter(move |(label, count)| *count > 0 || accepting.contains(label))
    }

    /// Counts an upstream connection of `worker` as idle in a pool for as long as the result lives.
    pub fn idle_upstream(&self, worker: usize) -> IdleUpstream {
        let cells = self.of_worker[worker].clone();
        cells.idle_upstream.fetch_add(1, Ordering::Relaxed);
        IdleUpstream(cells)
    }

    pub(crate) fn idle_upstreams(&self) -> u64 {
        let idle = |w: &Arc<WorkerMetrics>| w.idle_upstream.load(Ordering::Relaxed);
        self.of_worker.iter().map(idle).sum()
    }
}

/// An upstream connection that is idle in a pool. Counted in its worker's own cells, whose count of
/// users no other worker touches either.
#[derive(Debug)]
pub struct IdleUpstream(Arc<WorkerMetrics>);

impl Drop for IdleUpstream {
    fn drop(&mut self) {
        self.0.idle_upstream.fetch_sub(1, Ordering::Relaxed);
    }
}
