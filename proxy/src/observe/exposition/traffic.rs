//! Rate, errors and durations of each destination, cluster and route.

use std::sync::Arc;

use prometheus_client::metrics::MetricType;

use super::pages::Family;
use crate::{cluster::Cluster, observe::metrics::Totals, shared::Shared};

const DESTINATION: &str = "destination";

/// The destination under which forgotten ones are told.
const OTHER: &str = "other";

/// What was counted for one thing.
#[derive(Debug)]
pub(super) struct Row {
    /// The label under which it is told: what kind of thing it is.
    of: &'static str,
    name: Box<str>,
    totals: Totals,
}

/// Sums up every destination. Whoever is forgotten is told under `other`: while we hold them all
/// none can be, so that what `other` has afterwards is told once and nothing is told twice.
pub(super) fn destinations(shared: &Shared) -> Arc<[Row]> {
    let known = shared.registry.all();
    let mut rows: Vec<_> = known
        .iter()
        .map(|destination| Row {
            of: DESTINATION,
            name: destination.address.to_string().into(),
            totals: destination.metrics.totals(),
        })
        .collect();
    let forgotten = shared.registry.forgotten();
    if forgotten != Totals::default() {
        rows.push(Row {
            of: DESTINATION,
            name: OTHER.into(),
            totals: forgotten,
        });
    }
    rows.into()
}

pub(super) fn clusters(clusters: &[Arc<Cluster>]) -> Arc<[Row]> {
    let row = |cluster: &Arc<Cluster>| Row {
        of: "cluster",
        name: (*cluster.name).into(),
        totals: cluster.counts.traffic.totals(),
    };
    clusters.iter().map(row).collect()
}

pub(super) fn routes(shared: &Shared) -> Arc<[Row]> {
    let routes = shared.configuration.traffic().totals();
    let row = |(name, totals): (Arc<str>, Totals)| Row {
        of: "route",
        name: (*name).into(),
        totals,
    };
    routes.into_iter().map(row).collect()
}

pub(super) const DESTINATION_FAMILIES: &[Family<Row>] = &[
    requests("outrigger_requests"),
    durations("outrigger_request_duration_seconds"),
    received("outrigger_received_bytes"),
    sent("outrigger_sent_bytes"),
    Family {
        name: "outrigger_upstream_requests",
        help: "HTTP requests sent upstream, by whether their connection was new or reused",
        kind: MetricType::Counter,
        encode: |series, row| {
            for (connection, count) in [("new", row.totals.fresh), ("reused", row.totals.reused)] {
                series.counter(&[row.label(), ("connection", connection)], count)?;
            }
            Ok(())
        },
    },
];

pub(super) const CLUSTER_FAMILIES: &[Family<Row>] = &[
    requests("outrigger_cluster_requests"),
    durations("outrigger_cluster_request_duration_seconds"),
    received("outrigger_cluster_received_bytes"),
    sent("outrigger_cluster_sent_bytes"),
];

pub(super) const ROUTE_FAMILIES: &[Family<Row>] = &[
    requests("outrigger_route_requests"),
    durations("outrigger_route_request_duration_seconds"),
    received("outrigger_route_received_bytes"),
    sent("outrigger_route_sent_bytes"),
];

const fn requests(name: &'static str) -> Family<Row> {
    Family {
        name,
        help: "HTTP requests, and connections of other protocols, that have ended",
        kind: MetricType::Counter,
        encode: |series, row| {
            for (outcome, count) in &row.totals.outcomes {
                let code = outcome.code();
                let labels = [
                    row.label(),
                    ("protocol", outcome.protocol()),
                    ("code", &code),
                    ("reason", outcome.reason()),
                ];
                series.counter(&labels, *count)?;
            }
            Ok(())
        },
    }
}

const fn durations(name: &'static str) -> Family<Row> {
    Family {
        name,
        help: "Time from the first byte of an HTTP request to the last byte of its answer",
        kind: MetricType::Histogram,
        encode: |series, row| {
            let totals = &row.totals;
            series.histogram(&[row.label()], &totals.latency, totals.native.as_deref())
        },
    }
}

const fn received(name: &'static str) -> Family<Row> {
    Family {
        name,
        help: "Bytes read from applications, counted when a request or connection ends",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[row.label()], row.totals.bytes_received),
    }
}

const fn sent(name: &'static str) -> Family<Row> {
    Family {
        name,
        help: "Bytes written to applications, counted when a request or connection ends",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[row.label()], row.totals.bytes_sent),
    }
}

impl Row {
    fn label(&self) -> (&'static str, &str) {
        (self.of, &self.name)
    }
}
