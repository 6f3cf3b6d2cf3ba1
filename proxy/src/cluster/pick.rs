//! A cluster, and what the way of a request asks of it.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use outrigger_config::{
    Cluster as Settings, Endpoint as Described, Labels, LoadBalancer, Locality, is_host,
};
use tokio::sync::Notify;

use crate::observe::Traffic;

use super::{
    adaptive_concurrency::AdaptiveConcurrency,
    breaker::Admission,
    discovery::DiscoveryStatus,
    endpoint::Endpoint,
    hash_of,
    host_set::{HostSet, Known, Member, Policy},
    outcome::Outcome,
    outlier::{Company, Outlier},
    per_destination::PerDestination,
    rng::Rng,
    thresholds::{Overflow, Permit, Thresholds, Usage},
};

/// How long an endpoint that left is remembered, for DNS answers that come and go.
const LINGER: Duration = Duration::from_secs(60);

/// What a pick depends on, besides the cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// For `ring_hash` and `maglev`: the hash of what the endpoint is chosen by (`hash_of`). Without
    /// one it is drawn.
    pub hash: Option<u64>,
    /// Endpoints that this request was sent to already; another is taken if there is one.
    pub tried: &'a [SocketAddr],
    pub subset: Option<Subset>,
}

/// A subset of a cluster, by the number that [`Cluster::subset`] gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subset(pub(super) usize);

/// Why there is no endpoint for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickError {
    /// The cluster, or the subset, has no endpoint.
    NoEndpoint,
    /// Every endpoint is ejected or unhealthy, and `panic_threshold` does not have them used
    /// nevertheless.
    Unhealthy,
    /// The breakers of all endpoints are tripped.
    Tripped,
    Overflow(Overflow),
    /// Beyond the limit of adaptive concurrency.
    Shed,
}

impl fmt::Display for PickError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoint => "the cluster has no endpoint for this request",
            Self::Unhealthy => "every endpoint is ejected or unhealthy",
            Self::Tripped => "the breakers of all endpoints are tripped",
            Self::Overflow(Overflow::Pending) => "max_pending_requests is reached",
            Self::Overflow(Overflow::Requests) => "max_requests is reached",
            Self::Overflow(Overflow::Retries) => "max_retries is reached",
            Self::Shed => "adaptive concurrency's limit is reached",
        })
    }
}

impl std::error::Error for PickError {}

/// Counters of a whole cluster, over all workers.
#[derive(Debug, Default)]
pub struct ClusterCounts {
    pub overflows: AtomicU64,
    pub shed: AtomicU64,
    pub no_endpoint: AtomicU64,
    pub unhealthy: AtomicU64,
    pub tripped: AtomicU64,
    /// Requests sent again, hedges included.
    pub retries: AtomicU64,
    /// Of these, what brought an answer below 500.
    pub retry_successes: AtomicU64,
    /// Retries that `max_retries` or the budget did not allow.
    pub retry_overflows: AtomicU64,
    /// Requests that failed after the last retry that their policy allows.
    pub retries_exhausted: AtomicU64,
    /// Requests, and single tries, that took longer than their policy allows.
    pub request_timeouts: AtomicU64,
    pub try_timeouts: AtomicU64,
    /// Copies of requests that were sent here, by what came of them. Those dropped were never sent: the
    /// body was too long, or too many were under way.
    pub copies_answered: AtomicU64,
    pub copies_failed: AtomicU64,
    pub copies_timed_out: AtomicU64,
    pub copies_dropped: AtomicU64,
    pub host_sets: AtomicU64,
    pub traffic: Traffic,
}

#[derive(Debug)]
pub struct Cluster {
    pub name: Arc<str>,
    /// Of a destination's cluster: those of the cluster that it belongs to.
    pub counts: Arc<ClusterCounts>,
    pub discovery: Arc<DiscoveryStatus>,
    thresholds: Arc<Thresholds>,
    hosts: ArcSwap<HostSet>,
    adaptive: ArcSwapOption<AdaptiveConcurrency>,
    outlier: Outlier,
    /// A worker ejected an endpoint: the host set is out of date.
    outdated: Notify,
    control: Mutex<Control>,
    /// Of `original_destination`: one cluster for each.
    destinations: Option<PerDestination>,
}

