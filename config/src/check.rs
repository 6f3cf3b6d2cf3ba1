//! What is wrong with clusters and routes that types alone cannot refuse: ranges, contradictions,
//! names that lead nowhere.

mod rate_limit;
mod retry;
pub(crate) mod route;

use std::collections::{HashMap, HashSet};

use crate::{
    AdaptiveConcurrency, Cluster, Defaults, Endpoint, EndpointBreaker, HashOn, HealthCheck,
    LoadBalancer, ORIGINAL_DESTINATION, OutlierDetection, Problem, RateLimitService, Route,
    Settings, Span, problem::Severity,
};

/// Problems whose place is still a key path.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
}

impl Findings {
    /// `message` as in [`Problem::error`].
    pub(crate) fn error(&mut self, path: String, message: String) {
        self.problems.push(Problem {
            path,
            ..Problem::error(message)
        });
    }

    /// Leaves out what was found from the problem `from` on at paths that are not to be `wanted`.
    pub(crate) fn keep(&mut self, from: usize, wanted: impl Fn(&str) -> bool) {
        let added = self.problems.split_off(from);
        (self.problems).extend(added.into_iter().filter(|problem| wanted(&problem.path)));
    }

    /// An error within `value`, after `within` characters of it.
    pub(crate) fn error_within(
        &mut self,
        path: String,
        value: &str,
        within: usize,
        message: String,
    ) {
        self.problems.push(Problem {
            path,
            within: Some(Box::new((value.to_owned(), within))),
            ..Problem::error(message)
        });
    }

    pub(crate) fn warning(&mut self, path: String, message: String) {
        self.problems.push(Problem {
            path,
            severity: Severity::Warning,
            ..Problem::error(message)
        });
    }

    pub(crate) fn error_if(&mut self, is_wrong: bool, path: &str, message: &str) {
        if is_wrong {
            self.error(path.to_owned(), message.to_owned());
        }
    }
}

/// Everything about clusters, routes and what they say of each other. A cluster or route that could
/// not be read is `None`; `names` has the names of all clusters.
pub(crate) fn cross(
    clusters: &[Option<Cluster>],
    routes: &[Option<Route>],
    settings: &Settings,
    names: &[Option<String>],
    to: &mut Findings,
) {
    let mut first = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        let Some(name) = name else { continue };
        if let Some(before) = first.insert(name.as_str(), index) {
            first.insert(name, before);
            to.error(
                format!("clusters[{index}].name"),
                format!(
                    "`{name}` is the name of clusters[{before}] too; give one of them another name"
                ),
            );
        }
    }
    for (index, cluster) in clusters.iter().enumerate() {
        if let Some(cluster) = cluster {
            one_cluster(cluster, &format!("clusters[{index}]"), settings, to);
        }
    }
    let by_name: HashMap<_, _> = clusters
        .iter()
        .flatten()
        .map(|c| (c.name.as_str(), c))
        .collect();
    route::all(routes, &by_name, &first, to);
    unused(clusters, routes, &settings.rate_limit_services, to);
    defaults(&settings.defaults, to);
    let services = &settings.rate_limit_services;
    let is_cluster = |name: &str| first.contains_key(name);
    rate_limit::services(services, is_cluster, first.keys().copied(), to);
    rate_limit::limits(clusters, routes, &settings.defaults, services, to);
}

fn unused(
    clusters: &[Option<Cluster>],
    routes: &[Option<Route>],
    services: &[RateLimitService],
    to: &mut Findings,
) {
    // A route that could not be read may lead to any of them.
    if routes.iter().any(Option::is_none) {
        return;
    }
    let used: HashSet<_> = routes
        .iter()
        .flatten()
        .flat_map(Route::clusters)
        .map(|(_, name)| name)
        .chain(services.iter().map(|s| s.cluster.as_str()))
        .collect();
    for (index, cluster) in clusters.iter().enumerate() {
        if let Some(cluster) = cluster
            && !used.contains(cluster.name.as_str())
        {
            to.warning(
                format!("clusters[{index}].name"),
                format!(
                    "no route leads to `{}`; add one, or remove the cluster",
                    cluster.name
                ),
            );
        }
    }
}

