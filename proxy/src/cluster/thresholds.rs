//! What a whole cluster may have under way, over all workers (Envoy's thresholds).
//!
//! Requests and retries beyond their limit fail at once. A connection beyond its limit is waited
//! for, first come first served, by at most `max_pending_requests`; the waiter is woken by whichever
//! worker gives one back.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use arc_swap::ArcSwapOption;
use outrigger_config::{CircuitBreaker, RetryBudget};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::retry::budget;

/// Which limit was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// `max_pending_requests`.
    Pending,
    /// `max_requests`.
    Requests,
    /// `max_retries`.
    Retries,
}

#[derive(Debug)]
pub struct Thresholds {
    requests: Gauge,
    retries: Gauge,
    /// In place of the limit of `retries`.
    retry_budget: ArcSwapOption<RetryBudget>,
    pending: Gauge,
    connections: Connections,
}

/// How much is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub connections: u32,
    #[serde(rename = "pending_requests")]
    pub pending: u32,
    pub requests: u32,
    pub retries: u32,
}

impl Thresholds {
    pub fn new(limits: &CircuitBreaker) -> Arc<Self> {
        Arc::new(Self {
            requests: Gauge::new(limits.max_requests),
            retries: Gauge::new(limits.max_retries),
            retry_budget: ArcSwapOption::from_pointee(limits.retry_budget.clone()),
            pending: Gauge::new(limits.max_pending_requests),
            connections: Connections::new(limits.max_connections),
        })
    }

    /// New limits for what is under way already: beyond a lower one nothing is cut, and nothing new
    /// begins until enough has ended. One thread at a time.
    pub fn set_limits(&self, limits: &CircuitBreaker) {
        self.requests.set_max(limits.max_requests);
        self.retries.set_max(limits.max_retries);
        self.retry_budget
            .store(limits.retry_budget.clone().map(Arc::new));
        self.pending.set_max(limits.max_pending_requests);
        self.connections.set_max(limits.max_connections);
    }

    pub fn request(self: &Arc<Self>) -> Result<Permit, Overflow> {
        self.take(Kind::Request).ok_or(Overflow::Requests)
    }

    pub fn retry(self: &Arc<Self>) -> Result<Permit, Overflow> {
        if let Some(budget) = &*self.retry_budget.load() {
            self.retries
                .set_max(budget::allowed(budget, self.requests.live()));
        }
        self.take(Kind::Retry).ok_or(Overflow::Retries)
    }

    /// A connection's permit, if one is free and nobody waits for it.
    pub fn try_connection(self: &Arc<Self>) -> Option<Permit> {
        let permit = self.connections.free.try_acquire().ok()?;
        permit.forget();
        Some(self.connected())
    }

    /// A connection's permit, waited for in turn. Dropping the future gives the place up.
    ///
    /// # Errors
    /// When as many as allowed wait already.
    pub async fn connection(self: &Arc<Self>) -> Result<Permit, Overflow> {
        if let Some(permit) = self.try_connection() {
            return Ok(permit);
        }
        let _pending = self.take(Kind::Pending).ok_or(Overflow::Pending)?;
        let permit = self.connections.free.acquire().await;
        permit.expect("it is never closed").forget();
        Ok(self.connected())
    }

    pub fn usage(&self) -> Usage {
        Usage {
            connections: self.connections.live.load(Ordering::Relaxed),
            pending: self.pending.live(),
            requests: self.requests.live(),
            retries: self.retries.live(),
        }
    }

    fn take(self: &Arc<Self>, kind: Kind) -> Option<Permit> {
        self.gauge(kind)?.take().then(|| Permit {
            of: self.clone(),
            kind,
        })
    }

    fn connected(self: &Arc<Self>) -> Permit {
        self.connections.live.fetch_add(1, Ordering::Relaxed);
        Permit {
            of: self.clone(),
            kind: Kind::Connection,
        }
    }

    fn gauge(&self, kind: Kind) -> Option<&Gauge> {
        match kind {
            Kind::Request => Some(&self.requests),
            Kind::Retry => Some(&self.retries),
            Kind::Pending => Some(&self.pending),
            Kind::Connection => None,
        }
    }
}

/// The right to have one thing under way; dropping it gives it back.
#[derive(Debug)]
pub struct Permit {
    of: Arc<Thresholds>,
    kind: Kind,
}

impl Permit {
    /// Whether these thresholds gave it.
    pub fn is_of(&self, thresholds: &Thresholds) -> bool {
        std::ptr::eq(&*self.of, thresholds)
    }

