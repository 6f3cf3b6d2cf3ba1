//! Limits: names that lead nowhere, contradictions, and rates that nothing can keep.

use std::{collections::HashMap, time::Duration};

use super::{Findings, above_zero, is_token};
use crate::{
    Cluster, Defaults, ORIGINAL_DESTINATION, RateLimit, RateLimitAction, RateLimitService, Route,
    TokenBucket, problem::meant,
};

/// A bucket counts in sixteenths of a nanosecond for each token: at this rate they are exact to
/// 1/16,000.
const MAX_PER_SECOND: u128 = 1_000_000;

/// No bucket takes longer to fill.
const MAX_FILL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A client that waits for longer has given up.
const MAX_DELAY: Duration = Duration::from_secs(60);

const MAX_NAME: usize = 64;

pub(super) fn services<'a>(
    services: &'a [RateLimitService],
    is_cluster: impl Fn(&str) -> bool,
    clusters: impl Iterator<Item = &'a str> + Clone,
    to: &mut Findings,
) {
    let mut first = HashMap::new();
    for (index, service) in services.iter().enumerate() {
        let path = format!("rate_limit_services[{index}]");
        name(&service.name, &path, &mut first, to);
        if service.cluster == ORIGINAL_DESTINATION || !is_cluster(&service.cluster) {
            let fix = match meant(&service.cluster, clusters.clone()) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "add it under `clusters`".into(),
            };
            to.error(
                format!("{path}.cluster"),
                format!("there is no cluster `{}`; {fix}", service.cluster),
            );
        }
        to.error_if(
            service.domain.is_empty(),
            &format!("{path}.domain"),
            "it is empty, and the service could not tell whose limits are meant; write the domain of its configuration",
        );
        above_zero(service.timeout, &format!("{path}.timeout"), to);
    }
}

/// Every limit of the file; their names are unique across it.
pub(super) fn limits(
    clusters: &[Option<Cluster>],
    routes: &[Option<Route>],
    defaults: &Defaults,
    services: &[RateLimitService],
    to: &mut Findings,
) {
    let of_clusters = clusters.iter().enumerate().flat_map(|(index, cluster)| {
        let limits = cluster.as_ref().map_or(&[][..], |c| &c.rate_limits);
        at(format!("clusters[{index}]"), limits)
    });
    let of_routes = routes.iter().enumerate().flat_map(|(index, route)| {
        let limits = route.as_ref().map_or(&[][..], |r| &r.rate_limits);
        at(format!("routes[{index}]"), limits)
    });
    let of_defaults = at("defaults".into(), &defaults.rate_limits);
    let mut first = HashMap::new();
    let mut used = Vec::new();
    for (path, limit) in of_defaults.chain(of_routes).chain(of_clusters) {
        name(&limit.name, &path, &mut first, to);
        used.extend(limit.service.as_deref());
        one(limit, &path, services, to);
    }
    // A cluster or route that could not be read may use any of them.
    if clusters.iter().any(Option::is_none) || routes.iter().any(Option::is_none) {
        return;
    }
    for (index, service) in services.iter().enumerate() {
        if !used.contains(&service.name.as_str()) {
            to.warning(
                format!("rate_limit_services[{index}].name"),
                format!(
                    "no limit asks `{}`; name it as a limit's `service`, or remove it",
                    service.name
                ),
            );
        }
    }
}

fn at(owner: String, limits: &[RateLimit]) -> impl Iterator<Item = (String, &RateLimit)> {
    let path = move |index| format!("{owner}.rate_limits[{index}]");
    (limits.iter().enumerate()).map(move |(index, limit)| (path(index), limit))
}

fn name(name: &str, path: &str, first: &mut HashMap<String, String>, to: &mut Findings) {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    to.error_if(
        name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain),
        &format!("{path}.name"),
        "this is no name for headers and metrics; write 1 to 64 letters, digits, `.`, `-` and `_`",
    );
    if let Some(before) = first.get(name) {
        to.error(
            format!("{path}.name"),
            format!("`{name}` is the name of {before} too, and their buckets would be mixed up; give one of them another name"),
        );
    } else {
        first.insert(name.to_owned(), path.to_owned());
    }
}