pub(crate) fn one_cluster(cluster: &Cluster, path: &str, settings: &Settings, to: &mut Findings) {
    name(&cluster.name, &format!("{path}.name"), to);
    discovery(cluster, path, to);
    endpoints(&cluster.endpoints, &format!("{path}.endpoints"), to);
    load_balancer(&cluster.load_balancer, &format!("{path}.load_balancer"), to);
    if let Some(slow) = &cluster.slow_start {
        let path = format!("{path}.slow_start");
        to.error_if(
            slow.aggression <= 0.0,
            &format!("{path}.aggression"),
            "it must be above 0; 1 rises evenly",
        );
        above_zero(slow.window, &format!("{path}.window"), to);
        if !matches!(
            cluster.load_balancer,
            LoadBalancer::RoundRobin | LoadBalancer::LeastRequest(_)
        ) {
            to.warning(path, "it has no effect with this load_balancer; use `round_robin` or `least_request`, or remove it".into());
        }
    }
    to.error_if(
        cluster.overprovisioning_factor < 100,
        &format!("{path}.overprovisioning_factor"),
        "below 100 a wholly healthy priority would not suffice; write 100 or more, the default is 140",
    );
    if cluster.zone_aware.is_some() && settings.locality.zone.is_empty() {
        to.warning(
            format!("{path}.zone_aware"),
            "it has no effect, for the proxy's own zone is not known; write `locality: { zone: … }` at the top".into(),
        );
    }
    if let Some(check) = &cluster.health_check {
        health_check(check, &format!("{path}.health_check"), to);
    }
    if let Some(outlier) = &cluster.outlier_detection {
        outlier_detection(outlier, &format!("{path}.outlier_detection"), to);
    }
    if let Some(breaker) = &cluster.endpoint_breaker {
        endpoint_breaker(breaker, &format!("{path}.endpoint_breaker"), to);
    }
    if let Some(adaptive) = &cluster.adaptive_concurrency {
        adaptive_concurrency(adaptive, &format!("{path}.adaptive_concurrency"), to);
    }
    above_zero(
        cluster.connect_timeout,
        &format!("{path}.connect_timeout"),
        to,
    );
}

fn name(name: &str, path: &str, to: &mut Findings) {
    let message = if name.is_empty() {
        "it is empty; give it a name"
    } else if name == ORIGINAL_DESTINATION {
        "this name stands for the address that was dialled; choose another"
    } else if name.len() > 256 {
        "it has more than 256 bytes; choose a shorter one, for metrics and logs carry it"
    } else if name.chars().any(char::is_control) {
        "it has control characters; choose a name that logs can show"
    } else {
        return;
    };
    to.error(path.to_owned(), message.into());
}

fn discovery(cluster: &Cluster, path: &str, to: &mut Findings) {
    let written: Vec<_> = [
        ("endpoints", !cluster.endpoints.is_empty()),
        ("dns", cluster.dns.is_some()),
        ("file", cluster.file.is_some()),
        (
            "original_destination",
            cluster.original_destination.is_some(),
        ),
    ]
    .into_iter()
    .filter_map(|(key, is_written)| is_written.then_some(key))
    .collect();
    match written[..] {
        [] => to.error(
            path.to_owned(),
            format!("`{}` has no endpoints; add one of `endpoints`, `dns`, `file` and `original_destination`", cluster.name),
        ),
        [_] => {}
        [first, second, ..] => to.error(
            format!("{path}.{second}"),
            format!("`{first}` says already where the endpoints come from; keep one of them"),
        ),
    }
    if let Some(dns) = &cluster.dns {
        let path = format!("{path}.dns");
        to.error_if(
            dns.name.is_empty() || dns.name.contains([' ', '/', ':']),
            &format!("{path}.name"),
            "this is no name to look up; write one such as `api.internal`, and the port as `port`",
        );
        to.error_if(
            dns.port.is_none() && !dns.srv,
            &path,
            "the port is not known; add `port: …`, or `srv: true` if SRV records carry it",
        );
        if dns.port.is_some() && dns.srv {
            to.warning(
                format!("{path}.port"),
                "it is not used, for SRV records carry the port; remove it".into(),
            );
        }
        above_zero(dns.min_refresh, &format!("{path}.min_refresh"), to);
    }
    if let Some(file) = &cluster.file {
        to.error_if(
            !file.path.is_absolute(),
            &format!("{path}.file.path"),
            "a relative path depends on where the proxy was started; write one that begins with `/`",
        );
    }
}

