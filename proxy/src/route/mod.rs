//! Which route a connection or request has, where that leads and what it does on the way: decided
//! once, and kept for as long as it lasts, whatever is published meanwhile. Nobody keeps the snapshot.
//!
//! Failure edges: a route may answer in an upstream's place ([`Answer`]) or fail traffic on purpose
//! ([`fault`]); what is not HTTP is reset where only HTTP could be answered.

mod answer;
mod edits;
mod fault;
mod mirror;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use outrigger_config::{Action, Decision, Labels, RequestPolicy, Subject, Target as RouteTarget};

use crate::{
    cluster::{Clusters, Rng},
    dispatch::{Onward, Target},
    observe::Traffic,
    rate_limit::{Limits, RateLimits},
};

pub use answer::Answer;
pub use edits::HeaderEdits;
pub use fault::Injected;
pub(crate) use fault::wait;
pub use mirror::Copy;
pub(crate) use mirror::shadow;

/// A route of the configuration in force, with what it leads to resolved: a request looks for no
/// name. State that belongs to a route across reloads is kept by its name, not here.
#[derive(Debug)]
pub struct Route {
    pub decision: Arc<Decision>,
    /// As the decision's; none: where it was dialled.
    branches: Box<[Option<Arc<Onward>>]>,
    mirrors: Box<[Option<Arc<Onward>>]>,
    pub request_headers: Option<HeaderEdits>,
    pub response_headers: Option<HeaderEdits>,
    /// What is counted for its name, across reloads.
    pub traffic: Arc<Traffic>,
    rate_limits: Option<Arc<Limits>>,
}

/// What was decided of one connection or request.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    pub target: Target,
    /// None if no route holds.
    pub route: Option<Arc<Route>>,
    /// Its time limits and retries, if it has any.
    pub limits: Option<Arc<RequestPolicy>>,
}

/// What holds for traffic that no route sends to a cluster.
#[derive(Debug)]
pub(crate) struct Fallback {
    pub(crate) onward: Arc<Onward>,
    pub(crate) limits: Option<Arc<RequestPolicy>>,
}

impl Route {
    /// `decision` is of a snapshot whose clusters are all in `clusters`.
    pub(crate) fn resolve(
        decision: &Arc<Decision>,
        clusters: &Clusters,
        limits: &RateLimits,
        traffic: Arc<Traffic>,
    ) -> Self {
        let onward = |target: &RouteTarget, labels: &Labels| match target {
            RouteTarget::OriginalDestination => None,
            RouteTarget::Cluster(settings) => clusters.find(&settings.name).map(|cluster| {
                let subset = (!labels.is_empty()).then(|| cluster.subset(labels, Instant::now()));
                Arc::new(Onward::new(cluster, settings, subset, limits))
            }),
        };
        let settings = &decision.settings;
        let mirrors = settings.mirror.iter().zip(&decision.mirrors);
        Self {
            branches: decision
                .branches
                .iter()
                .map(|b| onward(&b.target, &b.subset))
                .collect(),
            mirrors: mirrors
                .map(|(m, target)| onward(target, &m.subset))
                .collect(),
            request_headers: HeaderEdits::compile(&settings.request_headers),
            response_headers: HeaderEdits::compile(&settings.response_headers),
            rate_limits: limits.compile(&settings.rate_limits, false),
            decision: decision.clone(),
            traffic,
        }
    }

    /// Where traffic of `branch` goes; none: where it was dialled.
    pub(crate) fn onward(&self, branch: usize) -> Option<&Arc<Onward>> {
        self.branches.get(branch)?.as_ref()
    }

    /// Whether requests do not go on as they came.
    pub fn edits_request(&self) -> bool {
        self.request_headers.is_some() || self.decision.settings.rewrite.is_some()
    }
}

impl Routed {
    /// `subject` has `route`, or else goes where it was dialled, under `defaults` if these ask for
    /// anything. Where there is a choice of clusters, `rng` makes it.
    pub(crate) fn decide(
        subject: &Subject<'_>,
        route: Option<&Arc<Route>>,
        defaults: Option<&Fallback>,
        rng: &Rng,
    ) -> Self {
        let chosen = route.and_then(|r| {
            let branch = r.decision.branch(|| rng.word())?;
            r.onward(branch)
        });
        let defaults = defaults.filter(|_| chosen.is_none());
        let limits = route.and_then(|r| r.decision.policy.as_ref());
        Self {
            target: match chosen.or(defaults.map(|d| &d.onward)) {
                Some(onward) => Target::Cluster(onward.at(subject.destination)),
                None => Target::Original,
            },
            limits: limits.or(defaults.and_then(|d| d.limits.as_ref())).cloned(),
            route: route.cloned(),
        }
    }

    /// Stays with `target` where that is one of the clusters among which traffic is split.
    pub(crate) fn stay_with(&mut self, target: &Target) {
        let Some(route) = self.route.as_ref().filter(|r| r.branches.len() > 1) else {
            return;
        };
        let leads_there = |onward: &Option<Arc<Onward>>| match (onward, target) {
            (None, Target::Original) => true,
            (Some(onward), Target::Cluster(other)) => onward.cluster.name == other.cluster.name,
            _ => false,
        };
        if route.branches.iter().any(leads_there) {
            self.target = target.clone();
        }
    }

    /// The limits of the route, and those of the cluster.
    pub(crate) fn rate_limits(&self) -> [Option<&Arc<Limits>>; 2] {
        let of_route = self.route.as_ref().and_then(|r| r.rate_limits.as_ref());
        let of_cluster = match &self.target {
            Target::Cluster(onward) => onward.rate_limits.as_ref(),
            Target::Original => None,
        };
        [of_route, of_cluster]
    }

    pub(crate) fn has_rate_limits(&self) -> bool {
        self.rate_limits().iter().any(Option::is_some)
    }

    /// What metrics, logs and traces call the route.
    pub fn name(&self) -> Option<&str> {
        Some(&self.route.as_ref()?.decision.name)
    }

    /// What the route says as it is written, if there is one.
    pub fn policy(&self) -> Option<&outrigger_config::Route> {
        Some(&self.route.as_ref()?.decision.settings)
    }

    /// Whether one route has decided both.
    pub(crate) fn is_by_same_route(&self, other: &Self) -> bool {
        match (&self.route, &other.route) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Whether nothing goes on to any upstream.
    pub fn answers_itself(&self) -> bool {
        let action = self.route.as_ref().map(|r| r.decision.action());
        matches!(action, Some(Action::Redirect(_) | Action::Respond(_)))
    }

    /// The host that a request asks `peer` for, where its route leaves that to the endpoint.
    pub fn auto_host(&self, peer: SocketAddr) -> Option<Arc<str>> {
        let rewrite = self.policy()?.rewrite.as_ref()?;
        match &self.target {
            Target::Cluster(onward) if rewrite.auto_host => onward.cluster.hostname(peer),
            _ => None,
        }
    }
}