/// What host sets are made from; the control thread's, but for subsets.
#[derive(Debug)]
struct Control {
    known: Known,
    subsets: Vec<Labels>,
    rng: Rng,
}

impl Cluster {
    pub fn new(settings: Arc<Settings>, locality: Locality, seed: u64, now: Instant) -> Arc<Self> {
        let name = settings.name.as_str().into();
        let is_per_destination = settings.original_destination.is_some();
        let policy = Arc::new(Policy { settings, locality });
        let mut cluster = Self::with(name, policy, Arc::default(), seed, now);
        cluster.destinations = is_per_destination.then(PerDestination::new);
        Arc::new(cluster)
    }

    fn with(
        name: Arc<str>,
        policy: Arc<Policy>,
        counts: Arc<ClusterCounts>,
        seed: u64,
        now: Instant,
    ) -> Self {
        let cluster = Self {
            name,
            counts,
            discovery: Arc::default(),
            thresholds: Thresholds::new(&policy.settings.circuit_breaker),
            adaptive: ArcSwapOption::empty(),
            hosts: ArcSwap::from_pointee(HostSet::new(policy.clone(), [].into(), &[], seed, now)),
            outlier: Outlier::default(),
            outdated: Notify::new(),
            control: Mutex::new(Control {
                known: Known::new(),
                subsets: Vec::new(),
                rng: Rng::new(seed),
            }),
            destinations: None,
        };
        cluster.set_adaptive(&policy.settings, seed, now);
        cluster
    }

    /// Where the cluster's endpoints are the original destinations: the cluster of this one, which
    /// has its own limits and state. Else the cluster itself.
    pub fn at(self: &Arc<Self>, destination: SocketAddr, now: Instant) -> Arc<Self> {
        let Some(destinations) = &self.destinations else {
            return self.clone();
        };
        let hosts = self.hosts.load();
        let settings = &hosts.policy.settings;
        let max = settings
            .original_destination
            .as_ref()
            .map_or(1, |o| o.max_destinations.get());
        destinations.at(destination, max, now, || self.of(destination, now))
    }

    /// As [`Self::at`], but nothing is kept that was not before.
    pub(crate) fn glance_at(self: &Arc<Self>, destination: SocketAddr, now: Instant) -> Arc<Self> {
        let Some(destinations) = &self.destinations else {
            return self.clone();
        };
        let known = destinations.find(destination);
        known.unwrap_or_else(|| self.of(destination, now))
    }

    fn of(&self, destination: SocketAddr, now: Instant) -> Arc<Self> {
        // Read when it is made, under the lock of who keeps it, so that `update` does not miss it.
        let policy = self.hosts.load().policy.clone();
        let seed = hash_of(destination.to_string().as_bytes());
        let counts = self.counts.clone();
        let cluster = Self::with(self.name.clone(), policy, counts, seed, now);
        cluster.set_endpoints(&[Described::at(destination)], false, now);
        Arc::new(cluster)
    }

    /// The clusters of the original destinations in use.
    pub fn destinations(&self) -> Vec<Arc<Self>> {
        let destinations = self.destinations.as_ref();
        destinations.map(PerDestination::all).unwrap_or_default()
    }

