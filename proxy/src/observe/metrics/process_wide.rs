//! What is counted for the whole process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use super::reason;
use crate::{failure::Failure, shared::Shared};

#[derive(Debug)]
pub struct Metrics {
    refused: [AtomicU64; reason::COUNT],
    of_worker: Box<[WorkerMetrics]>,
    pub(crate) started: SystemTime,
}

/// One worker's figures, on lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct WorkerMetrics {
    accepted: AtomicU64,
    idle_upstream: AtomicI64,
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
            of_worker: (0..workers).map(|_| WorkerMetrics::default()).collect(),
            started: SystemTime::now(),
        }
    }

    pub fn workers(&self) -> usize {
        self.of_worker.len()
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
        let accepted = |w: &WorkerMetrics| w.accepted.load(Ordering::Relaxed);
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

    /// For a pool that counts its own and tells of changes once in a while.
    pub(crate) fn add_idle_upstream(&self, worker: usize, change: i64) {
        let cell = &self.of_worker[worker].idle_upstream;
        cell.fetch_add(change, Ordering::Relaxed);
    }

    pub(crate) fn idle_upstream(&self) -> u64 {
        let idle = |w: &WorkerMetrics| w.idle_upstream.load(Ordering::Relaxed);
        self.of_worker.iter().map(idle).sum::<i64>().max(0) as u64
    }
}

/// Counts an upstream connection as idle in a pool until dropped.
#[derive(Debug)]
pub struct IdleUpstream {
    shared: Arc<Shared>,
    worker: usize,
}

impl IdleUpstream {
    pub fn begin(shared: &Arc<Shared>, worker: usize) -> Self {
        let idle = Self {
            shared: shared.clone(),
            worker,
        };
        idle.cell().fetch_add(1, Ordering::Relaxed);
        idle
    }

    fn cell(&self) -> &AtomicI64 {
        &self.shared.metrics.of_worker[self.worker].idle_upstream
    }
}

impl Drop for IdleUpstream {
    fn drop(&mut self) {
        self.cell().fetch_sub(1, Ordering::Relaxed);
    }
}