fn one(limit: &RateLimit, path: &str, services: &[RateLimitService], to: &mut Findings) {
    match (&limit.token_bucket, &limit.service) {
        (Some(bucket), None) => local(limit, bucket, path, to),
        (None, Some(service)) => global(limit, service, services, path, to),
        _ => to.error(
            path.to_owned(),
            "it does not say who decides; write exactly one of `token_bucket` and `service`".into(),
        ),
    }
    for (index, action) in limit.actions.iter().enumerate() {
        self::action(action, &format!("{path}.actions[{index}]"), to);
    }
    to.error_if(
        limit.enabled.0 == 0,
        &format!("{path}.enabled"),
        "0 looks at nothing; remove the limit, or write `enforced: 0` to count only",
    );
    to.error_if(
        !(400..600).contains(&limit.status),
        &format!("{path}.status"),
        "a refusal is an error; write a status from 400 to 599, the default is 429",
    );
    to.error_if(
        limit.max_delay.0 > MAX_DELAY,
        &format!("{path}.max_delay"),
        "no client waits for so long; write at most 1m",
    );
}

fn local(limit: &RateLimit, own: &TokenBucket, path: &str, to: &mut Findings) {
    bucket(limit, own, &format!("{path}.token_bucket"), to);
    for (index, descriptor) in limit.descriptors.iter().enumerate() {
        let path = format!("{path}.descriptors[{index}]");
        bucket(
            limit,
            &descriptor.token_bucket,
            &format!("{path}.token_bucket"),
            to,
        );
        let keys: Vec<_> = limit.actions.iter().map(RateLimitAction::key).collect();
        let entries = &descriptor.entries;
        // What is skipped may leave a shorter one.
        let mut rest = keys.iter();
        to.error_if(
            entries.is_empty() || !entries.iter().all(|e| rest.any(|key| *key == e.key)),
            &format!("{path}.entries"),
            &format!(
                "no traffic has these; the actions of the limit yield the keys {}, in this order",
                keys.join(", ")
            ),
        );
    }
    to.error_if(
        limit.limit.is_some(),
        &format!("{path}.limit"),
        "it is what a service is asked to apply; remove it, or write `service`",
    );
}

fn bucket(limit: &RateLimit, bucket: &TokenBucket, path: &str, to: &mut Findings) {
    above_zero(bucket.fill_interval, &format!("{path}.fill_interval"), to);
    let interval = bucket.fill_interval.0.as_nanos();
    let fill = u128::from(bucket.tokens_per_fill.get());
    to.error_if(
        fill * 1_000_000_000 > interval * MAX_PER_SECOND,
        &format!("{path}.tokens_per_fill"),
        "that is more than 1000000 tokens a second, which is as good as no limit; lower it, or lengthen fill_interval",
    );
    to.error_if(
        interval * u128::from(bucket.max_tokens.get()) > MAX_FILL.as_nanos() * fill,
        &format!("{path}.max_tokens"),
        "it takes more than a year to fill; lower it, or shorten fill_interval",
    );
    to.error_if(
        limit.hits_addend > bucket.max_tokens,
        &format!("{path}.max_tokens"),
        "it never holds as many as hits_addend takes, so nothing would pass; raise it",
    );
}

fn global(
    limit: &RateLimit,
    service: &str,
    services: &[RateLimitService],
    path: &str,
    to: &mut Findings,
) {
    if !services.iter().any(|s| s.name == service) {
        let known = services.iter().map(|s| s.name.as_str());
        let fix = match meant(service, known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "add it under `rate_limit_services`".into(),
        };
        to.error(
            format!("{path}.service"),
            format!("there is no service `{service}`; {fix}"),
        );
    }
    to.error_if(
        limit.actions.is_empty(),
        path,
        "the service is asked about nothing; add `actions`, such as `- generic_key: { descriptor_value: all }`",
    );
    to.error_if(
        !limit.descriptors.is_empty(),
        &format!("{path}.descriptors"),
        "sizes of buckets are the service's own matter; remove it, or write `token_bucket`",
    );
    to.error_if(
        !limit.max_delay.0.is_zero(),
        &format!("{path}.max_delay"),
        "the service does not say when there will be room; remove it, or write `token_bucket`",
    );
}

