//! What the data plane would do with a request that nobody has made.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Headers, HttpRequest, Subject};

/// A connection, or a request on it. What is left out is not known: a route that asks for it does not
/// hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The address that is dialled.
    pub destination: SocketAddr,
    /// Who dials, for endpoints that are chosen by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The name in a ClientHello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Of HTTP; none: the connection speaks something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestHead>,
}

/// An HTTP request, as far as routes and balancers look at it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestHead {
    /// Without its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// With its query. Default: `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Default: GET.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

impl Question {
    /// As routes see it.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            sni: self.sni.as_deref(),
            request: self.request.as_ref().map(|request| HttpRequest {
                host: request.host.as_deref(),
                method: request.method.as_deref().unwrap_or("GET"),
                path: Some(request.path.as_deref().unwrap_or("/").as_bytes()),
                headers: request,
            }),
            ..Subject::at(self.destination)
        }
    }
}

impl Headers for RequestHead {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for (_, value) in self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        {
            visit(value.as_bytes());
        }
    }
}

/// What the functions of the data plane make of a [`Question`] at this moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// Of the configuration that decides.
    pub config_generation: u64,
    /// None: no route holds.
    pub route: Option<RouteOutlook>,
    /// Where nothing is said of what the connection carries: routes that would come before, and hold
    /// for some of what it may carry.
    pub undecided: Vec<String>,
    /// Where it may go, by the part of such traffic; none if the route answers it itself.
    pub targets: Vec<TargetOutlook>,
    /// The connections that the proxy carries, and how many it takes.
    pub connections: Use,
}

/// The route that holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteOutlook {
    /// Which of the file's routes it is, from 0.
    pub index: usize,
    pub name: String,
    /// What it asks for, each of which holds; as written in the file.
    pub matches: Value,
    /// What it does, as written in the file.
    pub policy: Value,
    /// What the proxy itself answers, of a route that sends nothing on.
    pub answer: Option<u16>,
}

/// One of the places that it may go to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetOutlook {
    /// How much of such traffic the route sends here.
    pub share_percent: f64,
    /// None: where it was dialled, under no policy.
    pub cluster: Option<ClusterOutlook>,
    /// Why it would be refused at once, as in the access log: `no_endpoint`, `overflow`, `loop` …
    pub refusal: Option<String>,
}

/// The cluster that it goes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterOutlook {
    pub name: String,
    /// Whether the route asks for the cluster, or the policy for destinations without one (`defaults`).
    pub is_default: bool,
    /// The policy by which an endpoint is chosen, as configured.
    pub load_balancer: String,
    /// Whether the request has a key that its endpoint is chosen by.
    pub has_key: bool,
    /// The labels that the route asks of endpoints.
    pub subset: BTreeMap<String, String>,
    pub requests: Use,
    pub connections: Use,
    pub pending_requests: Use,
    pub retries: Use,
    /// Of adaptive concurrency.
    pub concurrency: Option<Use>,
    /// Whether so few endpoints are well that all are used (`panic_threshold`).
    pub is_panicking: bool,
    /// The endpoint, where only one is possible.
    pub chosen: Option<SocketAddr>,
    /// Those that may be chosen first; of many, not all.
    pub endpoints: Vec<EndpointOutlook>,
    pub omitted: usize,
}

/// How much of a limit is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Use {
    pub now: u64,
    pub max: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointOutlook {
    pub address: SocketAddr,
    pub weight: u32,
    pub priority: u8,
    /// Requests under way.
    pub active: u32,
    /// `admitting`, `tripped` or `probing`; none without a breaker.
    pub breaker: Option<String>,
    /// Whether a request may be sent there now.
    pub is_eligible: bool,
    /// Its part of the cluster's requests, by weights; what load and keys make of it is not counted.
    pub share_percent: f64,
    /// What speaks against it. Where nobody else is left, or all are used in panic, it is eligible all the
    /// same.
    pub objections: Vec<Objection>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objection {
    /// It lacks a label that the route asks for.
    OtherSubset,
    /// Health checks failed, or none has succeeded yet.
    Unhealthy,
    /// By outlier detection.
    Ejected,
    /// Its breaker admits nothing until it probes.
    BreakerTripped,
    /// Its breaker has sent as many probes as it may.
    BreakerProbing,
    /// Endpoints of another priority or zone take all of the traffic.
    StandBy,
}

impl Objection {
    pub fn explanation(self) -> &'static str {
        match self {
            Self::OtherSubset => "not in the subset",
            Self::Unhealthy => "unhealthy: its health checks fail, or none has succeeded yet",
            Self::Ejected => "ejected by outlier detection",
            Self::BreakerTripped => "its breaker is tripped",
            Self::BreakerProbing => "its breaker is probing, and has as many probes out as it may",
            Self::StandBy => "stand-by: another priority or zone takes all of the traffic",
        }
    }
}