    /// Whether somebody waits for a connection of the same cluster.
    pub fn is_wanted(&self) -> bool {
        self.of.pending.live() > 0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.of.gauge(self.kind) {
            Some(gauge) => gauge.give_back(),
            None => self.of.connections.give_back(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Connection,
    Pending,
    Request,
    Retry,
}

#[derive(Debug)]
struct Gauge {
    live: AtomicU32,
    max: AtomicU32,
}

impl Gauge {
    fn new(max: u32) -> Self {
        Self {
            live: AtomicU32::new(0),
            max: AtomicU32::new(max),
        }
    }

    fn take(&self) -> bool {
        let is_within =
            self.live.fetch_add(1, Ordering::Relaxed) < self.max.load(Ordering::Relaxed);
        if !is_within {
            self.give_back();
        }
        is_within
    }

    fn give_back(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }
}

/// tokio's semaphore wakes in order, across runtimes, and loses nothing when a waiter is dropped.
#[derive(Debug)]
struct Connections {
    free: Semaphore,
    live: AtomicU32,
    max: AtomicU32,
    /// Permits out beyond a limit that was lowered; so many are not given back.
    surplus: AtomicUsize,
}

impl Connections {
    fn new(max: u32) -> Self {
        Self {
            free: Semaphore::new(max as usize),
            live: AtomicU32::new(0),
            max: AtomicU32::new(max),
            surplus: AtomicUsize::new(0),
        }
    }

    fn give_back(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        let is_surplus = self
            .surplus
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if is_surplus.is_err() {
            self.free.add_permits(1);
        }
    }

    fn set_max(&self, max: u32) {
        let old = self.max.swap(max, Ordering::Relaxed);
        if max < old {
            let fewer = (old - max) as usize;
            let forgotten = self.free.forget_permits(fewer);
            self.surplus.fetch_add(fewer - forgotten, Ordering::Relaxed);
        }
        for _ in old..max {
            let is_surplus = self
                .surplus
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            if is_surplus.is_err() {
                self.free.add_permits(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
        thread,
        time::Duration,
    };

    use tokio::runtime::Builder;

    use super::*;

    fn thresholds(connections: u32, pending: u32) -> Arc<Thresholds> {
        Thresholds::new(&CircuitBreaker {
            max_connections: connections,
            max_pending_requests: pending,
            ..CircuitBreaker::default()
        })
    }

    #[test]
    fn requests_beyond_the_limit_fail_at_once_and_a_permit_dropped_makes_room() {
        let thresholds = Thresholds::new(&CircuitBreaker {
            max_requests: 1,
            max_retries: 0,
            ..CircuitBreaker::default()
        });
        let permit = thresholds.request().expect("one");
        assert_eq!(thresholds.request().unwrap_err(), Overflow::Requests);
        assert_eq!(thresholds.retry().unwrap_err(), Overflow::Retries);
        drop(permit);
        thresholds.request().expect("room");
    }

    #[test]
    fn waiters_come_in_turn_and_one_too_many_is_told_so() {
        let thresholds = thresholds(1, 2);
        let held = thresholds.try_connection().expect("free");
        let mut context = Context::from_waker(Waker::noop());
        let (mut first, mut second) =
            (pin!(thresholds.connection()), pin!(thresholds.connection()));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        let mut third = pin!(thresholds.connection());
        assert!(matches!(
            third.as_mut().poll(&mut context),
            Poll::Ready(Err(Overflow::Pending))
        ));
        drop(held);
        assert!(thresholds.try_connection().is_none(), "no overtaking");
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(first.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_waiter_that_gives_up_after_it_was_woken_passes_the_permit_on() {
        let thresholds = thresholds(1, 2);
        let held = thresholds.try_connection().expect("free");
        let mut context = Context::from_waker(Waker::noop());
        let mut first = Box::pin(thresholds.connection());
        let mut second = pin!(thresholds.connection());
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(held);
        drop(first);
        assert!(second.as_mut().poll(&mut context).is_ready());
        assert_eq!(thresholds.usage().pending, 0);
    }

    #[test]
    fn a_lower_limit_cuts_nothing_and_holds_back_until_enough_has_ended() {
        let thresholds = thresholds(3, 8);
        let limits = |max_connections| CircuitBreaker {
            max_connections,
            ..CircuitBreaker::default()
        };
        let mut held: Vec<_> = (0..3).filter_map(|_| thresholds.try_connection()).collect();
        thresholds.set_limits(&limits(1));
        held.pop();
        held.pop();
        assert!(thresholds.try_connection().is_none());
        held.pop();
        let one = thresholds.try_connection();
        assert!(one.is_some() && thresholds.try_connection().is_none());
        thresholds.set_limits(&limits(2));
        assert!(thresholds.try_connection().is_some());
    }

    /// Four runtimes on four threads share two connections; some waiters give up. A lost wake-up
    /// would leave a waiter for ever, and the deadline would tell.
    #[test]
    fn waiters_of_other_runtimes_are_woken_and_none_is_lost() {
        let thresholds = thresholds(2, 1000);
        let highest = Arc::new(AtomicU32::new(0));
        let workers: Vec<_> = (0..4)
            .map(|seed| {
                let (thresholds, highest) = (thresholds.clone(), highest.clone());
                thread::spawn(move || {
                    let rng = super::super::rng::Rng::new(seed);
                    let runtime = Builder::new_current_thread().enable_time().build();
                    runtime.expect("a runtime").block_on(async {
                        for _ in 0..3_000 {
                            if rng.below(4) == 0 {
                                // Polled once and given up.
                                let mut context = Context::from_waker(Waker::noop());
                                let _ = pin!(thresholds.connection()).poll(&mut context);
                                continue;
                            }
                            let waiting = tokio::time::timeout(
                                Duration::from_secs(20),
                                thresholds.connection(),
                            );
                            let permit = waiting.await.expect("a wake-up").expect("room to wait");
                            highest.fetch_max(thresholds.usage().connections, Ordering::Relaxed);
                            for _ in 0..rng.below(3) {
                                tokio::task::yield_now().await;
                            }
                            drop(permit);
                        }
                    });
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("no worker lost a wake-up");
        }
        assert!(highest.load(Ordering::Relaxed) <= 2);
        assert_eq!(thresholds.usage().connections, 0);
        assert_eq!(thresholds.connections.free.available_permits(), 2);
    }
}
