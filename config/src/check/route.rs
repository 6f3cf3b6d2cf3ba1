//! What is wrong with routes.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue, Method};

use super::{Findings, above_zero, name, retry};
use crate::{
    Cluster, Condition, Fault, HeaderEdits, Labels, Match, Mirror, ORIGINAL_DESTINATION, PathMatch,
    RESERVED_HEADERS, Redirect, RegexRewrite, Respond, Rewrite, Route,
    pattern::highest_group,
    problem::meant,
    snapshot::routes::{covers::never_reached, normal, path},
};

/// Bytes of a body that the configuration holds: more belongs on a server.
const MAX_BODY: usize = 64 * 1024;

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
        self::rewrite(rewrite, &route.matches, &format!("{path}.rewrite"), to);
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

fn matching(matches: &Match, path: &str, to: &mut Findings) {
    for (key, pattern) in [("host", &matches.host), ("sni", &matches.sni)] {
        if let Some(pattern) = pattern {
            host(pattern, &format!("{path}.{key}"), to);
        }
    }
    if matches.asks_http() && matches.asks_tls() {
        to.error(
            path.to_owned(),
            "no traffic has both: within TLS nothing of HTTP can be seen; keep `sni` and `alpn`, or the keys of HTTP".into(),
        );
    }
    if let Some(wanted) = &matches.path {
        self::path(wanted, &format!("{path}.path"), to);
    }
    for (index, method) in matches.method.0.iter().enumerate() {
        let path = format!("{path}.method");
        if Method::from_bytes(method.as_bytes()).is_err() {
            to.error(
                path,
                format!("`{method}` is no method; write one such as `GET`"),
            );
        } else if method.bytes().any(|b| b.is_ascii_lowercase()) {
            to.warning(
                path,
                format!(
                    "methods are told apart by case, and few are written so; write `{}`",
                    method.to_ascii_uppercase()
                ),
            );
        } else if matches.method.0[..index].contains(method) {
            to.warning(path, format!("`{method}` is there twice; remove one"));
        }
    }
    conditions(&matches.headers, &format!("{path}.headers"), true, to);
    conditions(&matches.query, &format!("{path}.query"), false, to);
    for (index, protocol) in matches.alpn.iter().enumerate() {
        to.error_if(
            protocol.is_empty() || protocol.len() > 255,
            &format!("{path}.alpn[{index}]"),
            "a protocol's name has 1 to 255 bytes; write one such as `h2`",
        );
    }
}

fn host(pattern: &str, path: &str, to: &mut Findings) {
    let name = pattern
        .strip_prefix('*')
        .or_else(|| pattern.strip_suffix('*'));
    let name = name.unwrap_or(pattern);
    let message = if pattern.is_empty() {
        "it is empty; write a name such as `api.internal`, or leave the key out for any"
    } else if name.contains('*') {
        "one `*` can stand at the start or at the end, nowhere else; write `*.internal`"
    } else if name.contains(':') && name.parse::<std::net::IpAddr>().is_err() {
        "it has a port; write the name alone, and the port as `port`"
    } else if name.contains(['/', ' ', '@']) {
        "this is no host name; write a name such as `api.internal`"
    } else {
        return;
    };
    to.error(path.to_owned(), message.into());
}

fn path(wanted: &PathMatch, path: &str, to: &mut Findings) {
    let (key, text) = match wanted {
        PathMatch::Exact(text) => ("exact", text),
        PathMatch::Prefix(text) => ("prefix", text),
        PathMatch::SeparatedPrefix(text) => ("separated_prefix", text),
        PathMatch::Regex(_) => return,
    };
    let is_star = key == "exact" && text == "*";
    let message = if !text.starts_with('/') && !is_star {
        "a path begins with a slash; write one such as `/v1`"
    } else if text.contains(['?', '#']) {
        "a path has no query; write it under `query`"
    } else if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
        "a path has no blanks; write `%20`"
    } else if path::normal(text.as_bytes()).len() < text.len() && has_dots(text) {
        "dot segments are resolved before paths are compared, so that this holds for none; write the path without them"
    } else {
        return;
    };
    to.error(format!("{path}.{key}"), message.into());
}

fn has_dots(path: &str) -> bool {
    // What begins or ends within a segment may be all of it or not.
    let mut segments = path.split('/');
    segments.next_back();
    segments.any(|segment| segment == "." || segment == "..")
}

fn conditions(conditions: &[Condition], path: &str, are_headers: bool, to: &mut Findings) {
    for (index, condition) in conditions.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = &condition.name;
        if are_headers && name.starts_with(':') {
            to.error(
                format!("{path}.name"),
                "this is no header line; write `host`, `path` or `method` under `match`".into(),
            );
        } else if name.is_empty() || are_headers && HeaderName::from_bytes(name.as_bytes()).is_err()
        {
            to.error(
                format!("{path}.name"),
                format!("`{name}` is no name of one; write one such as `x-version`"),
            );
        }
        let tests: Vec<_> = condition.tests().collect();
        if let [first, second, ..] = tests[..] {
            to.error(
                format!("{path}.{second}"),
                format!("there is `{first}` too; keep one of them, and write a second item for the other"),
            );
        }
        to.error_if(
            condition.contains.as_ref().is_some_and(String::is_empty),
            &format!("{path}.contains"),
            "every value contains nothing; write what it must contain, or `present: true`",
        );
    }
}

