//! The head of a request, as routes see it and as it is sent on.

use http::{HeaderMap, HeaderValue, Method, Request, Version, header::HOST, request::Parts};
use outrigger_config::{Headers, HttpRequest};

use super::account::Account;
use crate::{dispatch::without_port, forward::policed::ATTEMPT_COUNT, retry::grpc};

/// As routes see it.
pub(super) fn as_request<'a>(head: &'a Parts, headers: &'a Lines<'a>) -> HttpRequest<'a> {
    HttpRequest {
        host: authority(head).and_then(without_port),
        method: head.method.as_str(),
        path: head.uri.path_and_query().map(|p| p.as_str().as_bytes()),
        headers,
    }
}

/// The host that a request names, with its port.
pub(super) fn authority(head: &Parts) -> Option<&[u8]> {
    let authority = head.uri.authority().map(|a| a.as_str().as_bytes());
    authority.or(head.headers.get(HOST).map(HeaderValue::as_bytes))
}

/// The request as it is sent on: as it came, but for what its route's policy tells the endpoint. Cloned,
/// because h2 does not give back what an upstream refuses.
pub(super) fn outgoing(account: &Account) -> Request<()> {
    let head = &account.head;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    // Without `:authority` h2 takes requests of an older version only, and gives them the scheme.
    let is_without_authority = head.uri.authority().is_none() && head.method != Method::CONNECT;
    *request.version_mut() = if is_without_authority {
        Version::HTTP_11
    } else {
        Version::HTTP_2
    };
    if let Some(protocol) = head.extensions.get::<h2::ext::Protocol>() {
        request.extensions_mut().insert(protocol.clone());
    }
    if let Some(policed) = &account.policed {
        let timeout = policed.grpc_timeout();
        let attempt = policed.attempt().map(|attempt| attempt.to_string());
        for (name, value) in [(grpc::TIMEOUT, timeout), (ATTEMPT_COUNT, attempt)] {
            if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
                request.headers_mut().insert(name, value);
            }
        }
    }
    account.write_trace(request.headers_mut());
    request
}

/// The header lines as routes see them.
#[derive(Debug)]
pub(super) struct Lines<'a>(pub(super) &'a HeaderMap);

impl Headers for Lines<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for value in self.0.get_all(name) {
            visit(value.as_bytes());
        }
    }
}
