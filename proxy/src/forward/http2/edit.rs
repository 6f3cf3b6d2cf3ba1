//! What a route changes in requests.

use bytes::Bytes;
use http::{
    HeaderValue, Uri,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::account::Account;
use crate::route::Route;

/// What a request said before its route changed it, for the record.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) uri: Uri,
    pub(super) host: Option<HeaderValue>,
}

impl Asked {
    fn of(head: &Parts) -> Self {
        Self {
            uri: head.uri.clone(),
            host: head.headers.get(HOST).cloned(),
        }
    }
}

pub(super) fn request(account: &mut Account, route: &Route) {
    let head = &mut account.head;
    let path = head.uri.path_and_query().map(|p| p.as_str().as_bytes());
    let rewritten = path.and_then(|path| route.decision.rewritten(path));
    let host = route
        .decision
        .settings
        .rewrite
        .as_ref()
        .and_then(|r| r.host.as_deref());
    if rewritten.is_some() || host.is_some() {
        account
            .asked
            .get_or_insert_with(|| Box::new(Asked::of(head)));
    }
    if let Some(path) = rewritten
        && let Ok(path) = PathAndQuery::from_maybe_shared(Bytes::from(path))
    {
        let mut parts = head.uri.clone().into_parts();
        parts.path_and_query = Some(path);
        replace(&mut head.uri, parts);
    }
    if let Some(edits) = &route.request_headers {
        edits.apply(&mut head.headers);
    }
    if let Some(host) = host {
        name_host(head, host);
    }
}

/// Has the request ask for `host`.
pub(super) fn set_host(account: &mut Account, host: &str) {
    let head = &mut account.head;
    account
        .asked
        .get_or_insert_with(|| Box::new(Asked::of(head)));
    name_host(head, host);
}

/// As the authority, and as the host where one stands beside it or in its place.
pub(super) fn name_host(head: &mut Parts, host: &str) {
    let has_authority = head.uri.authority().is_some();
    if has_authority && let Ok(authority) = host.parse::<Authority>() {
        let mut parts = head.uri.clone().into_parts();
        parts.authority = Some(authority);
        replace(&mut head.uri, parts);
    }
    if (!has_authority || head.headers.contains_key(HOST))
        && let Ok(value) = HeaderValue::from_str(host)
    {
        head.headers.insert(HOST, value);
    }
}

fn replace(uri: &mut Uri, parts: http::uri::Parts) {
    // It had the same parts before.
    if let Ok(replaced) = Uri::from_parts(parts) {
        *uri = replaced;
    }
}
