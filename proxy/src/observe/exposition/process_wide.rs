//! Metrics without a destination.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::{
    Format,
    series::{Series, gauge, open, write_counter},
};
use crate::{
    configuration::ConfigurationFigures,
    control::{CaptureFigures, WatchFigures},
    observe::{AccessLog, process::Process, trace::TraceFigures},
    shared::Shared,
};

#[derive(Debug)]
pub(super) struct ProcessWide {
    format: Format,
    accepted: u64,
    refused: Vec<(&'static str, u64)>,
    live: u64,
    idle_upstream: u64,
    active_upstream: u64,
    destinations: u64,
    workers_accepting: u64,
    capture: CaptureFigures,
    configuration: ConfigurationFigures,
    watch: WatchFigures,
    access_log_dropped: Option<u64>,
    trace: Option<TraceFigures>,
    uptime_seconds: f64,
    start_seconds: f64,
    process: Option<Process>,
}

impl ProcessWide {
    pub(super) fn of(shared: &Shared, format: Format) -> Self {
        let metrics = &shared.metrics;
        let idle_upstream = metrics.idle_upstreams();
        Self {
            format,
            accepted: metrics.accepted(),
            refused: metrics.refused().collect(),
            live: shared.connections.live() as u64,
            idle_upstream,
            active_upstream: (shared.own.count() as u64).saturating_sub(idle_upstream),
            destinations: shared.registry.count() as u64,
            workers_accepting: shared.readiness.accepting() as u64,
            capture: shared.control.figures(),
            configuration: shared.configuration.figures(),
            watch: shared.control.watch_figures(),
            access_log_dropped: shared.access_log.as_ref().map(AccessLog::dropped),
            trace: shared.tracer.figures(),
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

    /// A counter for each reason.
    fn counter_by_reason(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        counts: impl Iterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let reasons: Vec<_> = counts.map(|(r, count)| ([("reason", r)], count)).collect();
        let series: Vec<(&[(&str, &str)], u64)> = reasons
            .iter()
            .map(|(labels, count)| (&labels[..], *count))
            .collect();
        self.counter(encoder, name, help, &series)
    }

    fn capture(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let capture = &self.capture;
        gauge(
            encoder,
            "outrigger_capture_active",
            "1 while new connections are redirected to this process",
            capture.is_active.into(),
        )?;
        if let Some(since) = capture.since {
            gauge(
                encoder,
                "outrigger_capture_start_time_seconds",
                "Unix time since which this process holds the rules that redirect",
                since,
            )?;
        }
        self.counter(
            encoder,
            "outrigger_capture_lapses",
            "Times that the lease ran out and new connections went direct",
            &[(&[], capture.lapses)],
        )?;
        self.counter(
            encoder,
            "outrigger_capture_given_up",
            "Captures let go because connection tracking was nearly full",
            &[(&[], capture.given_up)],
        )?;
        let mut name = "outrigger_capture_lapsed_seconds".to_owned();
        let help = "Time in which new connections went direct because the lease had run out";
        let mut lapsed = open(encoder, self.format, &mut name, help, MetricType::Counter)?;
        write_counter(&mut lapsed, self.format, capture.lapsed.as_secs_f64())?;
        self.watch(encoder)
    }

    fn watch(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let watch = &self.watch;
        self.counter_by_reason(
            encoder,
            "outrigger_capture_bypassed",
            "Connections that went past the capture while it was on",
            (watch.bypassed.iter()).map(|(reason, count)| (reason.label(), *count)),
        )?;
        self.counter(
            encoder,
            "outrigger_capture_watch_overruns",
            "Times that bypasses or changes of rules came faster than they could be read",
            &[(&[], watch.overruns)],
        )?;
        self.counter(
            encoder,
            "outrigger_capture_drifts",
            "Times that rules of the capture were found gone, or shadowed by others",
            &[(&[], watch.drifts)],
        )?;
        gauge(
            encoder,
            "outrigger_capture_shadowed",
            "Foreign chains that translate destinations before the capture",
            watch.shadows,
        )
    }

    fn trace(&self, encoder: &mut DescriptorEncoder<'_>, trace: &TraceFigures) -> fmt::Result {
        self.counter(
            encoder,
            "outrigger_trace_spans_exported",
            "Spans that the collector has taken",
            &[(&[], trace.exported)],
        )?;
        self.counter_by_reason(
            encoder,
            "outrigger_trace_spans_dropped",
            "Spans that no collector will have",
            trace.dropped.into_iter(),
        )?;
        let exports = trace
            .exports
            .map(|(result, count)| ([("result", result)], count));
        let exports = [0, 1].map(|at| (&exports[at].0[..], exports[at].1));
        self.counter(
            encoder,
            "outrigger_trace_exports",
            "Batches of spans sent to the collector, by whether it took them",
            &exports,
        )?;
        gauge(
            encoder,
            "outrigger_trace_spans_waiting",
            "Spans that wait to be sent",
            trace.waiting,
        )
    }

    fn configuration(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let configuration = &self.configuration;
        gauge(
            encoder,
            "outrigger_config_generation",
            "Which configuration is in force: 1 at the start, one more with each reload",
            configuration.generation,
        )?;
        gauge(
            encoder,
            "outrigger_config_last_reload_successful",
            "0 while the file has problems and an earlier configuration is in force",
            configuration.is_latest_good.into(),
        )?;
        self.counter(
            encoder,
            "outrigger_config_reloads",
            "Reloads asked for by a change of the file, SIGHUP or POST /reload",
            &[
                (&[("result", "applied")], configuration.applied),
                (&[("result", "rejected")], configuration.rejected),
            ],
        )
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
        self.counter_by_reason(
            encoder,
            "outrigger_connections_refused",
            "Connections reset before they were anybody's request",
            self.refused.iter().copied(),
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
        self.capture(encoder)?;
        self.configuration(encoder)?;
        if let Some(dropped) = self.access_log_dropped {
            self.counter(
                encoder,
                "outrigger_access_log_dropped",
                "Access log lines lost because they could not be written in time",
                &[(&[], dropped)],
            )?;
        }
        if let Some(trace) = &self.trace {
            self.trace(encoder, trace)?;
        }
        match &self.process {
            Some(process) => self.process(encoder, process),
            None => Ok(()),
        }
    }
}
