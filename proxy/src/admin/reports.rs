//! What the admin listener tells as JSON; docs/admin.schema.json is made of these types.

use std::net::SocketAddr;

use outrigger_config::{Branch, Labels, Match, Settings, Target};
use serde::Serialize;
use serde_json::Value;

use super::redact::redact;
use crate::{
    live::{ConnectionReport, Listing},
    observe::Totals,
    shared::Shared,
};

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Readiness {
    pub(super) ready: bool,
    workers: usize,
    accepting: usize,
    reasons: Vec<&'static str>,
}

impl Readiness {
    pub(super) fn of(shared: &Shared) -> Self {
        let reasons = shared.readiness.objections();
        Self {
            ready: reasons.is_empty(),
            workers: shared.metrics.workers(),
            accepting: shared.readiness.accepting(),
            reasons,
        }
    }
}

/// `/config`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConfigReport {
    /// 1 at the start, one more with each reload.
    generation: u64,
    version: &'static str,
    instance: Box<str>,
    listeners: Vec<SocketAddr>,
    /// As in a file, with every default written out; secrets are `(redacted)`.
    settings: Value,
}

impl ConfigReport {
    pub(super) fn of(shared: &Shared) -> Self {
        let snapshot = shared.configuration.snapshot();
        let mut clusters: Vec<_> = snapshot.clusters.values().map(|c| (**c).clone()).collect();
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        let settings = Settings {
            clusters,
            routes: snapshot.routes.iter().map(|r| r.settings.clone()).collect(),
            ..(*snapshot.settings).clone()
        };
        let mut settings = serde_json::to_value(settings).expect("plain data is JSON");
        redact(&mut settings);
        Self {
            generation: snapshot.generation,
            version: env!("CARGO_PKG_VERSION"),
            instance: shared.instance.clone(),
            listeners: shared.listeners.iter().map(|l| l.0).collect(),
            settings,
        }
    }
}

/// `/connections`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConnectionsReport {
    /// All that there are, shown or not.
    total: usize,
    /// Workers that did not answer in time.
    silent_workers: Vec<usize>,
    connections: Vec<ConnectionReport>,
}

impl ConnectionsReport {
    pub(super) fn of(listings: Vec<Option<Listing>>) -> Self {
        let mut report = Self {
            total: 0,
            silent_workers: Vec::new(),
            connections: Vec::new(),
        };
        for (worker, listing) in listings.into_iter().enumerate() {
            match listing {
                Some(listing) => {
                    report.total += listing.total;
                    report.connections.extend(listing.shown);
                }
                None => report.silent_workers.push(worker),
            }
        }
        report
    }
}

/// `/routes`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RoutesReport {
    generation: u64,
    /// In the order in which they are tried.
    routes: Vec<RouteReport>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RouteReport {
    name: Box<str>,
    /// Its place in the file, from 0.
    index: usize,
    #[serde(rename = "match")]
    matches: Match,
    /// Where its traffic goes; none if it answers itself.
    targets: Vec<TargetReport>,
    /// That have ended, and how many of them failed.
    requests: u64,
    failures: u64,
    bytes_received: u64,
    bytes_sent: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TargetReport {
    /// None: where it was dialled.
    cluster: Option<Box<str>>,
    subset: Labels,
    /// Its share, among those of all targets.
    weight: u32,
}

impl TargetReport {
    fn of(branch: &Branch) -> Self {
        Self {
            cluster: match &branch.target {
                Target::Cluster(cluster) => Some(cluster.name.as_str().into()),
                Target::OriginalDestination => None,
            },
            subset: branch.subset.clone(),
            weight: branch.weight,
        }
    }
}

impl RoutesReport {
    pub(super) fn of(shared: &Shared) -> Self {
        let routes = shared.configuration.routes();
        let report = |route: &std::sync::Arc<crate::route::Route>| {
            let decision = &route.decision;
            let totals = route.traffic.totals();
            RouteReport {
                name: (*decision.name).into(),
                index: decision.index,
                matches: decision.settings.matches.clone(),
                targets: decision.branches.iter().map(TargetReport::of).collect(),
                requests: totals.outcomes.values().sum(),
                failures: failures(&totals),
                bytes_received: totals.bytes_received,
                bytes_sent: totals.bytes_sent,
            }
        };
        Self {
            generation: shared.configuration.snapshot().generation,
            routes: routes.iter().map(report).collect(),
        }
    }
}

fn failures(totals: &Totals) -> u64 {
    let failed = totals.outcomes.iter().filter(|(o, _)| o.reason() != "none");
    failed.map(|(_, count)| count).sum()
}

/// `/logging`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LevelsReport {
    /// As in `--log-level`.
    pub(super) filter: String,
}

#[cfg(test)]
#[path = "reports/tests.rs"]
mod tests;
