//! One limit, ready for use.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::FixedState;
use outrigger_config::{RateLimit, RateLimitAction};

use super::{
    RateLimits,
    bucket::{Bucket, Left, Moment, Rate},
    buckets::{Buckets, Key, Keys},
    descriptor::{self, Subject},
    service::Service,
};
use crate::cluster::Rng;

#[derive(Debug)]
pub(super) struct Limit {
    pub(super) settings: RateLimit,
    pub(super) decides: Decider,
    /// Each destination has buckets of its own.
    is_per_destination: bool,
    /// All traffic has the same descriptor, and one bucket.
    is_one: bool,
    pub(super) state: Arc<State>,
}

#[derive(Debug)]
pub(super) enum Decider {
    Local {
        rate: Rate,
        /// By the key of the descriptors that have buckets of another size.
        others: HashMap<Key, Rate, FixedState>,
    },
    Service(Arc<Service>),
}

/// What outlives a configuration.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) name: Box<str>,
    pub(crate) counts: Counts,
    one: Bucket,
    many: Buckets,
}

/// Requests and connections that the limit looked at, by what came of it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) admitted: AtomicU64,
    pub(crate) limited: AtomicU64,
    /// Over the limit, and let pass because it is not enforced.
    pub(crate) shadowed: AtomicU64,
    /// Of those admitted: had to wait for their token.
    pub(crate) delayed: AtomicU64,
    /// Buckets forgotten before they were full.
    pub(crate) forgotten: AtomicU64,
}

impl State {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            counts: Counts::default(),
            one: Bucket::default(),
            many: Buckets::default(),
        }
    }

    /// Buckets in memory that traffic is told apart by.
    pub(crate) fn buckets(&self) -> usize {
        self.many.count()
    }
}

/// What a bucket says.
pub(super) struct Drawn {
    pub(super) rate: Rate,
    pub(super) left: Left,
    /// How long to wait for the tokens; or, of one over the limit, until they would be there.
    pub(super) outcome: Result<Duration, Duration>,
}

impl Limit {
    /// None if nothing decides, which no file without a problem says.
    pub(super) fn new(
        settings: &RateLimit,
        is_per_destination: bool,
        state: Arc<State>,
        service: Option<Arc<Service>>,
        keys: &Keys,
    ) -> Option<Self> {
        let decides = match (&settings.token_bucket, service) {
            (_, Some(service)) => Decider::Service(service),
            (Some(bucket), None) => Decider::Local {
                rate: Rate::new(bucket),
                others: settings
                    .descriptors
                    .iter()
                    .map(|other| {
                        let entries = other.entries.iter();
                        let entries = entries.map(|e| (e.key.as_str(), e.value.as_str()));
                        (
                            descriptor::key_of(keys, entries),
                            Rate::new(&other.token_bucket),
                        )
                    })
                    .collect(),
            },
            (None, None) => return None,
        };
        let is_fixed = |action| matches!(action, &RateLimitAction::GenericKey(_));
        Some(Self {
            is_one: !is_per_destination
                && settings.descriptors.is_empty()
                && settings.actions.iter().all(is_fixed),
            settings: settings.clone(),
            decides,
            is_per_destination,
            state,
        })
    }

    pub(super) fn is_enabled(&self, rng: &Rng) -> bool {
        is_chosen(self.settings.enabled.0, rng)
    }

    pub(super) fn is_enforced(&self, rng: &Rng) -> bool {
        is_chosen(self.settings.enforced.0, rng)
    }

    /// Counts what is over the limit, and tells whether it is turned away.
    pub(super) fn is_limited(&self, is_enforced: bool) -> bool {
        let counts = &self.state.counts;
        count(if is_enforced {
            &counts.limited
        } else {
            &counts.shadowed
        });
        is_enforced
    }

    pub(super) fn admitted(&self) {
        count(&self.state.counts.admitted);
    }

    /// Takes the tokens that `subject` costs; none if it is not what this limit is about.
    pub(super) fn draw(
        &self,
        limits: &RateLimits,
        subject: &Subject<'_>,
        now: Moment,
    ) -> Option<Drawn> {
        let Decider::Local { rate, others } = &self.decides else {
            return None;
        };
        let hits = self.settings.hits_addend.get();
        let max_delay = self.settings.max_delay.0;
        let (rate, taken) = if self.is_one {
            (*rate, self.state.one.take(*rate, now, hits, max_delay))
        } else {
            let (key, rate) = self.place(limits, subject, *rate, others)?;
            let max = self.settings.max_buckets.get() as usize;
            let (taken, forgotten) = self.state.many.at(key, now, max, |bucket| {
                bucket.take(rate, now, hits, max_delay)
            });
            if forgotten > 0 {
                let counter = &self.state.counts.forgotten;
                counter.fetch_add(forgotten as u64, Ordering::Relaxed);
            }
            (rate, taken)
        };
        let (outcome, left) = match taken {
            Ok((taken, left)) => (Ok(taken.wait), left),
            Err((wait, left)) => (Err(wait), left),
        };
        if outcome.is_ok_and(|wait| !wait.is_zero()) {
            count(&self.state.counts.delayed);
        }
        Some(Drawn {
            rate,
            left,
            outcome,
        })
    }

    /// Undoes a taking: another limit has turned `subject` away.
    pub(super) fn undo(&self, limits: &RateLimits, subject: &Subject<'_>) {
        let Decider::Local { rate, others } = &self.decides else {
            return;
        };
        let hits = self.settings.hits_addend.get();
        if self.is_one {
            self.state.one.give_back(*rate, hits);
        } else if let Some((key, rate)) = self.place(limits, subject, *rate, others) {
            let max = self.settings.max_buckets.get() as usize;
            let give_back = |bucket: &Bucket| bucket.give_back(rate, hits);
            self.state.many.known(key, max, give_back);
        }
    }

    /// The bucket of `subject`, and how large it is.
    fn place(
        &self,
        limits: &RateLimits,
        subject: &Subject<'_>,
        rate: Rate,
        others: &HashMap<Key, Rate, FixedState>,
    ) -> Option<(Key, Rate)> {
        let actions = &self.settings.actions;
        let key = |apart| descriptor::key(&limits.keys, actions, apart, subject);
        if others.is_empty() {
            return Some((key(self.is_per_destination)?, rate));
        }
        let plain = key(false)?;
        let rate = others.get(&plain).copied().unwrap_or(rate);
        let key = if self.is_per_destination {
            key(true)?
        } else {
            plain
        };
        Some((key, rate))
    }
}

fn is_chosen(percent: u8, rng: &Rng) -> bool {
    percent >= 100 || rng.below(100) < usize::from(percent)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
