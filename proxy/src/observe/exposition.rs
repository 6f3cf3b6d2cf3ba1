//! Metrics as Prometheus reads them, made piece by piece as fast as the scraper takes them: ten
//! thousand destinations are tens of megabytes of text, which a slow scraper must not keep in
//! memory.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
    },
    metrics::MetricType,
    registry::Registry,
};

use super::{metrics::Totals, process::Process};
use crate::shared::Shared;

/// Destinations in one piece; their histograms take some 200 KiB.
const ROWS_PER_PIECE: usize = 128;

/// The destination under which forgotten ones are told.
const OTHER: &str = "other";

/// Which of the two text formats is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's own, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header asks for.
    pub fn accepted(accept: &str) -> Self {
        let wants_open_metrics = accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            parts.next() == Some("application/openmetrics-text")
                && !parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        });
        if wants_open_metrics {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Every metric at one moment, as pieces of text.
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    process_wide: Option<ProcessWide>,
    rows: Arc<[Row]>,
    family: usize,
    position: usize,
    is_ended: bool,
}

impl Exposition {
    pub fn of(shared: &Shared, format: Format) -> Self {
        Self {
            format,
            process_wide: Some(ProcessWide::of(shared, format)),
            rows: rows(shared),
            family: 0,
            position: 0,
            is_ended: false,
        }
    }
}

impl Iterator for Exposition {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if let Some(process_wide) = self.process_wide.take() {
            return Some(encode(process_wide));
        }
        if let Some(family) = FAMILIES.get(self.family) {
            let start = self.position;
            let end = (start + ROWS_PER_PIECE).min(self.rows.len());
            let piece = encode(Piece {
                family,
                format: self.format,
                rows: self.rows.clone(),
                range: start..end,
            });
            if end < self.rows.len() {
                self.position = end;
            } else {
                (self.family, self.position) = (self.family + 1, 0);
            }
            return Some(match start {
                0 => piece,
                _ => without_head(piece),
            });
        }
        let is_last = !std::mem::replace(&mut self.is_ended, true);
        (is_last && self.format == Format::OpenMetrics).then(|| "# EOF\n".into())
    }
}

/// One destination's figures.
#[derive(Debug)]
struct Row {
    destination: Box<str>,
    totals: Totals,
}

/// Sums up every destination. Whoever is forgotten is told under `other`: while we hold them all
/// none can be, so that what `other` has afterwards is told once and nothing is told twice.
fn rows(shared: &Shared) -> Arc<[Row]> {
    let known = shared.registry.all();
    let mut rows: Vec<_> = known
        .iter()
        .map(|destination| Row {
            destination: destination.address.to_string().into(),
            totals: destination.metrics.totals(),
        })
        .collect();
    let forgotten = shared.metrics.forgotten();
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
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    encode: fn(&mut Series<'_, '_>, &Row) -> fmt::Result,
}

const FAMILIES: [Family; 5] = [
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

/// The series of one metric, written in either format.
struct Series<'a, 'e> {
    encoder: &'a mut MetricEncoder<'e>,
    format: Format,
}

impl Series<'_, '_> {
    fn counter(&mut self, labels: &[(&str, &str)], count: u64) -> fmt::Result {
        if labels.is_empty() {
            return write_counter(self.encoder, self.format, count);
        }
        write_counter(
            &mut self.encoder.encode_family(&labels)?,
            self.format,
            count,
        )
    }
}

fn write_counter<N>(encoder: &mut MetricEncoder<'_>, format: Format, count: N) -> fmt::Result
where
    N: EncodeCounterValue + EncodeGaugeValue,
{
    match format {
        Format::OpenMetrics => encoder.encode_counter::<NoLabelSet, _, f64>(&count, None),
        // The name carries `_total` already: see `open`.
        Format::Prometheus => encoder.encode_gauge(&count),
    }
}

/// Begins a metric. OpenMetrics describes a counter by its bare name and appends `_total` to its
/// samples; Prometheus's own format describes it by the full name.
fn open<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    format: Format,
    name: &'s mut String,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    if format == Format::Prometheus && matches!(kind, MetricType::Counter) {
        name.push_str("_total");
    }
    encoder.encode_descriptor(name, help, None, kind)
}

