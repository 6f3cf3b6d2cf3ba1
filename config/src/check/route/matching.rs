//! What is wrong with what a route asks of its traffic.

use http::{HeaderName, Method};

use super::Findings;
use crate::{Condition, Match, PathMatch, snapshot::routes::path};

pub(super) fn matching(matches: &Match, path: &str, to: &mut Findings) {
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

pub(super) fn has_dots(path: &str) -> bool {
    // What begins or ends within a segment may be all of it or not.
    let mut segments = path.split('/');
    segments.next_back();
    segments.any(|segment| segment == "." || segment == "..")
}

pub(super) fn conditions(
    conditions: &[Condition],
    path: &str,
    are_headers: bool,
    to: &mut Findings,
) {
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
