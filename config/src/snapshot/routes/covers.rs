//! Routes that are never reached, because one before them holds for all that they hold for. What is
//! found is certain; expressions are compared by their text only, so that not everything is found.

use super::{
    holds::{is_at, is_named},
    index::{Index, Name, PathPart, Probe},
    path::is_below,
    subject::Headers,
};
use crate::{Condition, Match, PathMatch};

/// Of each route that is never reached: its place, and that of the first route in its way. `routes`
/// are in their order and normal form.
pub(crate) fn never_reached(routes: &[(usize, Match)]) -> Vec<(usize, usize)> {
    let index = Index::of(routes.iter().map(|(_, m)| m).enumerate());
    let mut found = Vec::new();
    for (position, (place, matches)) in routes.iter().enumerate() {
        let mut first = position;
        index.look_up(&probe(matches, &Exact(&matches.headers)), &mut |filed| {
            let mut ahead = filed.iter().take_while(|before| **before < first);
            if let Some(before) = ahead.find(|before| covers(&routes[**before].1, matches)) {
                first = *before;
            }
        });
        if first < position {
            found.push((*place, routes[first].0));
        }
    }
    found
}

fn probe<'a>(matches: &'a Match, headers: &'a Exact<'a>) -> Probe<'a> {
    Probe {
        host: matches.host.as_deref().and_then(name),
        sni: matches.sni.as_deref().and_then(name),
        path: matches.path.as_ref().and_then(|path| match path {
            PathMatch::Exact(path) => Some(PathPart::Whole(path.as_bytes())),
            PathMatch::Prefix(path) | PathMatch::SeparatedPrefix(path) => {
                Some(PathPart::Prefix(path.as_bytes()))
            }
            PathMatch::Regex(_) => None,
        }),
        headers: Some(headers),
        network: matches.destination.map(|network| network.0),
        port: matches.port.filter(|p| p.first == p.last).map(|p| p.first),
    }
}

fn name(pattern: &str) -> Option<Name<'_>> {
    if let Some(end) = pattern.strip_prefix('*') {
        Some(Name::Below(end.strip_prefix('.').unwrap_or(end)))
    } else if pattern.ends_with('*') {
        None
    } else {
        Some(Name::Exact(pattern))
    }
}

/// The headers that a route asks for by value.
#[derive(Debug)]
struct Exact<'a>(&'a [Condition]);

impl Headers for Exact<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let mut wanted = self.0.iter().filter(|c| c.name == name && !c.invert);
        if let Some(exact) = wanted.find_map(|c| c.exact.as_ref()) {
            visit(exact.as_bytes());
        }
    }
}

/// Whether `one` holds for all that `other` holds for.
fn covers(one: &Match, other: &Match) -> bool {
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
    } = one;
    destination.is_none_or(|wide| {
        other
            .destination
            .is_some_and(|narrow| wide.0.contains(&narrow.0))
    }) && port.is_none_or(|wide| {
        let is_within = |p: crate::PortRange| wide.contains(p.first) && wide.contains(p.last);
        other.port.is_some_and(is_within)
    }) && is_wider(host, &other.host, names_cover)
        && is_wider(sni, &other.sni, names_cover)
        && is_wider(path, &other.path, paths_cover)
        && is_superset(&method.0, &other.method.0)
        && is_superset(alpn, &other.alpn)
        && headers
            .iter()
            .all(|c| other.headers.iter().any(|o| follows(c, o)))
        && query
            .iter()
            .all(|c| other.query.iter().any(|o| follows(c, o)))
}

fn is_wider<T>(one: &Option<T>, other: &Option<T>, cover: impl Fn(&T, &T) -> bool) -> bool {
    one.as_ref()
        .is_none_or(|one| other.as_ref().is_some_and(|other| cover(one, other)))
}

/// Of lists of which one is enough, and of which an empty one asks for nothing.
fn is_superset(one: &[String], other: &[String]) -> bool {
    one.is_empty() || !other.is_empty() && other.iter().all(|o| one.contains(o))
}

fn names_cover(one: &String, other: &String) -> bool {
    if one == other {
        return true;
    }
    match (star(one), star(other)) {
        (Star::No, _) => false,
        (_, Star::No) => is_named(one, other),
        (Star::Start(wide), Star::Start(narrow)) => narrow.ends_with(wide),
        (Star::End(wide), Star::End(narrow)) => narrow.starts_with(wide),
        (Star::Start(""), Star::End(_)) => true,
        _ => false,
    }
}

enum Star<'a> {
    No,
    Start(&'a str),
    End(&'a str),
}

fn star(pattern: &str) -> Star<'_> {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => Star::Start(end),
        (None, Some(start)) => Star::End(start),
        (None, None) => Star::No,
    }
}

fn paths_cover(one: &PathMatch, other: &PathMatch) -> bool {
    match (one, other) {
        (_, PathMatch::Exact(path)) => is_at(one, path.as_bytes()),
        (PathMatch::Prefix(wide), PathMatch::Prefix(narrow)) => narrow.starts_with(wide.as_str()),
        (PathMatch::Prefix(wide), PathMatch::SeparatedPrefix(narrow)) => {
            // A slash at the end of `narrow` is none that its paths must have.
            narrow
                .strip_suffix('/')
                .unwrap_or(narrow)
                .starts_with(wide.as_str())
        }
        (PathMatch::SeparatedPrefix(wide), PathMatch::SeparatedPrefix(narrow)) => {
            is_below(narrow.as_bytes(), wide.as_bytes())
        }
        (PathMatch::SeparatedPrefix(wide), PathMatch::Prefix(narrow)) => {
            // `/v1/` begins no other segment, `/v1` may.
            narrow.starts_with(&format!("{}/", wide.strip_suffix('/').unwrap_or(wide)))
        }
        (PathMatch::Regex(one), PathMatch::Regex(other)) => one == other,
        _ => false,
    }
}

/// Whether `one` holds wherever `other` does.
fn follows(one: &Condition, other: &Condition) -> bool {
    if one.name != other.name {
        return false;
    }
    if one == other {
        return true;
    }
    match &other.exact {
        Some(exact) if !other.invert => one.holds(Some(exact.as_bytes())),
        _ => is_presence(one) && !asks_absence(other),
    }
}

fn is_presence(condition: &Condition) -> bool {
    condition.tests().all(|test| test == "present")
        && condition.present.unwrap_or(true) != condition.invert
}

fn asks_absence(condition: &Condition) -> bool {
    condition.tests().all(|test| test == "present") && !is_presence(condition)
}
