//! Metrics that have a series, or several, for each destination.

use std::{fmt, ops::Range, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::{
    Format,
    series::{Series, open},
};
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

/// A metric that has a series, or several, for each destination.
#[derive(Debug)]
pub(super) struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    encode: fn(&mut Series<'_, '_>, &Row) -> fmt::Result,
}

pub(super) const FAMILIES: [Family; 5] = [
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

/// Some destinations' series of one family.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) family: &'static Family,
    pub(super) format: Format,
    pub(super) rows: Arc<[Row]>,
    pub(super) range: Range<usize>,
}

impl Collector for Piece {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let family = self.family;
        let mut name = family.name.to_owned();
        let mut encoder = open(
            &mut encoder,
            self.format,
            &mut name,
            family.help,
            family.kind,
        )?;
        let mut series = Series {
            encoder: &mut encoder,
            format: self.format,
        };
        for row in &self.rows[self.range.clone()] {
            (family.encode)(&mut series, row)?;
        }
        Ok(())
    }
}
