//! What is wrong with routes.

mod action;
mod headers;
mod matching;

use std::collections::HashMap;

use self::{
    action::{redirect, respond, status},
    headers::header_edits,
    matching::{conditions, matching},
};
use super::{Findings, above_zero, name, retry};
use crate::{
    Cluster, Fault, Labels, Mirror, ORIGINAL_DESTINATION, Route,
    problem::meant,
    snapshot::routes::{covers::never_reached, normal},
};

/// Bytes of a body of which a mirror may hold a copy.
const MAX_COPY: usize = 1024 * 1024;

/// Clusters that can be read by name, and the places of all of them.
struct Known<'a> {
    clusters: &'a HashMap<&'a str, &'a Cluster>,
    places: &'a HashMap<&'a str, usize>,
}

pub(super) fn all(
    routes: &[Option<Route>],
    clusters: &HashMap<&str, &Cluster>,
    places: &HashMap<&str, usize>,
    to: &mut Findings,
) {
    let known = Known { clusters, places };
    for (index, route) in routes.iter().enumerate() {
        if let Some(route) = route {
            one(route, &format!("routes[{index}]"), &known, to);
        }
    }
    names(routes, to);
    let readable = routes.iter().enumerate();
    let readable = readable.filter_map(|(index, r)| Some((index, normal(&r.as_ref()?.matches))));
    for (index, before) in never_reached(&readable.collect::<Vec<_>>()) {
        to.warning(
            format!("routes[{index}]"),
            format!("it is never reached, for routes[{before}] holds for the same traffic; move it up, or remove it"),
        );
    }
}

fn names(routes: &[Option<Route>], to: &mut Findings) {
    let mut first = HashMap::new();
    for (index, route) in routes.iter().enumerate() {
        let Some(route) = route else { continue };
        let written = route.name_at(index);
        let path = match &route.name {
            Some(written) => {
                let path = format!("routes[{index}].name");
                name(written, &path, to);
                path
            }
            None => format!("routes[{index}]"),
        };
        if let Some(before) = first.insert(written.clone(), index) {
            to.error(
                path,
                format!(
                    "`{written}` is the name of routes[{before}] too; give one of them another name"
                ),
            );
            first.insert(written, before);
        }
    }
}

fn one(route: &Route, path: &str, known: &Known<'_>, to: &mut Findings) {
    matching(&route.matches, &format!("{path}.match"), to);
    action(route, path, to);
    retry::of_route(route, path, to);
    for (key, name) in route.clusters() {
        cluster(name, &format!("{path}.{key}"), known, to);
    }
    if let Some(name) = &route.cluster {
        subset(&route.subset, name, &format!("{path}.subset"), known, to);
    }
    for (index, share) in route.split.iter().enumerate() {
        let path = format!("{path}.split[{index}].subset");
        subset(&share.subset, &share.cluster, &path, known, to);
    }
    if let Some(rewrite) = &route.rewrite {
        action::rewrite(rewrite, &route.matches, &format!("{path}.rewrite"), to);
    }
    header_edits(
        &route.request_headers,
        &format!("{path}.request_headers"),
        to,
    );
    header_edits(
        &route.response_headers,
        &format!("{path}.response_headers"),
        to,
    );
    for (index, mirror) in route.mirror.iter().enumerate() {
        self::mirror(mirror, &format!("{path}.mirror[{index}]"), known, to);
    }
    if let Some(fault) = &route.fault {
        self::fault(fault, &format!("{path}.fault"), to);
    }
}

