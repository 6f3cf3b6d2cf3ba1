//! How much of which traffic may pass.
//!
//! A route, a cluster and `defaults` have lists of limits. What is on its way asks both lists once,
//! before it is first tried anywhere, and passes if all limits agree ([`judge`]). A limit tells
//! traffic apart by its actions (`descriptor`) and has a [token bucket](bucket) for each
//! kind, shared by all workers; or it asks a [service] that many proxies share.
//!
//! Nothing of the limits in a file is looked up by name on the way: they are compiled when the
//! configuration is published ([`RateLimits::compile`]). What outlives that is kept by a limit's
//! name: its buckets and its counts ([`State`]).
//!
//! Failure edges: what is over a limit is told so (429, or as the limit says; of a tunnel, a reset). A
//! service that does not answer counts as agreement, unless it is to be denied (500).

mod bucket;
mod buckets;
mod descriptor;
mod limit;
mod service;
mod told;
mod verdict;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

use outrigger_config::{RateLimit, RateLimitService};

use self::{
    bucket::Clock,
    buckets::Keys,
    limit::{Limit, State},
    service::{Service, Services},
};
pub use self::{
    descriptor::Subject,
    told::{Refusal, Told},
    verdict::{Undecided, Verdict, judge},
};
use crate::{cluster::Clusters, shared::Shared};

/// What all limits of a process share.
#[derive(Debug)]
pub struct RateLimits {
    clock: Clock,
    keys: Keys,
    /// By the limit's name, for as long as a configuration in use has it.
    states: Mutex<HashMap<Box<str>, Weak<State>>>,
    services: Services,
}

/// The limits of one route or cluster.
#[derive(Debug)]
pub struct Limits(Box<[Limit]>);

impl RateLimits {
    pub fn new(now: Instant) -> Self {
        Self {
            clock: Clock::new(now),
            keys: Keys::default(),
            states: Mutex::default(),
            services: Services::default(),
        }
    }

    /// The services that limits compiled from here on can ask. What no configuration has any more is
    /// forgotten.
    pub(crate) fn follow(
        &self,
        shared: &Arc<Shared>,
        wanted: &[RateLimitService],
        clusters: &Clusters,
    ) {
        self.lock().retain(|_, state| state.strong_count() > 0);
        self.services.follow(shared, wanted, clusters);
    }

    /// `limits`, ready for use; with `is_per_destination` each destination is limited by itself.
    pub(crate) fn compile(
        &self,
        limits: &[RateLimit],
        is_per_destination: bool,
    ) -> Option<Arc<Limits>> {
        if limits.is_empty() {
            return None;
        }
        let limits = limits.iter().filter_map(|settings| {
            let state = self.state(&settings.name);
            let service = match &settings.service {
                Some(name) => Some(self.services.find(name)?),
                None => None,
            };
            Limit::new(settings, is_per_destination, state, service, &self.keys)
        });
        Some(Arc::new(Limits(limits.collect())))
    }

    /// Every limit in use and every service, by name.
    pub(crate) fn all(&self) -> (Vec<Arc<State>>, Vec<Arc<Service>>) {
        let mut states: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        states.sort_by(|a, b| a.name.cmp(&b.name));
        (states, self.services.all())
    }

    /// What is known of the limit called `name`: under the configuration before, if that had it.
    fn state(&self, name: &str) -> Arc<State> {
        let mut states = self.lock();
        if let Some(known) = states.get(name).and_then(Weak::upgrade) {
            return known;
        }
        let state = Arc::new(State::new(name));
        states.insert(name.into(), Arc::downgrade(&state));
        state
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Weak<State>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