/// Some destinations' series of one family.
#[derive(Debug)]
struct Piece {
    family: &'static Family,
    format: Format,
    rows: Arc<[Row]>,
    range: std::ops::Range<usize>,
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

/// Metrics without a destination.
#[derive(Debug)]
struct ProcessWide {
    format: Format,
    accepted: u64,
    refused: Vec<(&'static str, u64)>,
    live: u64,
    idle_upstream: u64,
    active_upstream: u64,
    destinations: u64,
    workers_accepting: u64,
    access_log_dropped: Option<u64>,
    uptime_seconds: f64,
    start_seconds: f64,
    process: Option<Process>,
}

impl ProcessWide {
    fn of(shared: &Shared, format: Format) -> Self {
        let metrics = &shared.metrics;
        let idle_upstream = metrics.idle_upstream();
        Self {
            format,
            accepted: metrics.accepted(),
            refused: metrics.refused().collect(),
            live: shared.connections.live() as u64,
            idle_upstream,
            active_upstream: (shared.own.count() as u64).saturating_sub(idle_upstream),
            destinations: shared.registry.count() as u64,
            workers_accepting: shared.readiness.accepting() as u64,
            access_log_dropped: shared.access_log.as_ref().map(super::AccessLog::dropped),
            uptime_seconds: shared.started.elapsed().as_secs_f64(),
            start_seconds: metrics
                .started
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
            process: Process::read()
                .inspect_err(|error| tracing::debug!(%error, "no figures of the process"))
                .ok(),
        }
    }

    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        series: &[(&[(&str, &str)], u64)],
    ) -> fmt::Result {
        let mut name = name.to_owned();
        let mut encoder = open(encoder, self.format, &mut name, help, MetricType::Counter)?;
        for (labels, count) in series {
            Series {
                encoder: &mut encoder,
                format: self.format,
            }
            .counter(labels, *count)?;
        }
        Ok(())
    }

    fn process(&self, encoder: &mut DescriptorEncoder<'_>, process: &Process) -> fmt::Result {
        let mut name = "process_cpu_seconds".to_owned();
        let help = "User and system CPU time spent";
        let mut cpu = open(encoder, self.format, &mut name, help, MetricType::Counter)?;
        write_counter(&mut cpu, self.format, process.cpu_seconds)?;
        let resident = process.resident_bytes;
        let virt = process.virtual_bytes;
        let open_fds = process.open_descriptors;
        gauge(
            encoder,
            "process_resident_memory_bytes",
            "Resident memory",
            resident,
        )?;
        gauge(
            encoder,
            "process_virtual_memory_bytes",
            "Virtual memory",
            virt,
        )?;
        gauge(encoder, "process_threads", "Threads", process.threads)?;
        gauge(
            encoder,
            "process_open_fds",
            "Open file descriptors",
            open_fds,
        )?;
        if let Some(max) = process.max_descriptors {
            gauge(encoder, "process_max_fds", "File descriptors allowed", max)?;
        }
        Ok(())
    }
}

impl Collector for ProcessWide {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut encoder;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        encoder
            .encode_descriptor(
                "outrigger_build_info",
                "The version, always 1",
                None,
                MetricType::Gauge,
            )?
            .encode_family(&version)?
            .encode_gauge(&1u64)?;
        encoder
            .encode_descriptor(
                "outrigger_uptime_seconds",
                "Time since the process began",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&self.uptime_seconds)?;
        encoder
            .encode_descriptor(
                "process_start_time_seconds",
                "Unix time at which the process began",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&self.start_seconds)?;
        self.counter(
            encoder,
            "outrigger_connections_accepted",
            "Connections taken from the listeners, refused ones included",
            &[(&[], self.accepted)],
        )?;
        let reasons: Vec<_> = self
            .refused
            .iter()
            .map(|(r, n)| ([("reason", *r)], *n))
            .collect();
        let series: Vec<(&[(&str, &str)], u64)> = reasons
            .iter()
            .map(|(labels, n)| (&labels[..], *n))
            .collect();
        self.counter(
            encoder,
            "outrigger_connections_refused",
            "Connections reset before they were anybody's request",
            &series,
        )?;
        gauge(
            encoder,
            "outrigger_connections_live",
            "Captured connections open now",
            self.live,
        )?;
        let mut upstream = encoder.encode_descriptor(
            "outrigger_upstream_connections",
            "Upstream connections open now: idle in a pool, or in use",
            None,
            MetricType::Gauge,
        )?;
        for (state, count) in [
            ("active", self.active_upstream),
            ("idle", self.idle_upstream),
        ] {
            upstream
                .encode_family(&[("state", state)])?
                .encode_gauge(&count)?;
        }
        gauge(
            encoder,
            "outrigger_destinations",
            "Destinations remembered",
            self.destinations,
        )?;
        gauge(
            encoder,
            "outrigger_workers_accepting",
            "Workers that accept connections",
            self.workers_accepting,
        )?;
        if let Some(dropped) = self.access_log_dropped {
            self.counter(
                encoder,
                "outrigger_access_log_dropped",
                "Access log lines lost because they could not be written in time",
                &[(&[], dropped)],
            )?;
        }
        match &self.process {
            Some(process) => self.process(encoder, process),
            None => Ok(()),
        }
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

fn encode(collector: impl Collector) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    text::encode_registry(&mut text, &registry).expect("a string takes whatever is written");
    text
}

/// Drops the description that a metric's first piece has already given.
fn without_head(piece: String) -> String {
    piece
        .split_inclusive('\n')
        .skip_while(|line| line.starts_with('#'))
        .collect()
}

#[cfg(test)]
mod tests;
