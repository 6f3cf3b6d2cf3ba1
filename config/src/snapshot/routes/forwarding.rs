//! What a route makes of a request's path, and where it sends a client elsewhere.

use super::{
    Decision, HttpRequest,
    path::{normal, split_query},
};
use crate::{PathMatch, RegexRewrite, Scheme};

/// The port that a host need not name.
fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    }
}

impl Decision {
    /// The path and query to be sent on in the place of `path`; none if that stays as it is.
    pub fn rewritten(&self, path: &[u8]) -> Option<Vec<u8>> {
        let rewrite = self.settings.rewrite.as_ref()?;
        self.replaced(path, rewrite.prefix.as_deref(), rewrite.regex.as_ref())
    }

    /// The `Location` that a client is sent to, if this route redirects. `authority` is the host that
    /// it asked for, with its port; `None` of both stands for none.
    pub fn location(&self, request: &HttpRequest<'_>, authority: &[u8]) -> Option<Vec<u8>> {
        let redirect = self.settings.redirect.as_ref()?;
        let scheme = redirect.scheme.unwrap_or(Scheme::Http);
        let (name, port) = split_port(authority);
        let keeps_port = redirect.scheme.is_none_or(|s| s == Scheme::Http);
        let port = match redirect.port {
            Some(port) => Some(port.get()),
            None => port.filter(|_| keeps_port && redirect.host.is_none()),
        };
        let mut location = format!("{}://", scheme.as_str()).into_bytes();
        match &redirect.host {
            Some(host) => location.extend_from_slice(host.as_bytes()),
            None => location.extend_from_slice(name),
        }
        if let Some(port) = port.filter(|port| *port != default_port(scheme)) {
            location.extend_from_slice(format!(":{port}").as_bytes());
        }
        let sent = request.path.filter(|p| p.starts_with(b"/")).unwrap_or(b"/");
        let mut path = match &redirect.path {
            Some(path) => with_query_of(path.as_bytes().to_vec(), sent),
            None => self
                .replaced(sent, redirect.prefix.as_deref(), redirect.regex.as_ref())
                .unwrap_or_else(|| sent.to_vec()),
        };
        let is_asked_for = redirect
            .path
            .as_ref()
            .is_some_and(|path| path.contains('?'));
        if redirect.strip_query && !is_asked_for {
            let len = split_query(&path).0.len();
            path.truncate(len);
        }
        location.extend_from_slice(&path);
        Some(location)
    }

    fn replaced(
        &self,
        sent: &[u8],
        prefix: Option<&str>,
        regex: Option<&RegexRewrite>,
    ) -> Option<Vec<u8>> {
        let (path, _) = split_query(sent);
        if !path.starts_with(b"/") {
            return None;
        }
        let path = normal(path);
        let replaced = if let Some(prefix) = prefix {
            joined(prefix.as_bytes(), self.behind_match(&path)?)
        } else {
            let RegexRewrite {
                pattern,
                substitution,
            } = regex?;
            pattern.replace_all(&path, substitution).into_owned()
        };
        Some(with_query_of(rooted(replaced), sent))
    }

    /// What follows the part of the normal `path` that the route's `match.path` found.
    fn behind_match<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        match self.settings.matches.path.as_ref()? {
            PathMatch::Exact(_) => Some(b""),
            PathMatch::Prefix(prefix) => path.strip_prefix(prefix.as_bytes()),
            PathMatch::SeparatedPrefix(prefix) => {
                path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix).as_bytes())
            }
            PathMatch::Regex(_) => None,
        }
    }
}

/// Two parts of a path, one slash where they meet in two.
fn joined(front: &[u8], rest: &[u8]) -> Vec<u8> {
    let rest = match (front.ends_with(b"/"), rest.strip_prefix(b"/")) {
        (true, Some(after)) => after,
        _ => rest,
    };
    [front, rest].concat()
}

/// A path that is one: it begins with a slash, and no byte of it ends the request line. What an
/// expression was made of a user's own template may lack the first.
fn rooted(path: Vec<u8>) -> Vec<u8> {
    if path.starts_with(b"/") {
        path
    } else {
        [b"/", &path[..]].concat()
    }
}

/// `path` with the query that was sent, unless it has one of its own.
fn with_query_of(mut path: Vec<u8>, sent: &[u8]) -> Vec<u8> {
    if !path.contains(&b'?') {
        let (_, query) = split_query(sent);
        if let Some(query) = query {
            path.push(b'?');
            path.extend_from_slice(query);
        }
    }
    path
}

/// A host and its port, of IPv6 with the brackets.
fn split_port(authority: &[u8]) -> (&[u8], Option<u16>) {
    let (name, port) = match authority.iter().rposition(|b| *b == b':') {
        Some(at) if !authority[at..].contains(&b']') => (&authority[..at], &authority[at + 1..]),
        _ => return (authority, None),
    };
    let port = std::str::from_utf8(port)
        .ok()
        .and_then(|port| port.parse().ok());
    (name, port)
}