/// `path` of the list.
pub(crate) fn endpoints(endpoints: &[Endpoint], path: &str, to: &mut Findings) {
    let mut seen = HashMap::new();
    let mut priorities = HashSet::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let address = endpoint.address;
        let path = || format!("{path}[{index}]");
        if let Some(before) = seen.insert(address, index) {
            to.error(
                path() + ".address",
                format!("{address} is the address of item [{before}] too; remove one, or raise the other's `weight`"),
            );
        }
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            to.error(
                path() + ".address",
                format!("{address} cannot be dialled; write an endpoint's own address and port"),
            );
        }
        if endpoint.priority > 127 {
            to.error(
                path() + ".priority",
                "it is above 127; write 0 to 127".into(),
            );
        }
        if let Some(hostname) = &endpoint.hostname {
            route::plain_host(hostname, &(path() + ".hostname"), to);
        }
        priorities.insert(endpoint.priority);
    }
    let highest = priorities.iter().copied().max().unwrap_or(0);
    if let Some(gap) = (0..highest).find(|p| !priorities.contains(p)) {
        let first = endpoints.iter().position(|e| e.priority > gap).unwrap_or(0);
        to.error(
            format!("{path}[{first}].priority"),
            format!("no endpoint has priority {gap}; number priorities from 0 without gaps"),
        );
    }
}

fn load_balancer(balancer: &LoadBalancer, path: &str, to: &mut Findings) {
    match balancer {
        LoadBalancer::RoundRobin | LoadBalancer::Random => {}
        LoadBalancer::LeastRequest(least) => to.error_if(
            least.choices.get() < 2,
            &format!("{path}.least_request.choices"),
            "one choice is no choice; write 2 or more, or use `random`",
        ),
        LoadBalancer::PeakEwma(ewma) => {
            above_zero(ewma.decay, &format!("{path}.peak_ewma.decay"), to)
        }
        LoadBalancer::RingHash(ring) => {
            let path = format!("{path}.ring_hash");
            to.error_if(
                ring.maximum_ring_size.get() > 8 * 1024 * 1024,
                &format!("{path}.maximum_ring_size"),
                "more than 8388608 points take too much memory; write at most that",
            );
            to.error_if(
                ring.minimum_ring_size > ring.maximum_ring_size,
                &format!("{path}.minimum_ring_size"),
                "it is above maximum_ring_size; lower it, or raise the other",
            );
            hash_on(&ring.hash_on, &path, to);
        }
        LoadBalancer::Maglev(maglev) => {
            let path = format!("{path}.maglev");
            let size = maglev.table_size.get();
            to.error_if(
                size > 5_000_011 || !is_prime(size),
                &format!("{path}.table_size"),
                "it must be a prime number up to 5000011; the default is 65537, the next larger common one 655373",
            );
            hash_on(&maglev.hash_on, &path, to);
        }
    }
}

