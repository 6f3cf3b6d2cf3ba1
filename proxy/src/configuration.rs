//! The configuration in force: one snapshot, published by one swap.

use std::{
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Cache};
use outrigger_config::{Settings, Snapshot, Subject};
use tokio::sync::Notify;

use crate::{
    cluster::{Clusters, Rng},
    dispatch::Onward,
    observe::{AccessLogs, RouteTraffic},
    rate_limit::RateLimits,
    route::{Fallback, Route, Routed},
};

/// What all threads share of it.
#[derive(Debug)]
pub struct Configuration {
    current: Arc<ArcSwap<InForce>>,
    /// What was in force before and may still be seen by a worker: the last one to let go of ten
    /// thousand routes would stop for as long as it takes to free them.
    retired: Mutex<Vec<Arc<InForce>>>,
    retires: Notify,
    /// Of the next snapshot to be published.
    logs: Mutex<Option<Arc<AccessLogs>>>,
    traffic: RouteTraffic,
    applied: AtomicU64,
    rejected: AtomicU64,
    is_latest_good: AtomicBool,
}

impl Configuration {
    pub fn new(settings: Settings) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(InForce::unrouted(Arc::new(
                Snapshot::compile(settings, None),
            )))),
            retired: Mutex::default(),
            retires: Notify::new(),
            logs: Mutex::default(),
            traffic: RouteTraffic::default(),
            applied: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            is_latest_good: AtomicBool::new(true),
        }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load().snapshot.clone()
    }

    /// For what is seldom done; a worker has a cheaper way.
    pub(crate) fn in_force(&self) -> Arc<InForce> {
        self.current.load_full()
    }

    /// As [`Self::in_force`].
    pub fn settings(&self) -> Arc<Settings> {
        self.current.load().snapshot.settings.clone()
    }

    /// From here on new requests see `snapshot`, whose clusters are all in `clusters`.
    pub(crate) fn publish(
        &self,
        snapshot: Arc<Snapshot>,
        clusters: &Clusters,
        limits: &RateLimits,
    ) {
        let mut in_force = InForce::routed(snapshot, clusters, limits, &self.traffic);
        in_force.logs = self.next_logs().clone();
        let before = self.current.swap(Arc::new(in_force));
        self.retired().push(before);
        self.retires.notify_one();
    }

    /// Returns when something has ceased to be in force; for one who waits.
    pub(crate) async fn retires(&self) {
        self.retires.notified().await;
    }

    /// Whether anything is left of what was in force before.
    pub(crate) fn is_retiring(&self) -> bool {
        !self.retired().is_empty()
    }

    /// Whether there is anything for [`Self::let_go`].
    pub(crate) fn can_let_go(&self) -> bool {
        self.retired().iter().any(is_unseen)
    }

    /// Frees what is no longer in force and seen by no worker any more, which takes its time.
    pub(crate) fn let_go(&self) {
        let (gone, seen): (Vec<_>, Vec<_>) = self.retired().drain(..).partition(is_unseen);
        self.retired().extend(seen);
        drop(gone);
    }

    /// What is published from here on logs there.
    pub(crate) fn log_to(&self, logs: Option<Arc<AccessLogs>>) {
        *self.next_logs() = logs;
    }

    /// The routes in force, in their order.
    pub(crate) fn routes(&self) -> Vec<Arc<Route>> {
        self.current.load().routes.clone()
    }

    /// What was counted for each route, gone ones included.
    pub(crate) fn traffic(&self) -> &RouteTraffic {
        &self.traffic
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Arc<InForce>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_logs(&self) -> MutexGuard<'_, Option<Arc<AccessLogs>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file without a problem that changes nothing, or has just been published.
    pub(crate) fn accept(&self) {
        self.applied.fetch_add(1, Ordering::Relaxed);
        self.is_latest_good.store(true, Ordering::Relaxed);
    }

    /// The file has problems, and what was in force stays.
    pub(crate) fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        self.is_latest_good.store(false, Ordering::Relaxed);
    }

    pub(crate) fn figures(&self) -> ConfigurationFigures {
        ConfigurationFigures {
            generation: self.current.load().snapshot.generation,
            applied: self.applied.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
            is_latest_good: self.is_latest_good.load(Ordering::Relaxed),
        }
    }
}

/// A snapshot with its routes resolved: what each leads to is found without a name.
#[derive(Debug)]
pub(crate) struct InForce {
    snapshot: Arc<Snapshot>,
    /// By the place in the snapshot's table.
    routes: Vec<Arc<Route>>,
    /// Of what no route sends to a cluster, if `defaults` ask for anything.
    defaults: Option<Fallback>,
    asks_tls: bool,
    logs: Option<Arc<AccessLogs>>,
}

