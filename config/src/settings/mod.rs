//! What a user may write. Every key has a default, so that an empty file, or none, is valid; each
//! default is stated here with its unit and its reason.

mod access_log;
mod admin;
mod capture;
mod cluster;
mod connections;
mod metrics;
mod rate_limit;
mod route;
mod supervisor;
mod tracing;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use access_log::{
    AccessLog, AccessLogFilter, AccessLogFormat, AccessLogTarget, DurationRange, FieldFormat,
    Fields, FormatError, HeaderNames, HeaderOf, OPERATORS, Operator, Piece, ResponseFlag,
    StatusRange, TimeFormat, parse_format,
};
pub use admin::{Admin, AdminAddress, SocketMode};
pub use capture::{Capture, Exclude, Include};
pub use cluster::{
    AdaptiveConcurrency, CircuitBreaker, Cluster, Cookie, Defaults, Dns, DnsFamily, Endpoint,
    EndpointBreaker, EndpointFile, FailurePercentage, GrpcCheck, HashOn, HealthCheck, HttpCheck,
    Labels, LeastRequest, LoadBalancer, Locality, Maglev, MinRtt, OriginalDestination,
    OutlierDetection, PeakEwma, RetryBudget, RingHash, SlowStart, SubsetFallback, SuccessRate,
    TcpCheck, ZoneAware,
};
pub use connections::{Limits, Pool, Timeouts};
pub use metrics::MetricsSettings;
pub use rate_limit::{
    GenericKey, MaskedRemoteAddress, RateLimit, RateLimitAction, RateLimitDescriptor,
    RateLimitEntry, RateLimitHeaders, RateLimitOverride, RateLimitService, RateLimitUnit,
    RequestHeaders, TokenBucket,
};
pub use route::{
    Abort, BackOff, Condition, Delay, Fault, GrpcTimeout, HeaderEdits, Hedge, Match, Methods,
    Mirror, ORIGINAL_DESTINATION, PathMatch, RESERVED_HEADERS, RateLimited, Redirect, RedirectCode,
    RegexRewrite, ResetFormat, ResetHeader, Respond, RetriableHeader, Retry, RetryOn, Rewrite,
    Route, Scheme, Share,
};
pub use supervisor::Supervisor;
pub use tracing::{OtlpProtocol, RouteTracing, TraceFormat, Tracing};

use crate::{OneOrMany, check::Findings};

/// A key's path and what is wrong with its value.
type Problem = (&'static str, String);

/// The whole configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where captured connections arrive. Loopback only: a redirect in OUTPUT maps exactly there,
    /// and anything wider would be an open proxy to other hosts. Default: `127.0.0.1:15001` and
    /// `[::1]:15001`, the port Istio users know.
    pub listen: Vec<SocketAddr>,
    /// The admin listener, as an address, `unix:/path`, or keys with values. Default
    /// `127.0.0.1:15000`; `null` turns it off.
    pub admin: Option<Admin>,
    /// Event loops. Default: the CPUs allowed to the process, a cgroup quota counted.
    pub workers: Option<NonZeroUsize>,
    pub capture: Capture,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub pool: Pool,
    /// One log, or a list of them. Default: none.
    pub access_log: OneOrMany<AccessLog>,
    pub metrics: MetricsSettings,
    /// Spans of requests for an OpenTelemetry collector. Default: none, nothing is traced and no
    /// header added.
    pub tracing: Option<Tracing>,
    pub supervisor: Supervisor,
    /// Where this proxy runs, for `zone_aware` clusters. Default: nowhere in particular.
    pub locality: Locality,
    /// Which traffic goes to which cluster. Default: none, everything goes where it was dialled.
    pub routes: Vec<Route>,
    /// Groups of endpoints that routes lead to. Default: none.
    pub clusters: Vec<Cluster>,
    /// Services that `rate_limits` can ask. Default: none.
    pub rate_limit_services: Vec<RateLimitService>,
    pub defaults: Defaults,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec![
                SocketAddr::from((Ipv4Addr::LOCALHOST, 15001)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, 15001)),
            ],
            admin: Some(Admin::default()),
            workers: None,
            capture: Capture::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            pool: Pool::default(),
            access_log: OneOrMany::default(),
            metrics: MetricsSettings::default(),
            tracing: None,
            supervisor: Supervisor::default(),
            locality: Locality::default(),
            routes: Vec::new(),
            clusters: Vec::new(),
            rate_limit_services: Vec::new(),
            defaults: Defaults::default(),
        }
    }
}

impl Settings {
    /// The port that names this instance: its control socket, tables and sockets carry it.
    pub fn port(&self) -> u16 {
        self.listen.first().map_or(0, SocketAddr::port)
    }

    /// Everything wrong with the values that types alone cannot refuse, as (key path, message).
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push((
                "listen",
                "no address; write at least one, such as `127.0.0.1:15001`".into(),
            ));
        }
        for address in &self.listen {
            if !is_plain_loopback(address.ip()) {
                problems.push((
                    "listen",
                    format!("{address} is reachable from elsewhere and would be an open proxy; use 127.0.0.1 or [::1]"),
                ));
            }
            if address.port() != self.port() {
                problems.push((
                    "listen",
                    format!("{address} has another port than {}; one instance has one port, in both families", self.listen[0]),
                ));
            }
        }
        for family in [SocketAddr::is_ipv4, SocketAddr::is_ipv6] {
            if self.listen.iter().filter(|a| family(a)).count() > 1 {
                problems.push((
                    "listen",
                    "two addresses of one family; a redirect leads to exactly one".into(),
                ));
            }
        }
        if let Some(admin) = self.admin.as_ref().and_then(Admin::tcp)
            && admin.port() != 0
            && self.listen.contains(&admin)
        {
            problems.push((
                "admin",
                format!("{admin} is in `listen` too; give one of them another port"),
            ));
        }
        problems.extend(self.capture.problems());
        problems.extend(self.limits.problems());
        problems.extend(self.supervisor.problems());
        problems.extend(self.tracing.iter().flat_map(Tracing::problems));
        problems
    }

    /// The same where the key's path depends on what was written.
    pub(crate) fn check(&self, to: &mut Findings) {
        if let Some(admin) = &self.admin {
            admin.check(to);
        }
        for (index, log) in self.access_log.iter().enumerate() {
            log.check(&self.access_log.path("access_log", index), to);
        }
    }
}

/// The two loopback addresses that REDIRECT maps to.
fn is_plain_loopback(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}
