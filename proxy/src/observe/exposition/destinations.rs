//! Metrics that have a series, or several, for each destination.

use std::sync::Arc;

use prometheus_client::{encoding::NoLabelSet, metrics::MetricType};

use super::pages::Family;
use crate::{observe::metrics::Totals, shared::Shared};

/// The destination under which forgotten ones are told.
const OTHER: &str = "other";

/// One destination's figures.
#[derive(Debug)]
pub(super) struct Row {
    destination: Box<str>,
    totals: Totals,
}

/// Sums up every destination. Whoever is forgotten is told under `other`: while we hold them all
/// none can be, so that what `other` has afterwards is told once and nothing is told twice.
pub(super) fn rows(shared: &Shared) -> Arc<[Row]> {
    let known = shared.registry.all();
    let mut rows: Vec<_> = known
        .iter()
        .map(|destination| Row {
            destination: destination.address.to_string().into(),
            totals: destination.metrics.totals(),
        })
        .collect();
    let forgotten = shared.registry.forgotten();
    if forgotten != Totals::default() {
        rows.push(Row {
            destination: OTHER.into(),
            totals: forgotten,
        });
    }
    rows.into()
}

pub(super) const FAMILIES: &[Family<Row>] = &[
    Family {
        name: "outrigger_requests",
        help: "HTTP requests, and connections of other protocols, that have ended",
        kind: MetricType::Counter,
        encode: |series, row| {
            for (outcome, count) in &row.totals.outcomes {
                let code = outcome.code();
                series.counter(
                    &[
                        ("destination", &row.destination),
                        ("protocol", outcome.protocol()),
                        ("code", &code),
                        ("reason", outcome.reason()),
                    ],
                    *count,
                )?;
            }
            Ok(())
        },
    },
    Family {
        name: "outrigger_request_duration_seconds",
        help: "Time from the first byte of an HTTP request to the last byte of its answer",
        kind: MetricType::Histogram,
        encode: |series, row| {
            let latency = &row.totals.latency;
            if latency.count() == 0 {
                return Ok(());
            }
            series
                .encoder
                .encode_family(&[("destination", &*row.destination)])?
                .encode_histogram::<NoLabelSet>(
                    latency.sum_seconds(),
                    latency.count(),
                    &latency.buckets(),
                    None,
                )
        },
    },
    Family {
        name: "outrigger_received_bytes",
        help: "Bytes read from applications, counted when a request or connection ends",
        kind: MetricType::Counter,
        encode: |series, row| {
            let labels = [("destination", &*row.destination)];
            series.counter(&labels, row.totals.bytes_received)
        },
    },
    Family {
        name: "outrigger_sent_bytes",
        help: "Bytes written to applications, counted when a request or connection ends",
        kind: MetricType::Counter,
        encode: |series, row| {
            let labels = [("destination", &*row.destination)];
            series.counter(&labels, row.totals.bytes_sent)
        },
    },
    Family {
        name: "outrigger_upstream_requests",
        help: "HTTP requests sent upstream, by whether their connection was new or reused",
        kind: MetricType::Counter,
        encode: |series, row| {
            for (connection, count) in [("new", row.totals.fresh), ("reused", row.totals.reused)] {
                let labels = [
                    ("destination", &*row.destination),
                    ("connection", connection),
                ];
                series.counter(&labels, count)?;
            }
            Ok(())
        },
    },
];
