//! What the admin listener answers.

use std::{sync::Arc, time::Duration};

use hyper::{
    Request, Response, StatusCode,
    header::{
        ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE,
    },
};
use serde::Serialize;

use super::{
    body::{Body, Pieces},
    guard::{self, Refusal},
    heap::Heap,
    listener::From,
    paths::{self, Ask},
    profile,
    reports::{ConfigReport, ConnectionsReport, LevelsReport, RoutesReport},
};
use crate::{
    observe::{Exposition, Format},
    reload::Outcome,
    shared::Shared,
};

/// How long a worker may take to its next turn: a healthy one takes milliseconds, and probes wait for
/// a second as a rule.
const PULSE_LIMIT: Duration = Duration::from_millis(900);

/// For one answer to be made, unless it is a profile; all of them are made of what is in memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of each worker that are shown.
const SHOWN_CONNECTIONS: usize = 1000;

/// Keeps browsers from guessing types, framing and running anything.
const SAFETY: [(&str, &str); 3] = [
    (
        "content-security-policy",
        "default-src 'none'; frame-ancestors 'none'",
    ),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
];

pub(super) async fn answer<B>(
    shared: &Arc<Shared>,
    from: From,
    request: &Request<B>,
) -> Response<Body> {
    let mut response = match asked(shared, from, request) {
        Ok(ask) => told(shared, ask, request).await,
        Err(refusal) => *refusal,
    };
    if request.method() == hyper::Method::HEAD {
        *response.body_mut() = Body::Text(None);
    }
    for (name, value) in SAFETY {
        let value = HeaderValue::from_static(value);
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    response
}

/// What is asked for, by somebody who may.
fn asked<B>(shared: &Shared, from: From, request: &Request<B>) -> Result<Ask, Box<Response<Body>>> {
    let settings = shared.configuration.settings();
    let admin = settings.admin.clone().unwrap_or_default();
    let is_order = request.method() == hyper::Method::POST;
    let path = paths::find(request.uri().path(), is_order);
    // What is not there is told to whoever could have asked for what is.
    let kind = path.map_or(guard::Kind::Read, |path| path.kind);
    let (method, headers) = (request.method(), request.headers());
    let token = &shared.admin_token;
    match (
        guard::admit(&admin, token, from, kind, method, headers),
        path,
    ) {
        (Ok(()), Some(path)) => Ok(path.asks),
        (Ok(()), None) => Err(Box::new(plain(
            StatusCode::NOT_FOUND,
            paths::listing("no such path; there are"),
        ))),
        (Err(Refusal { status, text }), _) => {
            let mut refusal = plain(status, text);
            let more = match (status, kind) {
                (StatusCode::METHOD_NOT_ALLOWED, guard::Kind::Order) => Some((ALLOW, "POST")),
                (StatusCode::METHOD_NOT_ALLOWED, _) => Some((ALLOW, "GET, HEAD")),
                (StatusCode::UNAUTHORIZED, _) => Some((WWW_AUTHENTICATE, "Bearer")),
                _ => None,
            };
            if let Some((name, value)) = more {
                let value = HeaderValue::from_static(value);
                refusal.headers_mut().insert(name, value);
            }
            Err(Box::new(refusal))
        }
    }
}

async fn told<B>(shared: &Arc<Shared>, ask: Ask, request: &Request<B>) -> Response<Body> {
    if ask == Ask::Profile {
        return profile::answer(query(request, "seconds")).await;
    }
    let telling = async {
        match ask {
            Ask::Index => index(request),
            Ask::Live => live(shared).await,
            Ask::Ready => ready(shared),
            Ask::Metrics => metrics(shared, request),
            Ask::Config => json(StatusCode::OK, &ConfigReport::of(shared)),
            Ask::Clusters => pieces(super::clusters::json(shared.clusters.all())),
            Ask::Connections => connections(shared, request).await,
            Ask::Routes => json(StatusCode::OK, &RoutesReport::of(shared)),
            Ask::Logging => logging(shared),
            Ask::Heap => match Heap::read() {
                Some(heap) => json(StatusCode::OK, &heap),
                None => plain(
                    StatusCode::NOT_IMPLEMENTED,
                    "this allocator does not tell\n",
                ),
            },
            Ask::SetLogging => set_logging(shared, query(request, "level")),
            Ask::Reload => reload(shared).await,
            Ask::Drain => {
                tracing::info!("POST /drain: stopping");
                shared.drain_asked.notify_one();
                plain(
                    StatusCode::ACCEPTED,
                    "draining; it ends when nothing is under way\n",
                )
            }
            Ask::Fail | Ask::Ok => {
                let is_failed = ask == Ask::Fail;
                tracing::info!(is_failed, "health check set by the admin listener");
                shared.readiness.set_failed(is_failed);
                plain(StatusCode::OK, "ok\n")
            }
            Ask::Profile => unreachable!("answered above"),
        }
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, telling).await {
        Ok(response) => response,
        Err(_) => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "it took longer than 5 s; try again later\n",
        ),
    }
}

