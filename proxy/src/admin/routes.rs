//! What the admin listener answers.

use std::{fmt::Write, net::IpAddr, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN},
};
use serde::Serialize;

use super::body::Body;
use crate::{
    cluster::Clusters,
    observe::{Exposition, Format},
    reload::Outcome,
    shared::Shared,
};

/// How long a worker may take to its next turn: a healthy one takes milliseconds, and probes wait for
/// a second as a rule.
const PULSE_LIMIT: Duration = Duration::from_millis(900);

/// Every path and what it is for.
const PATHS: [(&str, &str); 5] = [
    (
        "/live",
        "200 while every worker's event loop turns, else 503; it waits 0.9 s for them",
    ),
    (
        "/ready",
        "200 while it accepts connections, else 503 with reasons",
    ),
    ("/metrics", "Prometheus or OpenMetrics text"),
    ("/clusters", "clusters and their endpoints, JSON"),
    ("/reload", "POST: read the configuration file again"),
];

pub(super) async fn answer<B>(shared: &Arc<Shared>, request: &Request<B>) -> Response<Body> {
    let host = request.headers().get(HOST).map(HeaderValue::as_bytes);
    if !host.is_none_or(is_own_host) {
        return plain(
            StatusCode::MISDIRECTED_REQUEST,
            "this listener answers to IP addresses and localhost only; a page from elsewhere must not read it through a name that it points here\n",
        );
    }
    if request.uri().path() == "/reload" {
        return reload(shared, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are answered here\n",
        );
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/" => plain(StatusCode::OK, listing("Outrigger's admin listener")),
        "/live" => live(shared).await,
        "/ready" => ready(shared),
        "/metrics" => metrics(shared, request),
        "/clusters" => clusters(&shared.clusters, request),
        _ => plain(StatusCode::NOT_FOUND, listing("no such path; there are")),
    }
}

/// A short text, with the header that keeps it out of caches.
pub(super) fn plain(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", Body::text(text))
}

async fn live(shared: &Shared) -> Response<Body> {
    match shared.control.pulse.take(PULSE_LIMIT).await {
        // Workers that no longer accept do not answer; the drain has a deadline of its own.
        Err(worker) if !shared.readiness.is_draining() => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("worker {worker} hangs, or no longer accepts\n"),
        ),
        _ => plain(StatusCode::OK, "live\n"),
    }
}

fn ready(shared: &Shared) -> Response<Body> {
    #[derive(Serialize)]
    struct Readiness {
        ready: bool,
        workers: usize,
        accepting: usize,
        reasons: Vec<&'static str>,
    }
    let reasons = shared.readiness.objections();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let readiness = Readiness {
        ready: reasons.is_empty(),
        workers: shared.metrics.workers(),
        accepting: shared.readiness.accepting(),
        reasons,
    };
    let mut text = serde_json::to_string(&readiness).expect("plain data is JSON");
    text.push('\n');
    respond(status, "application/json", Body::text(text))
}

async fn reload<B>(shared: &Shared, request: &Request<B>) -> Response<Body> {
    if *request.method() != Method::POST {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "POST it\n");
        let headers = refusal.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
        return refusal;
    }
    // Only browsers say so, for a page that they show.
    if request.headers().contains_key(ORIGIN) {
        return plain(StatusCode::FORBIDDEN, "no web page may ask for this\n");
    }
    let Some(outcome) = shared.reloads.outcome().await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the process is ending\n");
    };
    let status = match outcome {
        Outcome::Applied { .. } => StatusCode::OK,
        Outcome::Rejected { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Outcome::NoFile => StatusCode::CONFLICT,
    };
    let mut text = serde_json::to_string(&outcome).expect("plain data is JSON");
    text.push('\n');
    respond(status, "application/json", Body::text(text))
}

fn metrics<B>(shared: &Shared, request: &Request<B>) -> Response<Body> {
    let accepts = request.headers().get_all(ACCEPT).iter();
    let accept: Vec<_> = accepts.filter_map(|a| a.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    let body = if request.method() == Method::HEAD {
        Body::Text(None)
    } else {
        Body::Pieces(Box::new(Exposition::of(shared, format)))
    };
    respond(StatusCode::OK, format.content_type(), body)
}

fn clusters<B>(clusters: &Clusters, request: &Request<B>) -> Response<Body> {
    let body = if request.method() == Method::HEAD {
        Body::Text(None)
    } else {
        Body::Pieces(super::clusters::json(clusters.all()))
    };
    respond(StatusCode::OK, "application/json", body)
}

fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn listing(title: &str) -> String {
    let mut text = format!("{title}:\n");
    for (path, what) in PATHS {
        let _ = writeln!(text, "  {path:<10} {what}");
    }
    text
}

/// Whether a `Host` header names us by address or as localhost. Any other name was made to point
/// here, as a web page does that wants a browser to read this listener for it (DNS rebinding).
fn is_own_host(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bracketed = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || bracketed
            .unwrap_or(name)
            .parse()
            .is_ok_and(|ip: IpAddr| ip.is_ipv4() || bracketed.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_our_own_and_other_names_are_not() {
        for own in [
            "127.0.0.1",
            "10.1.2.3:15000",
            "[::1]:15000",
            "[::1]",
            "LocalHost:15000",
        ] {
            assert!(is_own_host(own.as_bytes()), "{own}");
        }
        for other in [
            "attacker.example",
            "localhost.attacker.example:15000",
            "127.0.0.1.attacker.example",
            "",
            ":15000",
            "[::1",
        ] {
            assert!(!is_own_host(other.as_bytes()), "{other}");
        }
        assert!(!is_own_host(b"\xff"));
    }
}
