//! Which route a connection or request has, and where that leads: decided once, and kept for as long
//! as it lasts, whatever is published meanwhile. Nobody keeps the snapshot.

use std::{sync::Arc, time::Instant};

use outrigger_config::{Decision, Subject, Target as RouteTarget};

use crate::{
    cluster::Clusters,
    dispatch::{Onward, Target},
    observe::Traffic,
};

/// A route of the configuration in force, with what it leads to resolved: a request looks for no
/// name. State that belongs to a route across reloads is kept by its name, not here.
#[derive(Debug)]
pub struct Route {
    pub decision: Arc<Decision>,
    /// None: where it was dialled.
    onward: Option<Arc<Onward>>,
    /// What is counted for its name, across reloads.
    pub traffic: Arc<Traffic>,
}

/// What was decided of one connection or request.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    pub target: Target,
    /// None if no route holds.
    pub route: Option<Arc<Route>>,
}

impl Route {
    /// `decision` is of a snapshot whose clusters are all in `clusters`.
    pub(crate) fn resolve(
        decision: &Arc<Decision>,
        clusters: &Clusters,
        traffic: Arc<Traffic>,
    ) -> Self {
        let onward = match &decision.target {
            RouteTarget::OriginalDestination => None,
            RouteTarget::Cluster(settings) => clusters.find(&settings.name).map(|cluster| {
                let labels = &decision.settings.subset;
                let subset = (!labels.is_empty()).then(|| cluster.subset(labels, Instant::now()));
                Arc::new(Onward::new(cluster, settings, subset))
            }),
        };
        Self {
            decision: decision.clone(),
            onward,
            traffic,
        }
    }
}

impl Routed {
    /// `subject` has `route`, or else goes where it was dialled, under `defaults` if these ask for
    /// anything.
    pub(crate) fn decide(
        subject: &Subject<'_>,
        route: Option<&Arc<Route>>,
        defaults: Option<&Arc<Onward>>,
    ) -> Self {
        let onward = route.and_then(|r| r.onward.as_ref()).or(defaults);
        Self {
            target: match onward {
                Some(onward) => Target::Cluster(onward.at(subject.destination)),
                None => Target::Original,
            },
            route: route.cloned(),
        }
    }

    /// What metrics, logs and traces call the route.
    pub fn name(&self) -> Option<&str> {
        Some(&self.route.as_ref()?.decision.name)
    }

    /// What the route says as it is written, if there is one.
    pub fn policy(&self) -> Option<&outrigger_config::Route> {
        Some(&self.route.as_ref()?.decision.settings)
    }
}
