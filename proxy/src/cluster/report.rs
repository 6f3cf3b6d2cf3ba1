//! What a cluster is like at this moment, as the admin listener tells it.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Instant};

use outrigger_config::{CircuitBreaker, Labels, Locality};
use serde::{Serialize, Serializer};

use super::{BreakerState, Cluster, Endpoint, Usage, host_set::Member};

/// A cluster without its endpoints.
#[derive(Debug, Serialize)]
pub(crate) struct ClusterReport {
    name: Box<str>,
    discovery: &'static str,
    load_balancer: &'static str,
    /// None for a source that cannot fail.
    discovery_status: Option<DiscoveryReport>,
    thresholds: ThresholdsReport,
    concurrency_limit: Option<u32>,
    refused: RefusedReport,
    host_sets: u64,
}

#[derive(Debug, Serialize)]
struct DiscoveryReport {
    /// Seconds since the source last answered; none if it never has.
    age_seconds: Option<u64>,
    failure: Option<Box<str>>,
    successes: u64,
    failures: u64,
}

#[derive(Debug, Serialize)]
struct ThresholdsReport {
    limits: CircuitBreaker,
    used: Usage,
}

#[derive(Debug, Serialize)]
struct RefusedReport {
    overflow: u64,
    shed: u64,
    no_endpoint: u64,
    unhealthy: u64,
    tripped: u64,
}

/// One endpoint.
#[derive(Debug, Serialize)]
pub(crate) struct EndpointReport {
    address: SocketAddr,
    weight: u32,
    priority: u8,
    locality: Locality,
    labels: Labels,
    /// Whether health checks find it well, or there are none.
    is_healthy: bool,
    is_ejected: bool,
    #[serde(serialize_with = "breaker")]
    breaker: BreakerState,
    active_requests: u32,
    /// Milliseconds; none without answers, or without `peak_ewma`.
    latency_ewma_ms: Option<f64>,
    requests: u64,
    successes: u64,
    errors: u64,
    connect_failures: u64,
    ejections: u64,
    trips: u64,
    /// Of an original destination, which has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    thresholds_used: Option<Usage>,
}

impl ClusterReport {
    pub(crate) fn of(cluster: &Cluster, now: Instant) -> Self {
        let settings = cluster.settings();
        let counts = &cluster.counts;
        Self {
            name: (*cluster.name).into(),
            discovery: match () {
                () if settings.dns.is_some() => "dns",
                () if settings.file.is_some() => "file",
                () if settings.original_destination.is_some() => "original_destination",
                () => "static",
            },
            load_balancer: settings.load_balancer.label(),
            discovery_status: (settings.dns.is_some() || settings.file.is_some()).then(|| {
                let state = cluster.discovery.state();
                DiscoveryReport {
                    age_seconds: state
                        .answered_at
                        .map(|at| now.saturating_duration_since(at).as_secs()),
                    failure: state.failure,
                    successes: state.successes,
                    failures: state.failures,
                }
            }),
            thresholds: ThresholdsReport {
                limits: settings.circuit_breaker.clone(),
                used: cluster.usage(),
            },
            concurrency_limit: cluster.adaptive_limit(),
            refused: RefusedReport {
                overflow: counts.overflows.load(Ordering::Relaxed),
                shed: counts.shed.load(Ordering::Relaxed),
                no_endpoint: counts.no_endpoint.load(Ordering::Relaxed),
                unhealthy: counts.unhealthy.load(Ordering::Relaxed),
                tripped: counts.tripped.load(Ordering::Relaxed),
            },
            host_sets: counts.host_sets.load(Ordering::Relaxed),
        }
    }
}

impl EndpointReport {
    /// Of each endpoint, or of each original destination in use.
    pub(crate) fn all(cluster: &Cluster) -> Vec<Self> {
        let destinations = cluster.destinations();
        if destinations.is_empty() {
            return cluster.members().iter().map(Self::of).collect();
        }
        let reports = destinations.iter().flat_map(|destination| {
            let members = destination.members();
            let report = |member| Self {
                thresholds_used: Some(destination.thresholds().usage()),
                ..Self::of(member)
            };
            members.iter().map(report).collect::<Vec<_>>()
        });
        let mut reports: Vec<_> = reports.collect();
        reports.sort_by_key(|r| r.address);
        reports
    }

    fn of(member: &Member) -> Self {
        let endpoint: &Endpoint = &member.endpoint;
        let counts = &endpoint.counts;
        Self {
            address: endpoint.address,
            weight: member.weight,
            priority: member.priority,
            locality: member.locality.clone(),
            labels: member.labels.clone(),
            is_healthy: !endpoint.is_unhealthy(),
            is_ejected: endpoint.is_ejected(),
            breaker: endpoint.breaker_state(),
            active_requests: endpoint.active(),
            latency_ewma_ms: endpoint
                .latency
                .micros()
                .map(|us| (us / 10.0).round() / 100.0),
            requests: counts.requests.load(Ordering::Relaxed),
            successes: counts.successes.load(Ordering::Relaxed),
            errors: counts.errors.load(Ordering::Relaxed),
            connect_failures: counts.connect_failures.load(Ordering::Relaxed),
            ejections: counts.ejections.load(Ordering::Relaxed),
            trips: counts.trips.load(Ordering::Relaxed),
            thresholds_used: None,
        }
    }
}

fn breaker<S: Serializer>(state: &BreakerState, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(state.label())
}
