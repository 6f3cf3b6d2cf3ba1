//! What is wrong with where a route leads: a redirect, an answer of its own, other paths and hosts.

use super::{Findings, has_port, headers::line, plain_host, plain_path};
use crate::{Match, PathMatch, Redirect, RegexRewrite, Respond, Rewrite, pattern::highest_group};

/// Bytes of a body that the configuration holds: more belongs on a server.
const MAX_BODY: usize = 64 * 1024;

pub(super) fn redirect(redirect: &Redirect, matches: &Match, path: &str, to: &mut Findings) {
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

pub(super) fn respond(respond: &Respond, path: &str, to: &mut Findings) {
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

pub(super) fn status(status: u16, path: &str, to: &mut Findings) {
    to.error_if(
        !(200..600).contains(&status),
        path,
        "this is no status of a final answer; write one from 200 to 599",
    );
}

pub(super) fn rewrite(rewrite: &Rewrite, matches: &Match, path: &str, to: &mut Findings) {
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

pub(super) fn only_one(keys: &[(&str, bool)], path: &str, to: &mut Findings) {
    let mut written = keys.iter().filter(|(_, is_written)| *is_written);
    if let (Some((first, _)), Some((second, _))) = (written.next(), written.next()) {
        to.error(
            format!("{path}.{second}"),
            format!("there is `{first}` too; keep one of them"),
        );
    }
}