/// A short text, with the header that keeps it out of caches.
pub(super) fn plain(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", Body::text(text))
}

pub(super) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_string(value).expect("plain data is JSON");
    text.push('\n');
    respond(status, "application/json", Body::text(text))
}

fn pieces(pieces: Pieces) -> Response<Body> {
    respond(StatusCode::OK, "application/json", Body::Pieces(pieces))
}

fn index<B>(request: &Request<B>) -> Response<Body> {
    let accepts = request.headers().get(ACCEPT).map(HeaderValue::as_bytes);
    if accepts.is_some_and(|accept| memchr::memmem::find(accept, b"text/html").is_some()) {
        let page = Body::text(paths::page());
        return respond(StatusCode::OK, "text/html; charset=utf-8", page);
    }
    plain(StatusCode::OK, paths::listing("Outrigger's admin listener"))
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
    let readiness = super::reports::Readiness::of(shared);
    let status = match readiness.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    json(status, &readiness)
}

async fn connections<B>(shared: &Shared, request: &Request<B>) -> Response<Body> {
    let limit = match query(request, "limit").map(str::parse) {
        None => SHOWN_CONNECTIONS,
        Some(Ok(limit)) => limit,
        Some(Err(_)) => {
            return plain(
                StatusCode::BAD_REQUEST,
                "limit is no number; write ?limit=1000\n",
            );
        }
    };
    let listings = shared.questions.ask(limit, PULSE_LIMIT).await;
    json(StatusCode::OK, &ConnectionsReport::of(listings))
}

fn logging(shared: &Shared) -> Response<Body> {
    match shared.levels.get() {
        Some(levels) => json(
            StatusCode::OK,
            &LevelsReport {
                filter: levels.filter(),
            },
        ),
        None => plain(
            StatusCode::NOT_IMPLEMENTED,
            "this program's log has no levels\n",
        ),
    }
}

fn set_logging(shared: &Shared, level: Option<&str>) -> Response<Body> {
    let Some(levels) = shared.levels.get() else {
        return plain(
            StatusCode::NOT_IMPLEMENTED,
            "this program's log has no levels\n",
        );
    };
    let Some(level) = level.and_then(unescape) else {
        return plain(
            StatusCode::BAD_REQUEST,
            "no level is given; write ?level=debug, or by module ?level=info,outrigger_proxy::accept=debug\n",
        );
    };
    match levels.set(&level) {
        Ok(()) => {
            tracing::info!(filter = %levels.filter(), "log filter set by the admin listener");
            logging(shared)
        }
        Err(problem) => plain(StatusCode::BAD_REQUEST, format!("{problem}\n")),
    }
}

async fn reload(shared: &Shared) -> Response<Body> {
    let Some(outcome) = shared.reloads.outcome().await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the process is ending\n");
    };
    let status = match outcome {
        Outcome::Applied { .. } => StatusCode::OK,
        Outcome::Rejected { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Outcome::NoFile => StatusCode::CONFLICT,
    };
    json(status, &outcome)
}

fn metrics<B>(shared: &Shared, request: &Request<B>) -> Response<Body> {
    let accepts = request.headers().get_all(ACCEPT).iter();
    let accept: Vec<_> = accepts.filter_map(|a| a.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    let body = match *request.method() {
        hyper::Method::HEAD => Body::Text(None),
        _ => Body::Pieces(Box::new(Exposition::of(shared, format))),
    };
    respond(StatusCode::OK, format.content_type(), body)
}

/// The value of a query parameter, as it is written.
fn query<'r, B>(request: &'r Request<B>, name: &str) -> Option<&'r str> {
    let query = request.uri().query()?;
    query.split('&').find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        (key == name).then_some(value)
    })
}

/// With what is percent-encoded in it decoded.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_whole_name_and_decoded() {
        let request = Request::get("/logging?xlevel=no&level=a%3Ddebug%2Cinfo").body(());
        let request = request.expect("a request");
        let level = query(&request, "level").expect("it is there");
        assert_eq!(unescape(level).as_deref(), Some("a=debug,info"));
        assert_eq!(query(&request, "vel"), None);
        assert_eq!(unescape("%4"), None);
        assert_eq!(unescape("%zz"), None);
        assert_eq!(unescape("%ff"), None);
    }
}
