//! Rate, errors and durations of each destination, cluster and route.

use std::sync::Arc;

use prometheus_client::metrics::MetricType;

use super::{pages::Family, series::Series};
use crate::{cluster::Cluster, observe::metrics::Totals, shared::Shared};

/// The destination under which forgotten ones are told.
const OTHER: &str = "other";

/// What was counted for one thing.
#[derive(Debug)]
pub(super) struct Row {
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
            name: destination.address.to_string().into(),
            totals: destination.metrics.totals(),
        })
        .collect();
    let forgotten = shared.registry.forgotten();
    if forgotten != Totals::default() {
        rows.push(Row {
            name: OTHER.into(),
            totals: forgotten,
        });
    }
    rows.into()
}

pub(super) fn clusters(clusters: &[Arc<Cluster>]) -> Arc<[Row]> {
    let row = |cluster: &Arc<Cluster>| Row {
        name: (*cluster.name).into(),
        totals: cluster.counts.traffic.totals(),
    };
    clusters.iter().map(row).collect()
}

pub(super) fn routes(shared: &Shared) -> Arc<[Row]> {
    let routes = shared.configuration.traffic().totals();
    let row = |(name, totals): (Arc<str>, Totals)| Row {
        name: (*name).into(),
        totals,
    };
    routes.into_iter().map(row).collect()
}

const REQUESTS: &str = "HTTP requests, and connections of other protocols, that have ended";
const DURATION: &str = "Time from the first byte of an HTTP request to the last byte of its answer";
const RECEIVED: &str = "Bytes read from applications, counted when a request or connection ends";
const SENT: &str = "Bytes written to applications, counted when a request or connection ends";

pub(super) const DESTINATION_FAMILIES: &[Family<Row>] = &[
    Family {
        name: "outrigger_requests",
        help: REQUESTS,
        kind: MetricType::Counter,
        encode: |series, row| row.requests(series, "destination"),
    },
    Family {
        name: "outrigger_request_duration_seconds",
        help: DURATION,
        kind: MetricType::Histogram,
        encode: |series, row| row.durations(series, "destination"),
    },
    Family {
        name: "outrigger_received_bytes",
        help: RECEIVED,
        kind: MetricType::Counter,
        encode: |series, row| {
            series.counter(&[("destination", &row.name)], row.totals.bytes_received)
        },
    },
    Family {
        name: "outrigger_sent_bytes",
        help: SENT,
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("destination", &row.name)], row.totals.bytes_sent),
    },
    Family {
        name: "outrigger_upstream_requests",
        help: "HTTP requests sent upstream, by whether their connection was new or reused",
        kind: MetricType::Counter,
        encode: |series, row| {
            for (connection, count) in [("new", row.totals.fresh), ("reused", row.totals.reused)] {
                let labels = [("destination", &*row.name), ("connection", connection)];
                series.counter(&labels, count)?;
            }
            Ok(())
        },
    },
];

pub(super) const CLUSTER_FAMILIES: &[Family<Row>] = &[
    Family {
        name: "outrigger_cluster_requests",
        help: REQUESTS,
        kind: MetricType::Counter,
        encode: |series, row| row.requests(series, "cluster"),
    },
    Family {
        name: "outrigger_cluster_request_duration_seconds",
        help: DURATION,
        kind: MetricType::Histogram,
        encode: |series, row| row.durations(series, "cluster"),
    },
    Family {
        name: "outrigger_cluster_received_bytes",
        help: RECEIVED,
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("cluster", &row.name)], row.totals.bytes_received),
    },
    Family {
        name: "outrigger_cluster_sent_bytes",
        help: SENT,
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("cluster", &row.name)], row.totals.bytes_sent),
    },
];

pub(super) const ROUTE_FAMILIES: &[Family<Row>] = &[
    Family {
        name: "outrigger_route_requests",
        help: REQUESTS,
        kind: MetricType::Counter,
        encode: |series, row| row.requests(series, "route"),
    },
    Family {
        name: "outrigger_route_request_duration_seconds",
        help: DURATION,
        kind: MetricType::Histogram,
        encode: |series, row| row.durations(series, "route"),
    },
    Family {
        name: "outrigger_route_received_bytes",
        help: RECEIVED,
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("route", &row.name)], row.totals.bytes_received),
    },
    Family {
        name: "outrigger_route_sent_bytes",
        help: SENT,
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("route", &row.name)], row.totals.bytes_sent),
    },
];

impl Row {
    fn requests(&self, series: &mut Series<'_, '_>, label: &str) -> std::fmt::Result {
        for (outcome, count) in &self.totals.outcomes {
            let code = outcome.code();
            let labels = [
                (label, &*self.name),
                ("protocol", outcome.protocol()),
                ("code", &code),
                ("reason", outcome.reason()),
            ];
            series.counter(&labels, *count)?;
        }
        Ok(())
    }

    fn durations(&self, series: &mut Series<'_, '_>, label: &str) -> std::fmt::Result {
        let labels = [(label, &*self.name)];
        let totals = &self.totals;
        series.histogram(&labels, &totals.latency, totals.native.as_deref())
    }
}
