//! Metrics of clusters and of their endpoints.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use outrigger_config::CircuitBreaker;
use prometheus_client::metrics::MetricType;

use super::pages::Family;
use crate::{
    cluster::{BreakerState, Cluster, DiscoveryState, Endpoint, Usage},
    observe::metrics::Latency,
};

/// Endpoints told one by one; those beyond are told together as their cluster's `other`.
const MAX_ENDPOINTS: usize = 10_000;

/// The name under which the endpoints beyond are told.
const OTHER: &str = "other";

/// One cluster's figures.
#[derive(Debug)]
pub(super) struct Row {
    cluster: Arc<str>,
    used: Usage,
    limits: CircuitBreaker,
    refused: [(&'static str, u64); 5],
    retries: u64,
    /// What became of retries: those not made included.
    retried: [(&'static str, u64); 3],
    timeouts: [(&'static str, u64); 2],
    copies: [(&'static str, u64); 4],
    host_sets: u64,
    endpoints: usize,
    usable: usize,
    concurrency_limit: Option<u32>,
    discovery: Option<DiscoveryState>,
    now: Instant,
}

/// One endpoint's figures, or the sum of several.
#[derive(Debug, Default)]
pub(super) struct EndpointRow {
    cluster: Arc<str>,
    endpoint: Box<str>,
    requests: u64,
    outcomes: [(&'static str, u64); 3],
    active: u64,
    ejections: u64,
    trips: u64,
    durations: Latency,
    /// How many of them.
    healthy: u64,
    ejected: u64,
    tripped: u64,
    probing: u64,
}

pub(super) fn rows(clusters: &[Arc<Cluster>]) -> Arc<[Row]> {
    let now = Instant::now();
    let row = |cluster: &Arc<Cluster>| {
        let settings = cluster.settings();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &cluster.counts;
        let destinations = cluster.destinations();
        let all = std::iter::once(cluster).chain(&destinations);
        let endpoints: Vec<_> = all.flat_map(|c| c.endpoints()).collect();
        Row {
            cluster: cluster.name.clone(),
            used: cluster.usage(),
            limits: settings.circuit_breaker.clone(),
            refused: [
                ("no_endpoint", count(&counts.no_endpoint)),
                ("overflow", count(&counts.overflows)),
                ("shed", count(&counts.shed)),
                ("tripped", count(&counts.tripped)),
                ("unhealthy", count(&counts.unhealthy)),
            ],
            retries: count(&counts.retries),
            retried: [
                ("success", count(&counts.retry_successes)),
                ("overflow", count(&counts.retry_overflows)),
                ("exhausted", count(&counts.retries_exhausted)),
            ],
            timeouts: [
                ("request", count(&counts.request_timeouts)),
                ("try", count(&counts.try_timeouts)),
            ],
            copies: [
                ("answered", count(&counts.copies_answered)),
                ("failed", count(&counts.copies_failed)),
                ("timed_out", count(&counts.copies_timed_out)),
                ("dropped", count(&counts.copies_dropped)),
            ],
            host_sets: count(&counts.host_sets),
            endpoints: endpoints.len(),
            usable: endpoints.iter().filter(|e| e.is_usable()).count(),
            concurrency_limit: cluster.adaptive_limit(),
            discovery: (settings.dns.is_some() || settings.file.is_some())
                .then(|| cluster.discovery.state()),
            now,
        }
    };
    clusters.iter().map(row).collect()
}

/// Of clusters whose endpoints are the original destinations none: the metrics of destinations tell
/// of these.
pub(super) fn endpoints(clusters: &[Arc<Cluster>]) -> Arc<[EndpointRow]> {
    let mut rows = Vec::new();
    for cluster in clusters {
        let mut other = EndpointRow::of_none(&cluster.name, OTHER.into());
        let endpoints = cluster.endpoints();
        let room = MAX_ENDPOINTS.saturating_sub(rows.len());
        let (told, beyond) = endpoints.split_at(room.min(endpoints.len()));
        for endpoint in told {
            let mut row = EndpointRow::of_none(&cluster.name, endpoint.address.to_string().into());
            row.add(endpoint);
            rows.push(row);
        }
        beyond.iter().for_each(|endpoint| other.add(endpoint));
        if !beyond.is_empty() {
            rows.push(other);
        }
    }
    rows.into()
}

impl EndpointRow {
    fn of_none(cluster: &Arc<str>, endpoint: Box<str>) -> Self {
        Self {
            cluster: cluster.clone(),
            endpoint,
            outcomes: [("success", 0), ("error", 0), ("connect_failure", 0)],
            ..Self::default()
        }
    }

    fn add(&mut self, endpoint: &Endpoint) {
        let counts = &endpoint.counts;
        let outcomes = [&counts.successes, &counts.errors, &counts.connect_failures];
        for ((_, sum), count) in self.outcomes.iter_mut().zip(outcomes) {
            *sum += count.load(Ordering::Relaxed);
        }
        self.requests += counts.requests.load(Ordering::Relaxed);
        self.ejections += counts.ejections.load(Ordering::Relaxed);
        self.trips += counts.trips.load(Ordering::Relaxed);
        self.durations.merge(&endpoint.durations.total());
        self.active += u64::from(endpoint.active());
        self.healthy += u64::from(!endpoint.is_unhealthy());
        self.ejected += u64::from(endpoint.is_ejected());
        match endpoint.breaker_state() {
            BreakerState::Admitting => {}
            BreakerState::Tripped => self.tripped += 1,
            BreakerState::Probing => self.probing += 1,
        }
    }

    fn labels(&self) -> [(&str, &str); 2] {
        [("cluster", &self.cluster), ("endpoint", &self.endpoint)]
    }
}

pub(super) const FAMILIES: &[Family<Row>] = &[
    Family {
        name: "outrigger_cluster_endpoints",
        help: "Endpoints that the cluster has now",
        kind: MetricType::Gauge,
        encode: |series, row| {
            let labels = [("cluster", &*row.cluster)];
            series.gauge(&labels, row.endpoints as u64)
        },
    },
    Family {
        name: "outrigger_cluster_endpoints_usable",
        help: "Endpoints against which neither health checks nor outlier detection speak",
        kind: MetricType::Gauge,
        encode: |series, row| {
            let labels = [("cluster", &*row.cluster)];
            series.gauge(&labels, row.usable as u64)
        },
    },
    Family {
        name: "outrigger_cluster_threshold_used",
        help: "What is under way, by the threshold that bounds it",
        kind: MetricType::Gauge,
        encode: |series, row| {
            let used = [
                ("connections", row.used.connections),
                ("pending_requests", row.used.pending),
                ("requests", row.used.requests),
                ("retries", row.used.retries),
            ];
            used.iter().try_for_each(|(threshold, used)| {
                let labels = [("cluster", &*row.cluster), ("threshold", *threshold)];
                series.gauge(&labels, u64::from(*used))
            })
        },
    },
    Family {
        name: "outrigger_cluster_threshold_limit",
        help: "How much may be under way; of original destinations, at each",
        kind: MetricType::Gauge,
        encode: |series, row| {
            let limits = [
                ("connections", row.limits.max_connections),
                ("pending_requests", row.limits.max_pending_requests),
                ("requests", row.limits.max_requests),
                ("retries", row.limits.max_retries),
            ];
            limits.iter().try_for_each(|(threshold, limit)| {
                let labels = [("cluster", &*row.cluster), ("threshold", *threshold)];
                series.gauge(&labels, u64::from(*limit))
            })
        },
    },
    Family {
        name: "outrigger_cluster_refused",
        help: "Picks of an endpoint that were refused, by why",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.refused.iter().try_for_each(|(reason, count)| {
                let labels = [("cluster", &*row.cluster), ("reason", *reason)];
                series.counter(&labels, *count)
            })
        },
    },
    Family {
        name: "outrigger_cluster_host_sets",
        help: "Times that the endpoints were arranged anew",
        kind: MetricType::Counter,
        encode: |series, row| {
            let labels = [("cluster", &*row.cluster)];
            series.counter(&labels, row.host_sets)
        },
    },
    Family {
        name: "outrigger_cluster_concurrency_limit",
        help: "Requests that adaptive concurrency lets be under way",
        kind: MetricType::Gauge,
        encode: |series, row| {
            row.concurrency_limit.map_or(Ok(()), |limit| {
                series.gauge(&[("cluster", &*row.cluster)], u64::from(limit))
            })
        },
    },
    Family {
        name: "outrigger_cluster_discovery_age_seconds",
        help: "Time since DNS or the endpoint file last told the endpoints",
        kind: MetricType::Gauge,
        encode: |series, row| {
            let answered_at = row.discovery.as_ref().and_then(|d| d.answered_at);
            answered_at.map_or(Ok(()), |at| {
                let age = row.now.saturating_duration_since(at).as_secs();
                series.gauge(&[("cluster", &*row.cluster)], age)
            })
        },
    },
    Family {
        name: "outrigger_cluster_retries",
        help: "Requests sent again, hedges included",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&[("cluster", &*row.cluster)], row.retries),
    },
    Family {
        name: "outrigger_cluster_retry_results",
        help: "Retried requests that succeeded, and retries not made: beyond max_retries or the budget, or beyond num_retries",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.retried.iter().try_for_each(|(result, count)| {
                series.counter(&[("cluster", &*row.cluster), ("result", *result)], *count)
            })
        },
    },
    Family {
        name: "outrigger_cluster_timeouts",
        help: "Requests, and single tries, that took longer than their policy allows",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.timeouts.iter().try_for_each(|(of, count)| {
                series.counter(&[("cluster", &*row.cluster), ("of", *of)], *count)
            })
        },
    },
    Family {
        name: "outrigger_cluster_mirrored_requests",
        help: "Copies of requests that routes mirror here; those dropped were not sent",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.copies.iter().try_for_each(|(result, count)| {
                series.counter(&[("cluster", &*row.cluster), ("result", *result)], *count)
            })
        },
    },
    Family {
        name: "outrigger_cluster_discovery_last_successful",
        help: "0 while DNS or the endpoint file fails and the last good endpoints stay",
        kind: MetricType::Gauge,
        encode: |series, row| {
            row.discovery.as_ref().map_or(Ok(()), |discovery| {
                let is_good = discovery.failure.is_none() && discovery.successes > 0;
                series.gauge(&[("cluster", &*row.cluster)], is_good.into())
            })
        },
    },
    Family {
        name: "outrigger_cluster_discoveries",
        help: "Lookups, or readings of the endpoint file",
        kind: MetricType::Counter,
        encode: |series, row| {
            let Some(discovery) = &row.discovery else {
                return Ok(());
            };
            let results = [
                ("success", discovery.successes),
                ("failure", discovery.failures),
            ];
            results.iter().try_for_each(|(result, count)| {
                let labels = [("cluster", &*row.cluster), ("result", *result)];
                series.counter(&labels, *count)
            })
        },
    },
];

pub(super) const ENDPOINT_FAMILIES: &[Family<EndpointRow>] = &[
    Family {
        name: "outrigger_endpoint_request_duration_seconds",
        help: "Time from choosing the endpoint to the head of its answer",
        kind: MetricType::Histogram,
        encode: |series, row| series.histogram(&row.labels(), &row.durations, None),
    },
    Family {
        name: "outrigger_endpoint_requests",
        help: "Requests sent to the endpoint",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&row.labels(), row.requests),
    },
    Family {
        name: "outrigger_endpoint_ejections",
        help: "Times that outlier detection ejected the endpoint",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&row.labels(), row.ejections),
    },
    Family {
        name: "outrigger_endpoint_breaker_trips",
        help: "Times that the endpoint's breaker tripped",
        kind: MetricType::Counter,
        encode: |series, row| series.counter(&row.labels(), row.trips),
    },
    Family {
        name: "outrigger_endpoint_requests_active",
        help: "Requests under way at the endpoint",
        kind: MetricType::Gauge,
        encode: |series, row| series.gauge(&row.labels(), row.active),
    },
    Family {
        name: "outrigger_endpoint_healthy",
        help: "1 unless health checks speak against the endpoint",
        kind: MetricType::Gauge,
        encode: |series, row| series.gauge(&row.labels(), row.healthy),
    },
    Family {
        name: "outrigger_endpoint_ejected",
        help: "1 while outlier detection keeps the endpoint out",
        kind: MetricType::Gauge,
        encode: |series, row| series.gauge(&row.labels(), row.ejected),
    },
    Family {
        name: "outrigger_endpoint_outcomes",
        help: "How requests at the endpoint ended",
        kind: MetricType::Counter,
        encode: |series, row| {
            row.outcomes.iter().try_for_each(|(outcome, count)| {
                let [cluster, endpoint] = row.labels();
                series.counter(&[cluster, endpoint, ("outcome", *outcome)], *count)
            })
        },
    },
    Family {
        name: "outrigger_endpoint_breaker",
        help: "1 in the state that the breaker is in, unless it admits",
        kind: MetricType::Gauge,
        encode: |series, row| {
            let states = [("tripped", row.tripped), ("probing", row.probing)];
            states.iter().try_for_each(|(state, count)| {
                let [cluster, endpoint] = row.labels();
                series.gauge(&[cluster, endpoint, ("state", *state)], *count)
            })
        },
    },
];