fn action(route: &Route, path: &str, to: &mut Findings) {
    let written: Vec<_> = [
        ("cluster", route.cluster.is_some()),
        ("split", !route.split.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("respond", route.respond.is_some()),
    ]
    .into_iter()
    .filter_map(|(key, is_written)| is_written.then_some(key))
    .collect();
    match written[..] {
        [] => to.error(
            path.to_owned(),
            "it leads nowhere; write one of `cluster`, `split`, `redirect` and `respond`".into(),
        ),
        [_] => {}
        [first, second, ..] => to.error(
            format!("{path}.{second}"),
            format!(
                "there is `{first}` too; keep one of them, and make another route for the other"
            ),
        ),
    }
    if route.matches.asks_tls() && !route.matches.asks_http() {
        let answers = [
            ("redirect", route.redirect.is_some()),
            ("respond", route.respond.is_some()),
        ];
        for (key, _) in answers.iter().filter(|(_, is_written)| *is_written) {
            to.warning(
                format!("{path}.{key}"),
                "nobody can answer within TLS, so that these connections are reset; match something of HTTP, or leave them to a cluster".into(),
            );
        }
        if route.edits_http() {
            to.warning(
                path.to_owned(),
                "nothing can be changed or copied within TLS; remove `rewrite`, `request_headers`, `response_headers` and `mirror`".into(),
            );
        }
    }
    if !route.subset.is_empty() && route.cluster.is_none() {
        to.error(
            format!("{path}.subset"),
            "it belongs to `cluster`; write it within `split`, or remove it".into(),
        );
    }
    if !route.split.is_empty() {
        let total: u64 = route.split.iter().map(|s| u64::from(s.weight)).sum();
        let message = match total {
            0 => "all weights are 0, so that no cluster gets anything; give one of them a weight",
            total if total > u64::from(u32::MAX) => {
                "the weights add up to more than 4,294,967,295; write smaller ones"
            }
            _ => "",
        };
        to.error_if(!message.is_empty(), &format!("{path}.split"), message);
    }
    if route.split.is_empty() && route.cluster.is_none() {
        let path = format!("{path}.rewrite");
        to.error_if(
            route.rewrite.is_some(),
            &path,
            "this route sends nothing on that could be rewritten; a redirect has keys of its own",
        );
    }
    if let Some(redirect) = &route.redirect {
        self::redirect(redirect, &route.matches, &format!("{path}.redirect"), to);
    }
    if let Some(respond) = &route.respond {
        self::respond(respond, &format!("{path}.respond"), to);
    }
}

fn cluster(name: &str, path: &str, known: &Known<'_>, to: &mut Findings) {
    if name == ORIGINAL_DESTINATION || known.places.contains_key(name) {
        return;
    }
    let names = known.places.keys().copied().chain([ORIGINAL_DESTINATION]);
    let fix = match meant(name, names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "add it under `clusters`, or write `original_destination`".into(),
    };
    to.error(
        path.to_owned(),
        format!("there is no cluster `{name}`; {fix}"),
    );
}

fn subset(subset: &Labels, cluster: &str, path: &str, known: &Known<'_>, to: &mut Findings) {
    if subset.is_empty() {
        return;
    }
    if cluster == ORIGINAL_DESTINATION {
        to.error(
            path.to_owned(),
            "the dialled address is one endpoint without labels; remove `subset`, or name a cluster".into(),
        );
    }
    let endpoints = known
        .clusters
        .get(cluster)
        .map_or(&[][..], |c| &c.endpoints);
    let has_all = |labels: &Labels| subset.iter().all(|(k, v)| labels.get(k) == Some(v));
    if !endpoints.is_empty() && !endpoints.iter().any(|e| has_all(&e.labels)) {
        to.warning(
            path.to_owned(),
            format!("no endpoint of `{cluster}` has these labels; correct them here or there"),
        );
    }
}

fn plain_path(text: &str, path: &str, to: &mut Findings) {
    let message = if !text.starts_with('/') {
        "a path begins with a slash; write one such as `/v1`"
    } else if text.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        "a path is plain ASCII without blanks; write `%20` and the like"
    } else if text.contains('#') {
        "a fragment is never sent; leave it out"
    } else {
        return;
    };
    to.error(path.to_owned(), message.into());
}

/// Whether a request can ask for this host: a name or an address, with a port or without.
pub fn is_host(host: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~[]:".contains(&b);
    !host.is_empty() && host.bytes().all(is_plain)
}

pub(super) fn plain_host(host: &str, path: &str, to: &mut Findings) {
    to.error_if(
        !is_host(host),
        path,
        "this is no host; write a name such as `api.internal`, with `:8080` behind it where a port is wanted",
    );
}

fn has_port(host: &str) -> bool {
    host.rsplit(']')
        .next()
        .is_some_and(|rest| rest.contains(':'))
}

fn mirror(mirror: &Mirror, path: &str, known: &Known<'_>, to: &mut Findings) {
    to.error_if(
        mirror.cluster == ORIGINAL_DESTINATION,
        &format!("{path}.cluster"),
        "a copy to the same destination doubles its load; name a cluster",
    );
    to.error_if(
        mirror.max_body_bytes > MAX_COPY,
        &format!("{path}.max_body_bytes"),
        "it is more than 1 MiB, and each copy is held in memory; write at most 1048576",
    );
    subset(
        &mirror.subset,
        &mirror.cluster,
        &format!("{path}.subset"),
        known,
        to,
    );
}

fn fault(fault: &Fault, path: &str, to: &mut Findings) {
    to.error_if(
        fault.delay.is_none() && fault.abort.is_none(),
        path,
        "it does nothing; write `delay`, `abort` or both",
    );
    if let Some(delay) = &fault.delay {
        above_zero(delay.fixed, &format!("{path}.delay.fixed"), to);
    }
    if let Some(abort) = &fault.abort {
        let path = format!("{path}.abort");
        match (abort.status, abort.grpc_status) {
            (Some(written), None) => status(written, &format!("{path}.status"), to),
            (None, Some(written)) => to.error_if(
                written > 16,
                &format!("{path}.grpc_status"),
                "gRPC knows the statuses 0 to 16; write one of them",
            ),
            _ => to.error(
                path,
                "an abort has one status; write exactly one of `status` and `grpc_status`".into(),
            ),
        }
    }
    conditions(&fault.headers, &format!("{path}.headers"), true, to);
}

#[cfg(test)]
mod tests;