fn is_prime(n: u32) -> bool {
    n >= 2
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

/// Of a header or cookie (RFC 9110, section 5.6.2).
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn hash_on(hash: &HashOn, path: &str, to: &mut Findings) {
    match hash {
        HashOn::Source => {}
        HashOn::Header(name) => to.error_if(
            !is_token(name),
            &format!("{path}.hash_on.header"),
            "this is no header name; write one such as `x-user-id`",
        ),
        HashOn::Cookie(cookie) => {
            to.error_if(
                !is_token(&cookie.name),
                &format!("{path}.hash_on.cookie.name"),
                "this is no cookie name; use letters, digits, `-` and `_`",
            );
            to.error_if(
                !cookie.path.starts_with('/')
                    || cookie.path.contains([';', ' '])
                    || cookie.path.chars().any(char::is_control),
                &format!("{path}.hash_on.cookie.path"),
                "this is no cookie path; write one that begins with `/`",
            );
        }
    }
}

fn health_check(check: &HealthCheck, path: &str, to: &mut Findings) {
    let ways = [
        check.http.is_some(),
        check.tcp.is_some(),
        check.grpc.is_some(),
    ];
    to.error_if(
        ways.iter().filter(|is_there| **is_there).count() != 1,
        path,
        "it does not say how to check; write exactly one of `http: {}`, `tcp: {}` and `grpc: {}`",
    );
    above_zero(check.interval, &format!("{path}.interval"), to);
    above_zero(check.timeout, &format!("{path}.timeout"), to);
    if let Some(http) = &check.http {
        to.error_if(
            !http.path.starts_with('/')
                || http.path.contains([' ', '#'])
                || http.path.chars().any(char::is_control),
            &format!("{path}.http.path"),
            "this is no path; write one that begins with `/`, such as `/healthz`",
        );
        to.error_if(
            http.expected_statuses.is_empty()
                || http
                    .expected_statuses
                    .iter()
                    .any(|s| !(100..600).contains(s)),
            &format!("{path}.http.expected_statuses"),
            "these are no statuses; write numbers from 100 to 599, such as `[200, 204]`",
        );
    }
}

fn outlier_detection(outlier: &OutlierDetection, path: &str, to: &mut Findings) {
    above_zero(outlier.interval, &format!("{path}.interval"), to);
    above_zero(
        outlier.base_ejection_time,
        &format!("{path}.base_ejection_time"),
        to,
    );
    to.error_if(
        outlier.max_ejection_time < outlier.base_ejection_time,
        &format!("{path}.max_ejection_time"),
        "it is shorter than base_ejection_time; raise it, or lower the other",
    );
    if let Some(rate) = &outlier.success_rate {
        to.error_if(
            rate.stdev_factor <= 0.0,
            &format!("{path}.success_rate.stdev_factor"),
            "it would eject every endpoint below the mean; write a number above 0, the default is 1.9",
        );
    }
}

fn endpoint_breaker(breaker: &EndpointBreaker, path: &str, to: &mut Findings) {
    to.error_if(
        breaker.consecutive_failures.is_none() && breaker.failure_percent.is_none(),
        path,
        "nothing can trip it; set `consecutive_failures` or `failure_percent`",
    );
    to.error_if(
        breaker.failure_percent.is_some_and(|p| p.0 == 0),
        &format!("{path}.failure_percent"),
        "0 would trip without any failure; write 1 to 100, or `null` for never",
    );
    above_zero(breaker.window, &format!("{path}.window"), to);
    above_zero(breaker.trip_duration, &format!("{path}.trip_duration"), to);
    to.error_if(
        breaker.max_trip_duration < breaker.trip_duration,
        &format!("{path}.max_trip_duration"),
        "it is shorter than trip_duration; raise it, or lower the other",
    );
}

fn adaptive_concurrency(adaptive: &AdaptiveConcurrency, path: &str, to: &mut Findings) {
    above_zero(
        adaptive.concurrency_update_interval,
        &format!("{path}.concurrency_update_interval"),
        to,
    );
    above_zero(
        adaptive.min_rtt.interval,
        &format!("{path}.min_rtt.interval"),
        to,
    );
    to.error_if(
        adaptive.min_rtt.min_concurrency > adaptive.max_concurrency_limit,
        &format!("{path}.min_rtt.min_concurrency"),
        "it is above max_concurrency_limit; lower it, or raise the other",
    );
}

fn defaults(defaults: &Defaults, to: &mut Findings) {
    retry::of_defaults(defaults, to);
    if let Some(outlier) = &defaults.outlier_detection {
        outlier_detection(outlier, "defaults.outlier_detection", to);
    }
    if let Some(breaker) = &defaults.endpoint_breaker {
        endpoint_breaker(breaker, "defaults.endpoint_breaker", to);
    }
    if let Some(adaptive) = &defaults.adaptive_concurrency {
        adaptive_concurrency(adaptive, "defaults.adaptive_concurrency", to);
    }
    if let Some(timeout) = defaults.connect_timeout {
        above_zero(timeout, "defaults.connect_timeout", to);
    }
}

fn above_zero(span: Span, path: &str, to: &mut Findings) {
    to.error_if(
        span.0.is_zero(),
        path,
        "0 is too short for anything; write a duration above it",
    );
}