fn action(action: &RateLimitAction, path: &str, to: &mut Findings) {
    match action {
        RateLimitAction::RemoteAddress
        | RateLimitAction::DestinationAddress
        | RateLimitAction::DestinationCluster => {}
        RateLimitAction::MaskedRemoteAddress(masked) => {
            let path = format!("{path}.masked_remote_address");
            to.error_if(
                masked.v4_prefix_mask_len > 32,
                &format!("{path}.v4_prefix_mask_len"),
                "an IPv4 address has 32 bits; write 0 to 32",
            );
            to.error_if(
                masked.v6_prefix_mask_len > 128,
                &format!("{path}.v6_prefix_mask_len"),
                "an IPv6 address has 128 bits; write 0 to 128",
            );
        }
        RateLimitAction::RequestHeaders(header) => {
            let path = format!("{path}.request_headers");
            let is_pseudo = [":path", ":method", ":authority"].contains(&&*header.header_name);
            to.error_if(
                !is_pseudo && !is_token(&header.header_name),
                &format!("{path}.header_name"),
                "this is no header name; write one such as `x-user-id`, or `:path`, `:method` or `:authority`",
            );
            entry(
                &header.descriptor_key,
                &format!("{path}.descriptor_key"),
                to,
            );
        }
        RateLimitAction::GenericKey(generic) => {
            let path = format!("{path}.generic_key");
            entry(
                &generic.descriptor_key,
                &format!("{path}.descriptor_key"),
                to,
            );
            entry(
                &generic.descriptor_value,
                &format!("{path}.descriptor_value"),
                to,
            );
        }
    }
}

/// A service takes no empty key or value.
fn entry(text: &str, path: &str, to: &mut Findings) {
    to.error_if(
        text.is_empty() || text.len() > 256,
        path,
        "it is empty or has more than 256 bytes; write a short word",
    );
}

#[cfg(test)]
mod tests {
    use crate::{check, parse};

    /// What is wrong, as (path, a part of the fix), with one limit among good clusters and services.
    fn wrong(limit: &str) -> Vec<(String, String)> {
        let text = format!(
            "rate_limit_services: [{{ name: rls, cluster: rls, domain: d }}]\n\
             clusters: [{{ name: rls, endpoints: [{{ address: '10.0.0.1:80' }}] }}]\n\
             defaults: {{ rate_limits: [{{ name: used, service: rls, actions: [remote_address] }}, {limit}] }}\n"
        );
        let problems = check(&text).problems;
        assert!(problems.iter().all(|p| p.at.is_some()), "{problems:?}");
        problems.into_iter().map(|p| (p.path, p.fix)).collect()
    }

