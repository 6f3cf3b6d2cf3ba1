//! Whether one route holds for one subject.

use super::{path::is_below, subject::View};
use crate::{Condition, Match, PathMatch};

pub(super) fn holds(matches: &Match, view: &View<'_>) -> bool {
    let Match {
        destination,
        port,
        host,
        path,
        method,
        headers,
        query,
        sni,
        alpn,
    } = matches;
    let is_named = |wanted: &Option<String>, name: Option<&str>| {
        wanted
            .as_ref()
            .is_none_or(|wanted| name.is_some_and(|name| is_named(wanted, name)))
    };
    destination.is_none_or(|network| network.0.contains(&view.ip))
        && port.is_none_or(|port| port.contains(view.port))
        && is_named(host, view.host.as_deref())
        && is_named(sni, view.sni.as_deref())
        && (alpn.is_empty()
            || view
                .alpn
                .iter()
                .any(|offered| alpn.iter().any(|a| **a == **offered)))
        && path
            .as_ref()
            .is_none_or(|wanted| view.path.as_ref().is_some_and(|path| is_at(wanted, path)))
        && (method.0.is_empty() || view.request.is_some_and(|r| method.include(r.method)))
        && (headers.is_empty() && query.is_empty() || hold(headers, query, view))
}

fn hold(headers: &[Condition], query: &[Condition], view: &View<'_>) -> bool {
    let Some(request) = view.request else {
        return false;
    };
    let query_sent = request
        .path
        .and_then(|path| super::path::split_query(path).1);
    headers
        .iter()
        .all(|c| c.holds(request.headers.joined(&c.name).as_deref()))
        && query
            .iter()
            .all(|c| c.holds(parameter(query_sent.unwrap_or_default(), &c.name)))
}

/// Whether `name` is what `pattern` asks for; both are in their normal form.
pub(super) fn is_named(pattern: &str, name: &str) -> bool {
    if let Some(end) = pattern.strip_prefix('*') {
        name.len() > end.len() && name.ends_with(end)
    } else if let Some(start) = pattern.strip_suffix('*') {
        name.len() > start.len() && name.starts_with(start)
    } else {
        name == pattern
    }
}

/// Whether the normal `path` is what is asked for.
pub(super) fn is_at(wanted: &PathMatch, path: &[u8]) -> bool {
    match wanted {
        PathMatch::Exact(whole) => path == whole.as_bytes(),
        PathMatch::Prefix(prefix) => path.starts_with(prefix.as_bytes()),
        PathMatch::SeparatedPrefix(prefix) => is_below(path, prefix.as_bytes()),
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

/// The first value that the query gives to `name`; empty where it is there without one.
fn parameter<'a>(query: &'a [u8], name: &str) -> Option<&'a [u8]> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let rest = pair.strip_prefix(name.as_bytes())?;
        match rest.split_first() {
            None => Some(rest),
            Some((b'=', value)) => Some(value),
            Some(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_by_its_whole_name_and_the_first_counts() {
        let query = b"xa=0&a&b=1&b=2&c=x=y";
        assert_eq!(parameter(query, "a"), Some(&b""[..]));
        assert_eq!(parameter(query, "b"), Some(&b"1"[..]));
        assert_eq!(parameter(query, "c"), Some(&b"x=y"[..]));
        assert_eq!(parameter(query, "x"), None);
    }

    #[test]
    fn a_star_stands_for_at_least_one_character() {
        for (pattern, name, wanted) in [
            ("*.b.c", "a.b.c", true),
            ("*.b.c", "x.a.b.c", true),
            ("*.b.c", ".b.c", false),
            ("*.b.c", "b.c", false),
            ("*-x.c", "a-x.c", true),
            ("api.*", "api.c", true),
            ("api.*", "api.", false),
            ("*", "anything", true),
        ] {
            assert_eq!(is_named(pattern, name), wanted, "{pattern} {name}");
        }
    }
}