impl InForce {
    fn unrouted(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            routes: Vec::new(),
            defaults: None,
            asks_tls: false,
            logs: None,
        }
    }

    fn routed(
        snapshot: Arc<Snapshot>,
        clusters: &Clusters,
        limits: &RateLimits,
        traffic: &RouteTraffic,
    ) -> Self {
        let mut in_force = Self::unrouted(snapshot);
        in_force.defaults = in_force.snapshot.defaults.as_ref().and_then(|settings| {
            let cluster = clusters.defaults()?;
            Some(Fallback {
                onward: Arc::new(Onward::new(cluster, settings, None, limits)),
                limits: in_force.snapshot.default_policy.clone(),
            })
        });
        for decision in in_force.snapshot.routes.iter() {
            in_force.asks_tls |= decision.settings.matches.asks_tls();
            let traffic = traffic.of(&decision.name);
            let route = Arc::new(Route::resolve(decision, clusters, limits, traffic));
            in_force.routes.push(route);
        }
        in_force
    }

    pub(crate) fn has_own_routes(&self) -> bool {
        !self.routes.is_empty()
    }

    pub(crate) fn has_routes(&self) -> bool {
        !self.routes.is_empty() || self.defaults.is_some()
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(crate) fn logs(&self) -> Option<&Arc<AccessLogs>> {
        self.logs.as_ref()
    }

    pub(crate) fn asks_tls(&self) -> bool {
        self.asks_tls
    }

    pub(crate) fn route(&self, subject: &Subject<'_>, rng: &Rng) -> Routed {
        let defaults = self.defaults.as_ref();
        Routed::decide(subject, self.holds(subject), defaults, rng)
    }

    /// The route that holds.
    pub(crate) fn holds(&self, subject: &Subject<'_>) -> Option<&Arc<Route>> {
        self.routes.get(self.snapshot.routes.position(subject)?)
    }

    pub(crate) fn defaults(&self) -> Option<&Arc<Onward>> {
        self.defaults.as_ref().map(|fallback| &fallback.onward)
    }
}

/// Of what is no longer published: nobody can begin to see it again.
fn is_unseen(retired: &Arc<InForce>) -> bool {
    Arc::strong_count(retired) == 1
}

/// For `/metrics`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConfigurationFigures {
    pub(crate) generation: u64,
    pub(crate) applied: u64,
    pub(crate) rejected: u64,
    pub(crate) is_latest_good: bool,
}

/// What one worker knows of the configuration: looking at it costs no write to memory that workers
/// share. Until it looks again, it keeps what it saw last.
#[derive(Debug)]
pub(crate) struct View {
    cache: Cache<Arc<ArcSwap<InForce>>, Arc<InForce>>,
    settings: Pinned,
}

/// The settings as they were when a request began, whatever is published meanwhile.
pub(crate) type Pinned = Rc<Arc<Settings>>;

impl View {
    pub(crate) fn of(configuration: &Configuration) -> Self {
        Self {
            settings: Rc::new(configuration.settings()),
            cache: Cache::new(configuration.current.clone()),
        }
    }

    pub(crate) fn settings(&mut self) -> Pinned {
        let settings = &self.cache.load().snapshot.settings;
        if !Arc::ptr_eq(settings, &self.settings) {
            self.settings = Rc::new(settings.clone());
        }
        self.settings.clone()
    }

    pub(crate) fn in_force(&mut self) -> &InForce {
        self.cache.load()
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::Span;

    use super::*;

    #[test]
    fn a_request_keeps_what_it_started_with_and_the_next_one_has_what_was_published() {
        let configuration = Configuration::new(Settings::default());
        let mut view = View::of(&configuration);
        let first = view.settings();
        let mut settings = Settings::default();
        settings.timeouts.drain = Span::from_secs(1);
        let before = configuration.snapshot();
        configuration.publish(
            Arc::new(Snapshot::compile(settings, Some(&before))),
            &Clusters::default(),
            &RateLimits::new(std::time::Instant::now()),
        );
        assert_eq!(first.timeouts.drain, Span::from_secs(30));
        assert_eq!(view.settings().timeouts.drain, Span::from_secs(1));
        assert_eq!(configuration.figures().generation, 2);
    }

    #[test]
    fn what_is_no_longer_in_force_is_not_freed_by_the_worker_that_saw_it_last() {
        let configuration = Configuration::new(Settings::default());
        let mut view = View::of(&configuration);
        let first = Arc::downgrade(&configuration.in_force());
        let publish = || {
            configuration.publish(
                Arc::new(Snapshot::compile(Settings::default(), None)),
                &Clusters::default(),
                &RateLimits::new(std::time::Instant::now()),
            );
        };
        publish();
        assert!(!configuration.can_let_go(), "the worker sees it");
        configuration.let_go();
        view.in_force();
        assert!(first.upgrade().is_some(), "freed by the worker");
        assert!(configuration.can_let_go());
        configuration.let_go();
        assert!(first.upgrade().is_none());
    }
}
