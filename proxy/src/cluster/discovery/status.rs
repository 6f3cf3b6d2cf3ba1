//! How discovery of a cluster's endpoints goes, for whoever watches the proxy.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// What the last lookup or reading came to, and how old the endpoints are.
#[derive(Debug, Default)]
pub struct DiscoveryStatus(Mutex<State>);

#[derive(Clone, Debug, Default)]
pub struct State {
    /// When the source last told the endpoints, were they new or not.
    pub answered_at: Option<Instant>,
    /// Why the last try failed; `None`: it did not.
    pub failure: Option<Box<str>>,
    pub successes: u64,
    pub failures: u64,
}

impl DiscoveryStatus {
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    pub(super) fn succeeded(&self, now: Instant) {
        let mut state = self.lock();
        state.answered_at = Some(now);
        state.failure = None;
        state.successes += 1;
    }

    pub(in crate::cluster) fn failed(&self, why: impl fmt::Display) {
        let why = why.to_string();
        let mut state = self.lock();
        state.failure = Some(why.into());
        state.failures += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
