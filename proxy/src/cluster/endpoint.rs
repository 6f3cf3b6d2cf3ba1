//! One address of a cluster and everything that is known of it. It outlives host sets and reloads:
//! whoever needs it holds an `Arc` of it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    time::Instant,
};

use crate::observe::SharedLatency;

use super::{balance::peak_ewma::Latency, breaker::Breaker, outcome::Outcome, outlier::Tally};

const EJECTED: u8 = 1;
const UNHEALTHY: u8 = 2;

#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub counts: Counts,
    /// From a request to its answer's head.
    pub(crate) durations: SharedLatency,
    pub(super) latency: Latency,
    pub(super) breaker: Breaker,
    pub(super) tally: Tally,
    born: Instant,
    /// Why it should get no traffic; 0: nothing speaks against it.
    objections: AtomicU8,
    active: AtomicU32,
    /// Milliseconds since `born` at which its slow start began.
    warm_from: AtomicU64,
}

/// Counters of one endpoint, over all workers.
#[derive(Debug, Default)]
pub struct Counts {
    pub requests: AtomicU64,
    pub successes: AtomicU64,
    pub errors: AtomicU64,
    pub connect_failures: AtomicU64,
    pub ejections: AtomicU64,
    pub trips: AtomicU64,
}

impl Endpoint {
    pub fn new(address: SocketAddr, now: Instant) -> Self {
        Self {
            address,
            counts: Counts::default(),
            durations: SharedLatency::default(),
            latency: Latency::default(),
            breaker: Breaker::default(),
            tally: Tally::default(),
            born: now,
            objections: AtomicU8::new(0),
            active: AtomicU32::new(0),
            warm_from: AtomicU64::new(0),
        }
    }

    /// Requests under way, over all workers.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Whether neither health checks nor outlier detection speak against it.
    pub fn is_usable(&self) -> bool {
        self.objections.load(Ordering::Relaxed) == 0
    }

    pub fn is_ejected(&self) -> bool {
        self.objections.load(Ordering::Relaxed) & EJECTED != 0
    }

    /// Whether health checks speak against it.
    pub fn is_unhealthy(&self) -> bool {
        self.objections.load(Ordering::Relaxed) & UNHEALTHY != 0
    }

    pub fn breaker_state(&self) -> super::breaker::State {
        self.breaker.state()
    }

    /// Whether this changed anything.
    pub(super) fn set_ejected(&self, is_ejected: bool) -> bool {
        self.set(EJECTED, is_ejected)
    }

    /// Whether this changed anything. An endpoint that comes back starts slowly again, as in Envoy.
    pub(super) fn set_unhealthy(&self, is_unhealthy: bool, now: Instant) -> bool {
        let changed = self.set(UNHEALTHY, is_unhealthy);
        if changed && !is_unhealthy {
            self.warm_from.store(self.millis(now), Ordering::Relaxed);
        }
        changed
    }

    /// Milliseconds since it was made.
    pub(super) fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_millis() as u64
    }

    /// Microseconds since it was made.
    pub(super) fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_micros() as u64
    }

    /// For how long it has been in service without a break, in milliseconds.
    pub(super) fn warm_for(&self, now: Instant) -> u64 {
        self.millis(now)
            .saturating_sub(self.warm_from.load(Ordering::Relaxed))
    }

    pub(super) fn begin(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self, outcome: Option<Outcome>) {
        self.active.fetch_sub(1, Ordering::Relaxed);
        let count = match outcome {
            Some(Outcome::Success) => &self.counts.successes,
            Some(Outcome::Error | Outcome::GatewayFailure) => &self.counts.errors,
            Some(Outcome::LocalOriginFailure) => &self.counts.connect_failures,
            None => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn set(&self, objection: u8, is_set: bool) -> bool {
        let before = if is_set {
            self.objections.fetch_or(objection, Ordering::Relaxed)
        } else {
            self.objections.fetch_and(!objection, Ordering::Relaxed)
        };
        (before & objection != 0) != is_set
    }
}
