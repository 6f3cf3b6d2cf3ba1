//! Metrics of rate limits and of the services that decide them.

use std::sync::{Arc, atomic::Ordering};

use prometheus_client::metrics::MetricType;

use super::pages::Family;
use crate::rate_limit::RateLimits;

/// One limit's figures.
#[derive(Debug)]
pub(super) struct LimitRow {
    limit: Box<str>,
    results: [(&'static str, u64); 3],
    delayed: u64,
    forgotten: u64,
    buckets: u64,
}

/// One service's figures.
#[derive(Debug)]
pub(super) struct ServiceRow {
    service: Box<str>,
    results: [(&'static str, u64); 5],
    unanswered: [(&'static str, u64); 2],
    cache_hits: u64,
    pending: u64,
}

pub(super) fn rows(limits: &RateLimits) -> (Arc<[LimitRow]>, Arc<[ServiceRow]>) {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (limits, services) = limits.all();
    let limits = limits.iter().map(|state| {
        let counts = &state.counts;
        LimitRow {
            limit: state.name.clone(),
            results: [
                ("admitted", count(&counts.admitted)),
                ("limited", count(&counts.limited)),
                ("shadowed", count(&counts.shadowed)),
            ],
            delayed: count(&counts.delayed),
            forgotten: count(&counts.forgotten),
            buckets: state.buckets() as u64,
        }
    });
    let services = services.iter().map(|service| {
        let counts = &service.state.counts;
        ServiceRow {
            service: service.name().into(),
            results: [
                ("error", count(&counts.errors)),
                ("ok", count(&counts.ok)),
                ("over_limit", count(&counts.over_limit)),
                ("overflow", count(&counts.overflows)),
                ("timeout", count(&counts.timeouts)),
            ],
            unanswered: [
                ("allowed", count(&counts.failure_mode_allowed)),
                ("denied", count(&counts.failure_mode_denied)),
            ],
            cache_hits: count(&counts.cache_hits),
            pending: service.pending() as u64,
        }
    });
    (limits.collect(), services.collect())
}

pub(super) const LIMIT_FAMILIES: &[Family<LimitRow>] = &[
    Family {
        name: "outrigger_rate_limit_decisions",
        help: "Requests and connections under the limit, by what came of them; shadowed ones were over it and passed",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.results.iter().try_for_each(|(result, count)| {
                series.counter(&[("limit", &row.limit), ("result", result)], *count)
            })
        },
    },
    Family {
        name: "outrigger_rate_limit_delayed",
        help: "Of those admitted, how many had to wait for their token",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("limit", &row.limit)], row.delayed),
    },
    Family {
        name: "outrigger_rate_limit_buckets",
        help: "Buckets in memory that the limit tells traffic apart by",
        kind: MetricType::Gauge,
        encode: |series, row| series.gauge(&[("limit", &row.limit)], row.buckets),
    },
    Family {
        name: "outrigger_rate_limit_buckets_forgotten",
        help: "Buckets forgotten at max_buckets before they were full",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("limit", &row.limit)], row.forgotten),
    },
];

pub(super) const SERVICE_FAMILIES: &[Family<ServiceRow>] = &[
    Family {
        name: "outrigger_rate_limit_service_requests",
        help: "Questions to the rate limit service, by what came of them",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.results.iter().try_for_each(|(result, count)| {
                series.counter(&[("service", &row.service), ("result", result)], *count)
            })
        },
    },
    Family {
        name: "outrigger_rate_limit_service_unanswered",
        help: "Requests and connections for which the service gave no answer, by what failure_mode_deny made of them",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.unanswered.iter().try_for_each(|(action, count)| {
                series.counter(&[("service", &row.service), ("action", action)], *count)
            })
        },
    },
    Family {
        name: "outrigger_rate_limit_service_cache_hits",
        help: "Questions not asked because the answer was known to be: over the limit",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("service", &row.service)], row.cache_hits),
    },
    Family {
        name: "outrigger_rate_limit_service_pending",
        help: "Questions under way",
        kind: MetricType::Gauge,
        encode: |series, row| series.gauge(&[("service", &row.service)], row.pending),
    },
];