    #[test]
    fn a_limit_needs_one_who_decides_and_what_belongs_to_it() {
        const BUCKET: &str = "token_bucket: { max_tokens: 5, fill_interval: 1s }";
        for (limit, path) in [
            ("name: a".to_owned(), ""),
            (format!("name: a, {BUCKET}, service: rls, actions: [remote_address]"), ""),
            ("name: a, service: rls".to_owned(), ""),
            ("name: a, service: rsl, actions: [remote_address]".to_owned(), ".service"),
            (format!("name: 'a b', {BUCKET}"), ".name"),
            (format!("name: used, {BUCKET}"), ".name"),
            (format!("name: a, {BUCKET}, hits_addend: 6"), ".token_bucket.max_tokens"),
            (format!("name: a, {BUCKET}, enabled: 0"), ".enabled"),
            (format!("name: a, {BUCKET}, status: 200"), ".status"),
            (format!("name: a, {BUCKET}, max_delay: 2m"), ".max_delay"),
            (format!("name: a, {BUCKET}, limit: {{ requests_per_unit: 1, unit: day }}"), ".limit"),
            (
                "name: a, token_bucket: { max_tokens: 5, tokens_per_fill: 2000, fill_interval: 1ms }".to_owned(),
                ".token_bucket.tokens_per_fill",
            ),
            (
                "name: a, token_bucket: { max_tokens: 400, fill_interval: 24h }".to_owned(),
                ".token_bucket.max_tokens",
            ),
            (
                "name: a, token_bucket: { max_tokens: 1, fill_interval: 0s }".to_owned(),
                ".token_bucket.fill_interval",
            ),
            (
                format!("name: a, {BUCKET}, actions: [{{ request_headers: {{ header_name: 'a b', descriptor_key: k }} }}]"),
                ".actions[0].request_headers.header_name",
            ),
            (
                format!("name: a, {BUCKET}, actions: [{{ masked_remote_address: {{ v4_prefix_mask_len: 33 }} }}]"),
                ".actions[0].masked_remote_address.v4_prefix_mask_len",
            ),
            (
                format!("name: a, {BUCKET}, actions: [remote_address], descriptors: [{{ entries: [{{ key: user, value: x }}], {BUCKET} }}]"),
                ".descriptors[0].entries",
            ),
        ] {
            let wrong = wrong(&format!("{{ {limit} }}"));
            let wanted = format!("defaults.rate_limits[1]{path}");
            assert!(wrong.iter().any(|(path, _)| *path == wanted), "{limit}: {wrong:?}");
        }
        assert_eq!(wrong(&format!("{{ name: a, {BUCKET} }}")), []);
    }

    #[test]
    fn names_are_unique_across_routes_clusters_and_defaults() {
        let limit =
            "rate_limits: [{ name: a, token_bucket: { max_tokens: 1, fill_interval: 1s } }]";
        let text = format!(
            "defaults: {{ {limit} }}\nroutes: [{{ match: {{}}, cluster: c, {limit} }}]\n\
             clusters: [{{ name: c, endpoints: [{{ address: '10.0.0.1:80' }}], {limit} }}]\n"
        );
        let paths: Vec<_> = check(&text).problems.into_iter().map(|p| p.path).collect();
        assert_eq!(
            paths,
            [
                "routes[0].rate_limits[0].name",
                "clusters[0].rate_limits[0].name"
            ]
        );
    }

    #[test]
    fn a_service_needs_a_cluster_and_somebody_who_asks_it() {
        let text = "clusters: [{ name: rls, endpoints: [{ address: '10.0.0.1:80' }] }]\n\
                    rate_limit_services: [{ name: s, cluster: rsl, domain: d }, { name: t, cluster: rls, domain: '', timeout: 0s }]\n";
        let problems = check(text).problems;
        let told: Vec<_> = problems
            .iter()
            .map(|p| (p.path.as_str(), p.is_error()))
            .collect();
        assert_eq!(
            told,
            [
                ("rate_limit_services[0].name", false),
                ("rate_limit_services[0].cluster", true),
                ("rate_limit_services[1].name", false),
                ("rate_limit_services[1].domain", true),
                ("rate_limit_services[1].timeout", true),
            ]
        );
        assert!(
            problems[1].fix.contains("did you mean `rls`?"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_whole_example_is_without_a_problem() {
        let text = "rate_limit_services: [{ name: rls, cluster: rls, domain: shop }]\n\
            clusters:\n- { name: rls, endpoints: [{ address: '10.0.0.1:80' }] }\n\
            routes:\n- match: { port: 80 }\n  cluster: original_destination\n  rate_limits:\n  - name: user\n    \
            actions: [remote_address, { request_headers: { header_name: x-user, descriptor_key: user, skip_if_absent: true } }]\n    \
            token_bucket: { max_tokens: 5, tokens_per_fill: 10, fill_interval: 1s }\n    \
            descriptors: [{ entries: [{ key: user, value: vip }], token_bucket: { max_tokens: 50, fill_interval: 1s } }]\n  \
            - { name: global, service: rls, actions: [{ generic_key: { descriptor_value: all } }, destination_cluster, destination_address, { masked_remote_address: {} }] }\n";
        let wrong: Vec<_> = check(text).problems;
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(
            parse(text).expect("good settings").routes[0]
                .rate_limits
                .len(),
            2
        );
    }
}
