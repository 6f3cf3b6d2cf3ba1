//! The decision record of a failure: what was decided on the way of a connection or request, who
//! ended it, and what to do. Made only for what failed, when a log writes it.

use std::net::SocketAddr;

use serde::Serialize;

use super::Record;
use crate::{
    cluster::BreakerState,
    dispatch::Target,
    failure::{Failure, Fault},
};

/// One for each failure.
#[derive(Debug, Serialize)]
pub(crate) struct Decision<'a> {
    /// How it came here: redirected on its way to this address.
    captured_for: SocketAddr,
    /// What its first bytes were taken for.
    detected: &'static str,
    /// None: no route held for it.
    route: Option<&'a str>,
    /// None: it was to go where it was dialled.
    cluster: Option<&'a str>,
    /// The endpoint of the last try; none if there was none to try.
    endpoint: Option<SocketAddr>,
    endpoint_state: Option<EndpointState>,
    endpoints: Option<Endpoints>,
    attempts: u32,
    failed_attempts: Vec<Attempt>,
    failed: &'static str,
    fault: &'static str,
    closed_by: &'static str,
    what: &'static str,
    #[serde(rename = "do")]
    advice: &'static str,
}

/// What is known of the endpoint by now.
#[derive(Debug, Serialize)]
struct EndpointState {
    breaker: &'static str,
    is_healthy: bool,
    is_ejected: bool,
    active_requests: u32,
}

/// Of the cluster, by now.
#[derive(Debug, Serialize)]
struct Endpoints {
    known: usize,
    usable: usize,
    tripped: usize,
}

#[derive(Debug, Serialize)]
struct Attempt {
    endpoint: SocketAddr,
    /// None: it was answered, with this status, and the answer not taken.
    failed: Option<&'static str>,
    status: Option<u16>,
}

impl<'a> Decision<'a> {
    /// None if nothing failed.
    pub(crate) fn of(record: &Record<'a>) -> Option<Self> {
        let failure = record.failure?;
        let endpoints = match &record.routed.target {
            Target::Original => None,
            Target::Cluster(onward) => Some(onward.cluster.endpoints()),
        };
        let tried = (record.upstream).or_else(|| record.failed.last().map(|tried| tried.endpoint));
        let endpoint = (endpoints.iter().flatten()).find(|e| Some(e.address) == tried);
        Some(Self {
            captured_for: record.original.0,
            detected: record.protocol.label(),
            route: record.routed.name(),
            cluster: record.routed.target.cluster(),
            endpoint: tried,
            endpoint_state: endpoint.map(|endpoint| EndpointState {
                breaker: endpoint.breaker_state().label(),
                is_healthy: !endpoint.is_unhealthy(),
                is_ejected: endpoint.is_ejected(),
                active_requests: endpoint.active(),
            }),
            endpoints: endpoints.map(|endpoints| Endpoints {
                known: endpoints.len(),
                usable: endpoints.iter().filter(|e| e.is_usable()).count(),
                tripped: (endpoints.iter())
                    .filter(|e| e.breaker_state() == BreakerState::Tripped)
                    .count(),
            }),
            attempts: record.attempts,
            failed_attempts: (record.failed.iter())
                .map(|tried| Attempt {
                    endpoint: tried.endpoint,
                    failed: tried.failure.map(Failure::label),
                    status: tried.status,
                })
                .collect(),
            failed: failure.label(),
            fault: failure.fault().label(),
            closed_by: closed_by(failure),
            what: failure.details(),
            advice: failure.advice(),
        })
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("plain data is JSON")
    }
}

/// Whose end of which connection came first.
fn closed_by(failure: Failure) -> &'static str {
    match failure {
        Failure::ClientClosed => "client",
        Failure::UpstreamClosed | Failure::UpstreamIncomplete | Failure::ConnectRefused => {
            "upstream"
        }
        _ if failure.fault() == Fault::Client => "proxy, for what the client sent or did not send",
        _ => "proxy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{FailedTry, record::tests::record};

    #[test]
    fn what_succeeded_has_none() {
        assert!(Decision::of(&record()).is_none());
    }

    #[test]
    fn a_failure_says_what_was_tried_who_ended_it_and_what_to_do() {
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 80));
        let failed = [FailedTry {
            endpoint,
            failure: Some(Failure::ConnectRefused),
            status: None,
            is_dial: true,
        }];
        let record = Record {
            upstream: None,
            attempts: 1,
            failed: &failed,
            failure: Some(Failure::ConnectRefused),
            status: Some(502),
            ..record()
        };
        let decision = Decision::of(&record).expect("it failed");
        let json: serde_json::Value = serde_json::from_str(&decision.json()).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "captured_for": "203.0.113.7:80",
                "detected": "http1",
                "route": null,
                "cluster": null,
                "endpoint": "192.0.2.1:80",
                "endpoint_state": null,
                "endpoints": null,
                "attempts": 1,
                "failed_attempts": [{ "endpoint": "192.0.2.1:80", "failed": "connect_refused", "status": null }],
                "failed": "connect_refused",
                "fault": "upstream",
                "closed_by": "upstream",
                "what": "destination refused the connection",
                "do": "check that the destination runs and listens on this port",
            })
        );
    }
}