fn redirect(redirect: &Redirect, matches: &Match, path: &str, to: &mut Findings) {
    let paths = [
        ("path", redirect.path.is_some()),
        ("prefix", redirect.prefix.is_some()),
        ("regex", redirect.regex.is_some()),
    ];
    only_one(&paths, path, to);
    if let Some(host) = &redirect.host {
        plain_host(host, &format!("{path}.host"), to);
        to.error_if(
            has_port(host) && redirect.port.is_some(),
            &format!("{path}.port"),
            "`host` has a port already; write it in one place",
        );
    }
    if let Some(whole) = &redirect.path {
        plain_path(whole, &format!("{path}.path"), to);
    }
    replaced(
        redirect.prefix.as_deref(),
        redirect.regex.as_ref(),
        matches,
        path,
        to,
    );
    let says_nothing = redirect.scheme.is_none()
        && redirect.host.is_none()
        && redirect.port.is_none()
        && !paths.iter().any(|(_, is_written)| *is_written)
        && !redirect.strip_query;
    to.error_if(
        says_nothing,
        path,
        "it sends the client where it already asks; write at least one of `scheme`, `host`, `port`, `path`, `prefix` and `regex`",
    );
}

fn respond(respond: &Respond, path: &str, to: &mut Findings) {
    status(respond.status, &format!("{path}.status"), to);
    let body = format!("{path}.body");
    to.error_if(
        respond.body.len() > MAX_BODY,
        &body,
        "it has more than 64 KiB; let a server answer",
    );
    to.error_if(
        !respond.body.is_empty() && matches!(respond.status, 204 | 304),
        &body,
        "an answer with this status has no body; remove it, or write another status",
    );
    for (name, value) in &respond.headers {
        line(name, value, &format!("{path}.headers.{name}"), to);
    }
}

fn status(status: u16, path: &str, to: &mut Findings) {
    to.error_if(
        !(200..600).contains(&status),
        path,
        "this is no status of a final answer; write one from 200 to 599",
    );
}

fn rewrite(rewrite: &Rewrite, matches: &Match, path: &str, to: &mut Findings) {
    only_one(
        &[
            ("prefix", rewrite.prefix.is_some()),
            ("regex", rewrite.regex.is_some()),
        ],
        path,
        to,
    );
    only_one(
        &[
            ("host", rewrite.host.is_some()),
            ("auto_host", rewrite.auto_host),
        ],
        path,
        to,
    );
    replaced(
        rewrite.prefix.as_deref(),
        rewrite.regex.as_ref(),
        matches,
        path,
        to,
    );
    if let Some(host) = &rewrite.host {
        plain_host(host, &format!("{path}.host"), to);
    }
}

/// What takes the place of a part of the path.
fn replaced(
    prefix: Option<&str>,
    regex: Option<&RegexRewrite>,
    matches: &Match,
    path: &str,
    to: &mut Findings,
) {
    if let Some(prefix) = prefix {
        let path = format!("{path}.prefix");
        if matches!(matches.path, None | Some(PathMatch::Regex(_))) {
            to.error(path, "it takes the place of what `match.path` found; write `exact`, `prefix` or `separated_prefix` there, or use `regex` here".into());
        } else {
            plain_path(prefix, &path, to);
        }
    }
    if let Some(regex) = regex {
        let path = format!("{path}.regex.substitution");
        let template = &regex.substitution;
        if template.bytes().any(|b| b <= b' ' || b >= 0x7f) {
            to.error(
                path,
                "a path is plain ASCII without blanks; write `%20` and the like".into(),
            );
            return;
        }
        match highest_group(template) {
            Err(how) => to.error(path, format!("{how}; write `\\1`, or `\\\\` for a backslash")),
            Ok(highest) if highest > regex.pattern.groups() => to.error(
                path,
                format!("there is no group {highest} in the pattern, which has {}; put parentheses around what is meant", regex.pattern.groups()),
            ),
            Ok(_) => {}
        }
    }
}

fn only_one(keys: &[(&str, bool)], path: &str, to: &mut Findings) {
    let mut written = keys.iter().filter(|(_, is_written)| *is_written);
    if let (Some((first, _)), Some((second, _))) = (written.next(), written.next()) {
        to.error(
            format!("{path}.{second}"),
            format!("there is `{first}` too; keep one of them"),
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

fn header_edits(edits: &HeaderEdits, path: &str, to: &mut Findings) {
    for (key, lines) in [
        ("add", &edits.add),
        ("set", &edits.set),
        ("add_if_absent", &edits.add_if_absent),
    ] {
        for (name, value) in lines {
            line(name, value, &format!("{path}.{key}.{name}"), to);
        }
    }
    for (index, name) in edits.remove.iter().enumerate() {
        line_name(name, &format!("{path}.remove[{index}]"), to);
    }
}

fn line(name: &str, value: &str, path: &str, to: &mut Findings) {
    line_name(name, path, to);
    let message = if HeaderValue::from_str(value).is_err() {
        "a header's value is one line of printable characters; remove line breaks and control characters"
    } else if value.trim_matches([' ', '\t']) != value {
        "blanks around a header's value get lost; remove them"
    } else {
        return;
    };
    to.error(path.to_owned(), message.into());
}

fn line_name(name: &str, path: &str, to: &mut Findings) {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        to.error(
            path.to_owned(),
            format!("`{name}` is no name of a header; write one such as `x-version`"),
        );
    } else if RESERVED_HEADERS.iter().any(|n| name.eq_ignore_ascii_case(n)) {
        let fix = match name.eq_ignore_ascii_case("host") {
            true => "write `rewrite: { host: … }`",
            false => "leave it to the two sides",
        };
        to.error(
            path.to_owned(),
            format!("`{name}` belongs to the connection or to the message's framing, or has a key of its own; {fix}"),
        );
    }
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
