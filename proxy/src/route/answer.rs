//! Answers of a route's own.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use outrigger_config::{Abort, Action, HttpRequest};

use super::Routed;
use crate::{failure::Failure, forward::respond, rate_limit::Refusal};

/// What a client gets in an upstream's place, whichever HTTP it speaks.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// As what it is recorded; none if it is no failure.
    pub failure: Option<Failure>,
}

impl Routed {
    /// What the route answers itself. `authority` is the host that `request` asks for, with its port.
    pub fn answer(&self, request: &HttpRequest<'_>, authority: &[u8]) -> Option<Answer> {
        let route = self.route.as_ref()?;
        let mut answer = match route.decision.action() {
            Action::Forward(_) => return None,
            Action::Redirect(redirect) => {
                let location = route
                    .decision
                    .location(request, authority)
                    .unwrap_or_default();
                match HeaderValue::from_maybe_shared(Bytes::from(location)) {
                    Ok(location) => {
                        let mut answer = Answer::new(redirect.code.0, Bytes::new());
                        answer.headers.insert(header::LOCATION, location);
                        answer
                    }
                    // The host that it asks for is none.
                    Err(_) => Answer::new(400, Bytes::new()),
                }
            }
            Action::Respond(respond) => {
                let body = Bytes::copy_from_slice(respond.body.as_bytes());
                let mut answer = Answer::new(respond.status, body);
                if !answer.body.is_empty() {
                    answer.set(header::CONTENT_TYPE, "text/plain");
                }
                for (name, value) in &respond.headers {
                    if let Ok(name) = HeaderName::try_from(name.as_str()) {
                        answer.set(name, value);
                    }
                }
                answer
            }
        };
        if let Some(edits) = &route.response_headers {
            edits.apply(&mut answer.headers);
        }
        Some(answer)
    }
}

impl Answer {
    fn new(status: u16, body: Bytes) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: HeaderMap::new(),
            body,
            failure: None,
        }
    }

    /// Of what is over a limit: to a gRPC call its status, else the HTTP one.
    pub(crate) fn limited(refusal: Refusal, is_grpc: bool) -> Self {
        let failure = refusal.failure;
        let mut answer = if is_grpc {
            let mut answer = Self::new(200, Bytes::new());
            answer.set(header::CONTENT_TYPE, "application/grpc");
            let status = refusal.grpc_status.to_string();
            answer.set(HeaderName::from_static("grpc-status"), &status);
            answer.set(HeaderName::from_static("grpc-message"), failure.details());
            answer
        } else {
            let body = refusal
                .body
                .unwrap_or_else(|| respond::body(failure).into());
            let mut answer = Self::new(refusal.status, body);
            answer.set(header::CONTENT_TYPE, "text/plain; charset=utf-8");
            answer
        };
        answer.headers.extend(refusal.headers);
        answer.failure = Some(failure);
        answer
    }

    /// A fault's.
    pub(super) fn aborted(abort: &Abort) -> Self {
        let mut answer = match abort.grpc_status {
            None => {
                let body = Bytes::from_static(b"fault injected\n");
                let mut answer = Self::new(abort.status.unwrap_or(503), body);
                answer.set(header::CONTENT_TYPE, "text/plain");
                answer
            }
            Some(status) => {
                let mut answer = Self::new(200, Bytes::new());
                answer.set(header::CONTENT_TYPE, "application/grpc");
                answer.set(HeaderName::from_static("grpc-status"), &status.to_string());
                answer.set(HeaderName::from_static("grpc-message"), "fault injected");
                answer
            }
        };
        answer.failure = Some(Failure::FaultInjected);
        answer
    }

    /// Whether the status is one of an answer that never has a body.
    pub fn is_bodiless(&self) -> bool {
        matches!(self.status.as_u16(), 204 | 304)
    }

    fn set(&mut self, name: HeaderName, value: &str) {
        // What is written was checked with the rest of the configuration.
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(name, value);
        }
    }
}