    /// An endpoint for a request, with all that the cluster grants it. Lock-free and without an
    /// allocation.
    ///
    /// # Errors
    /// When there is none, or a limit is reached.
    pub fn pick(
        self: &Arc<Self>,
        context: &PickContext<'_>,
        rng: &Rng,
        now: Instant,
    ) -> Result<Picked, PickError> {
        self.try_pick(context, rng, now).inspect_err(|error| {
            let count = match error {
                PickError::NoEndpoint => &self.counts.no_endpoint,
                PickError::Unhealthy => &self.counts.unhealthy,
                PickError::Tripped => &self.counts.tripped,
                PickError::Overflow(_) => &self.counts.overflows,
                PickError::Shed => &self.counts.shed,
            };
            count.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn try_pick(
        self: &Arc<Self>,
        context: &PickContext<'_>,
        rng: &Rng,
        now: Instant,
    ) -> Result<Picked, PickError> {
        let permit = self.thresholds.request().map_err(PickError::Overflow)?;
        let hosts = self.hosts.load();
        let policy = &hosts.policy;
        let view = hosts.view(context.subset)?;
        let adaptive = match &*self.adaptive.load() {
            Some(limit) if !limit.admit() => return Err(PickError::Shed),
            Some(limit) => Some(limit.clone()),
            None => None,
        };
        let admit = |endpoint: &Endpoint| match &policy.settings.endpoint_breaker {
            None => Some(Admission::Ordinary),
            Some(breaker) => endpoint.breaker.admit(breaker, endpoint.millis(now)),
        };
        let Some((host, admission)) = view.pick(policy, context, rng, now, admit) else {
            if let Some(limit) = adaptive {
                limit.withdraw();
            }
            return Err(PickError::Tripped);
        };
        host.endpoint.begin();
        Ok(Picked {
            endpoint: host.endpoint.clone(),
            cluster: self.clone(),
            admission,
            adaptive,
            started: now,
            heard: None,
            outcome: None,
            _permit: permit,
        })
    }

    /// Connections, pending requests, requests and retries, over all workers.
    pub fn thresholds(&self) -> &Arc<Thresholds> {
        &self.thresholds
    }

    /// What is under way, at all original destinations if these are the endpoints.
    pub fn usage(&self) -> Usage {
        let destinations = self.destinations();
        let usages = destinations.iter().map(|d| d.thresholds.usage());
        usages.fold(self.thresholds.usage(), |a, b| Usage {
            connections: a.connections + b.connections,
            pending: a.pending + b.pending,
            requests: a.requests + b.requests,
            retries: a.retries + b.retries,
        })
    }

    pub fn adaptive_limit(&self) -> Option<u32> {
        self.adaptive.load().as_ref().map(|a| a.limit())
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.hosts.load().policy.settings.clone()
    }

    /// What the cluster says of each endpoint of the present host set.
    pub(super) fn members(&self) -> Arc<[Member]> {
        self.hosts.load().members.clone()
    }

    pub(super) fn hosts(&self) -> Arc<HostSet> {
        self.hosts.load_full()
    }

    pub(super) fn adaptive(&self) -> Option<Arc<AdaptiveConcurrency>> {
        self.adaptive.load_full()
    }

    /// Every endpoint of the present host set.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let hosts = self.hosts.load();
        hosts.members.iter().map(|m| m.endpoint.clone()).collect()
    }

    /// The name that the endpoint at `address` is asked by, if it has one.
    pub fn hostname(&self, address: SocketAddr) -> Option<Arc<str>> {
        let hosts = self.hosts.load();
        let mut members = hosts.members.iter();
        members
            .find(|m| m.endpoint.address == address)?
            .hostname
            .clone()
    }

    /// The subset of the endpoints that have all `labels`; for a route, when it is compiled.
    pub fn subset(&self, labels: &Labels, now: Instant) -> Subset {
        let mut control = self.lock();
        if let Some(known) = control.subsets.iter().position(|l| l == labels) {
            return Subset(known);
        }
        control.subsets.push(labels.clone());
        let hosts = self.hosts.load();
        self.publish(&control, hosts.policy.clone(), hosts.members.clone(), now);
        Subset(control.subsets.len() - 1)
    }

    /// New settings for the same endpoints and everything that is under way.
    pub fn update(&self, settings: Arc<Settings>, locality: Locality, now: Instant) {
        self.follow(Arc::new(Policy { settings, locality }), now);
        for destination in self.destinations() {
            destination.follow(self.hosts.load().policy.clone(), now);
        }
    }

    fn follow(&self, policy: Arc<Policy>, now: Instant) {
        let control = self.lock();
        let members = self.hosts.load().members.clone();
        let settings = &policy.settings;
        self.thresholds.set_limits(&settings.circuit_breaker);
        self.set_adaptive(settings, control.rng.next(), now);
        if settings.outlier_detection.is_none() {
            self.outlier.end_all(members.iter().map(|m| &*m.endpoint));
        }
        if settings.health_check.is_none() {
            for member in &*members {
                member.endpoint.set_unhealthy(false, now);
            }
        }
        self.publish(&control, policy, members, now);
    }

    /// The endpoints that the cluster has from now on. Of one named twice the first counts. Those
    /// that `must_prove` stay out until a health check has found them well.
    pub fn set_endpoints(&self, described: &[Described], must_prove: bool, now: Instant) {
        let mut control = self.lock();
        let mut left = std::mem::take(&mut control.known);
        let mut members = Vec::with_capacity(described.len());
        for one in described {
            if control.known.contains_key(&one.address) {
                continue;
            }
            let endpoint = left.remove(&one.address).map_or_else(
                || {
                    let endpoint = Endpoint::new(one.address, now);
                    endpoint.set_unhealthy(must_prove, now);
                    Arc::new(endpoint)
                },
                |(endpoint, _)| endpoint,
            );
            control.known.insert(one.address, (endpoint.clone(), None));
            members.push(Member {
                endpoint,
                weight: one.weight.get(),
                priority: one.priority,
                locality: one.locality.clone(),
                labels: one.labels.clone(),
                hostname: hostname_of(one),
            });
        }
        for (address, (endpoint, since)) in left {
            let since = since.unwrap_or(now);
            if now.saturating_duration_since(since) < LINGER {
                control.known.insert(address, (endpoint, Some(since)));
            }
        }
        let policy = self.hosts.load().policy.clone();
        self.publish(&control, policy, members.into(), now);
    }

    /// Makes the host set anew, because health, ejections or ages have changed.
    pub fn rebuild(&self, now: Instant) {
        let control = self.lock();
        let hosts = self.hosts.load();
        self.publish(&control, hosts.policy.clone(), hosts.members.clone(), now);
    }

    /// Ends and begins ejections; to be called every `outlier_detection.interval`.
    pub fn sweep(&self, now: Instant) {
        for destination in self.destinations() {
            destination.sweep(now);
        }
        let hosts = self.hosts.load();
        let Some(settings) = &hosts.policy.settings.outlier_detection else {
            return;
        };
        let all: Vec<_> = hosts.members.iter().map(|m| &*m.endpoint).collect();
        if self.outlier.sweep(settings, &all, now) {
            self.rebuild(now);
        }
    }

    /// What health checks found; true when it changed anything, and `rebuild` is due.
    pub fn set_health(&self, endpoint: &Endpoint, is_healthy: bool, now: Instant) -> bool {
        endpoint.set_unhealthy(!is_healthy, now)
    }

    /// Whether an endpoint's share is still growing.
    pub fn is_warming(&self, now: Instant) -> bool {
        let hosts = self.hosts.load();
        hosts.policy.slow_start().is_some_and(|slow_start| {
            let window = slow_start.window.0.as_millis() as u64;
            hosts
                .members
                .iter()
                .any(|m| m.endpoint.warm_for(now) < window)
        })
    }

    /// Returns when a worker has changed what the host set depends on.
    pub async fn outdated(&self) {
        self.outdated.notified().await;
    }

    fn set_adaptive(&self, settings: &Settings, seed: u64, now: Instant) {
        let present = self.adaptive.load();
        if present.as_ref().map(|a| a.settings()) == settings.adaptive_concurrency.as_ref() {
            return;
        }
        let make = |s| Arc::new(AdaptiveConcurrency::new(s, seed, now));
        self.adaptive
            .store(settings.adaptive_concurrency.clone().map(make));
    }

    fn publish(
        &self,
        control: &Control,
        policy: Arc<Policy>,
        members: Arc<[Member]>,
        now: Instant,
    ) {
        let seed = control.rng.next();
        let hosts = HostSet::new(policy, members, &control.subsets, seed, now);
        hosts.prepare_as(&self.hosts.load());
        self.hosts.store(Arc::new(hosts));
        self.counts.host_sets.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As requests may ask for it: what a name server says may be anything.
fn hostname_of(endpoint: &Described) -> Option<Arc<str>> {
    let name = endpoint.hostname.as_deref();
    name.filter(|name| is_host(name)).map(Into::into)
}

/// One request at one endpoint. Dropping it unreported means that the client gave it up, which
/// tells nothing of the endpoint.
#[derive(Debug)]
pub struct Picked {
    pub endpoint: Arc<Endpoint>,
    cluster: Arc<Cluster>,
    admission: Admission,
    adaptive: Option<Arc<AdaptiveConcurrency>>,
    started: Instant,
    /// When it began to answer, where that does not tell the outcome yet.
    heard: Option<Instant>,
    outcome: Option<Outcome>,
    _permit: Permit,
}

impl Picked {
    /// The answer has begun; its latency is told by this, its outcome later.
    pub fn heard(&mut self, now: Instant) {
        self.heard.get_or_insert(now);
    }

    /// The request has ended, or at least its answer's head is there.
    pub fn report(mut self, outcome: Outcome, now: Instant) {
        self.answered(outcome, now);
    }

    /// The same for what goes on beyond its answer, as a tunnel does: it counts as under way until
    /// it is dropped. Only the first outcome counts.
    pub fn answered(&mut self, outcome: Outcome, now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = Some(outcome);
        let (endpoint, cluster) = (&*self.endpoint, &*self.cluster);
        if outcome != Outcome::LocalOriginFailure {
            endpoint
                .durations
                .observe(now.saturating_duration_since(self.started));
        }
        let hosts = cluster.hosts.load();
        let settings = &hosts.policy.settings;
        let heard = self.heard.unwrap_or(now);
        if let LoadBalancer::PeakEwma(ewma) = &settings.load_balancer {
            let latency = heard.saturating_duration_since(self.started).as_micros() as u64;
            endpoint
                .latency
                .observe(ewma, latency, endpoint.micros(now));
        }
        match &self.adaptive {
            // How fast something fails does not tell how long the queue is.
            Some(limit) if outcome == Outcome::LocalOriginFailure => limit.withdraw(),
            Some(limit) => limit.answered(self.started, heard),
            None => {}
        }
        if let Some(breaker) = &settings.endpoint_breaker {
            if outcome == Outcome::Success {
                endpoint.breaker.succeeded(breaker, self.admission);
            } else if endpoint
                .breaker
                .failed(breaker, self.admission, endpoint.millis(now))
            {
                endpoint.counts.trips.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(detection) = &settings.outlier_detection {
            let all = || hosts.members.iter().map(|m| &*m.endpoint);
            // Each destination is an endpoint by itself.
            let company = match settings.original_destination {
                Some(_) => Company::Alone,
                None => Company::Cluster,
            };
            if cluster
                .outlier
                .observe(detection, endpoint, outcome, company, all, now)
            {
                match company {
                    Company::Cluster => cluster.outdated.notify_one(),
                    // Of one endpoint, at once: nobody else keeps it up to date.
                    Company::Alone => cluster.rebuild(now),
                }
            }
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.endpoint.end(self.outcome);
        if self.outcome.is_some() {
            return;
        }
        self.endpoint.breaker.withdrawn(self.admission);
        if let Some(limit) = &self.adaptive {
            limit.withdraw();
        }
    }
}

#[cfg(test)]
mod tests;
