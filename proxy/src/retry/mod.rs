//! Whether, and when, a request is sent again: pure, but for the counts of its cluster. Time and
//! chance are arguments.
//!
//! ```text
//! fate of a try ([`conditions`]) → is it a reason? → may it be repeated? → how often already? →
//! how long to wait ([`backoff`])? → is there time left? → does the cluster's budget ([`budget`]) allow it?
//! ```

pub mod backoff;
pub mod budget;
pub mod conditions;
pub mod grpc;

use std::{
    cell::{Cell, RefCell},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use outrigger_config::Retry;

use self::backoff::{ComeBack, pause};
pub use self::conditions::{AnswerHead, Fate};
use crate::cluster::{Cluster, Permit, Rng};

/// The retries of one request.
#[derive(Debug)]
pub struct Retries {
    /// Whose requests and retries are counted, if any.
    cluster: Option<Arc<Cluster>>,
    made: Cell<u32>,
    /// Places in the cluster's budget, held while retries are waited for or under way.
    permits: RefCell<Vec<Permit>>,
    /// The client was told `100 Continue`, which it hears once.
    has_continued: Cell<bool>,
}

/// What the request itself has to say on being sent again.
#[derive(Clone, Copy, Debug)]
pub struct Repeatable {
    /// A second time does no more than the first (RFC 9110, section 9.2.2).
    pub is_idempotent: bool,
    /// All of it is still there.
    pub is_kept: bool,
}

/// What a decision depends on besides the try and the request.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub rng: &'a Rng,
    /// Of the clock that HTTP dates are in.
    pub now: SystemTime,
    /// Until the request's own deadline.
    pub left: Option<Duration>,
}

impl Retries {
    pub fn new(cluster: Option<Arc<Cluster>>) -> Self {
        Self {
            cluster,
            made: Cell::new(0),
            permits: RefCell::default(),
            has_continued: Cell::new(false),
        }
    }

    /// How often the request has been sent again.
    pub fn made(&self) -> u32 {
        self.made.get()
    }

    /// Decides after a try that came to `fate`. If it is to be repeated, it counts as such from here
    /// on, and the pause before it is told. `moment` is asked for only then.
    pub fn again<'m>(
        &self,
        policy: &Retry,
        fate: Fate<'_>,
        request: Repeatable,
        moment: impl FnOnce() -> Moment<'m>,
    ) -> Option<Duration> {
        let may_repeat =
            request.is_kept && (request.is_idempotent || policy.non_idempotent || fate.is_unseen());
        if !may_repeat || !fate.is_reason(policy) {
            return None;
        }
        // The tries that they were held for are over.
        self.permits.take();
        if self.made.get() >= policy.num_retries {
            self.count(|c| &c.retries_exhausted);
            return None;
        }
        let moment = moment();
        let wait = self.wait(policy, fate, moment)?;
        if moment.left.is_some_and(|left| wait >= left) {
            return None;
        }
        self.begin().then_some(wait)
    }

    /// A try beside those under way; false if there may be none.
    pub fn hedge(&self, policy: &Retry) -> bool {
        self.made.get() < policy.num_retries && self.begin()
    }

    /// The client gets the answer of the last try.
    pub fn settle(&self, is_good: bool) {
        let was_retried = self.made.get() > 0;
        self.permits.take();
        if was_retried && is_good {
            self.count(|c| &c.retry_successes);
        }
    }

    /// The client is to be told `100 Continue`; false if it has been already.
    pub fn first_continue(&self) -> bool {
        !self.has_continued.replace(true)
    }

    /// The pause before the next retry; none if the answer says to come back too late.
    fn wait(&self, policy: &Retry, fate: Fate<'_>, moment: Moment<'_>) -> Option<Duration> {
        let jitter = pause(&policy.back_off, self.made.get() + 1, moment.rng);
        let Fate::Answered(head) = fate else {
            return Some(jitter);
        };
        match ComeBack::said(&policy.rate_limited, head.headers, moment.now) {
            ComeBack::Unsaid => Some(jitter),
            // Not earlier than it says, and not all at once.
            ComeBack::After(said) => Some(said + jitter),
            ComeBack::TooLate => None,
        }
    }

    /// Takes a place in the budget.
    fn begin(&self) -> bool {
        if let Some(cluster) = &self.cluster {
            match cluster.thresholds().retry() {
                Ok(permit) => self.permits.borrow_mut().push(permit),
                Err(_) => {
                    self.count(|c| &c.retry_overflows);
                    return false;
                }
            }
        }
        self.made.set(self.made.get() + 1);
        self.count(|c| &c.retries);
        true
    }

    fn count(
        &self,
        which: impl Fn(&crate::cluster::ClusterCounts) -> &std::sync::atomic::AtomicU64,
    ) {
        if let Some(cluster) = &self.cluster {
            which(&cluster.counts).fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
