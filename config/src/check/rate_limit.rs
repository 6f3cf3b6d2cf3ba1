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
                format!("no limit asks `{}`; name it as a limit's `service`, or remove it", service.name),
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
        bucket(limit, &descriptor.token_bucket, &format!("{path}.token_bucket"), to);
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
            entry(&header.descriptor_key, &format!("{path}.descriptor_key"), to);
        }
        RateLimitAction::GenericKey(generic) => {
            let path = format!("{path}.generic_key");
            entry(&generic.descriptor_key, &format!("{path}.descriptor_key"), to);
            entry(&generic.descriptor_value, &format!("{path}.descriptor_value"), to);
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
