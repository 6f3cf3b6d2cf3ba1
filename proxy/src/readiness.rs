//! Whether this process should be sent work.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::shared::Shared;

#[derive(Debug, Default)]
pub struct Readiness {
    accepting: AtomicUsize,
    is_draining: AtomicBool,
    /// By an order of the admin listener.
    is_failed: AtomicBool,
}

impl Readiness {
    /// Workers that take connections from their listeners now.
    pub fn accepting(&self) -> usize {
        self.accepting.load(Ordering::Relaxed)
    }

    pub fn start_draining(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// From here on it counts as not ready, or no longer does.
    pub fn set_failed(&self, is_failed: bool) {
        self.is_failed.store(is_failed, Ordering::Relaxed);
    }

    /// Why it should not be sent work; empty if it should.
    pub fn objections(&self) -> Vec<&'static str> {
        let mut objections = Vec::new();
        if self.is_draining() {
            objections.push("draining: the process has been told to stop");
        }
        if self.is_failed.load(Ordering::Relaxed) {
            objections.push("failed: POST /healthcheck/fail; POST /healthcheck/ok takes it back");
        }
        if self.accepting() == 0 {
            objections.push("no worker accepts connections");
        }
        objections
    }
}

/// Counts a worker as accepting until dropped.
#[derive(Debug)]
pub struct Accepting(Arc<Shared>);

impl Accepting {
    pub fn begin(shared: &Arc<Shared>) -> Self {
        shared.readiness.accepting.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.readiness.accepting.fetch_sub(1, Ordering::Relaxed);
    }
}
