//! Responses made by the proxy: they tell what failed, in the body for people and in `Proxy-Status`
//! (RFC 9209) for programs.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{failure::Failure, route::Answer};

/// The name of this proxy in `Proxy-Status`.
const NAME: &str = "outrigger";

/// The response that tells of `failure`. Its connection is closed after it: what the client has
/// still under way can no longer be told from a next request.
pub fn http1(failure: Failure, is_head: bool) -> Vec<u8> {
    let status = failure.status();
    let body = body(failure);
    let head = format!(
        "HTTP/1.1 {status} {}\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\
         Connection: close\r\n\
         Proxy-Status: {}\r\n\
         \r\n",
        reason(status),
        body.len(),
        proxy_status(failure),
    );
    if is_head { head } else { head + &body }.into_bytes()
}

/// The same for HTTP/2: the head and the body, which an answer to HEAD goes without.
pub fn http2(failure: Failure) -> (Response<()>, Bytes) {
    let body = body(failure);
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(failure.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = head.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    if let Ok(status) = HeaderValue::try_from(proxy_status(failure)) {
        headers.insert(HeaderName::from_static("proxy-status"), status);
    }
    (head, body.into())
}

/// The same for gRPC: all of it is in trailers, which come in place of a head.
pub fn grpc(failure: Failure) -> Response<()> {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    *headers = grpc_trailers(failure);
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, grpc);
    head
}

/// The trailers that end a call of which the client has got a part.
pub fn grpc_trailers(failure: Failure) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", grpc_status(failure).into());
    // Percent-encoding would be due for what no failure's details have.
    let message = format!("{NAME}: {}", failure.details());
    for (name, value) in [
        ("grpc-message", message),
        ("proxy-status", proxy_status(failure)),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            trailers.insert(name, value);
        }
    }
    trailers
}

/// What a client makes of our HTTP status ("HTTP to gRPC Status Code Mapping" of the gRPC project);
/// of a time that has passed, what it would call that itself.
fn grpc_status(failure: Failure) -> u16 {
    const UNKNOWN: u16 = 2;
    const DEADLINE_EXCEEDED: u16 = 4;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    match failure {
        Failure::RequestTimeout
        | Failure::TryTimeout
        | Failure::StreamTimeout
        | Failure::IdleTimeout => DEADLINE_EXCEEDED,
        _ => match failure.status() {
            400 | 431 => INTERNAL,
            429 | 502..=504 => UNAVAILABLE,
            _ => UNKNOWN,
        },
    }
}

/// A route's own answer. Its connection goes on if `keeps_client`.
pub fn http1_answer(answer: &Answer, is_head: bool, keeps_client: bool) -> Vec<u8> {
    let status = answer.status.as_u16();
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status)).into_bytes();
    for (name, value) in &answer.headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if !answer.is_bodiless() {
        head.extend_from_slice(format!("content-length: {}\r\n", answer.body.len()).as_bytes());
    }
    let status = answer.failure.map_or_else(|| NAME.to_owned(), proxy_status);
    head.extend_from_slice(format!("proxy-status: {status}\r\n").as_bytes());
    if !keeps_client {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
    if !is_head {
        head.extend_from_slice(&answer.body);
    }
    head
}

/// The same for HTTP/2: the head, to which the body is added but for HEAD.
pub fn http2_answer(answer: &Answer) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = answer.status;
    let headers = head.headers_mut();
    headers.clone_from(&answer.headers);
    if !answer.is_bodiless() {
        headers.insert(header::CONTENT_LENGTH, answer.body.len().into());
    }
    let status = answer.failure.map_or_else(|| NAME.to_owned(), proxy_status);
    if let Ok(status) = HeaderValue::try_from(status) {
        headers.insert(HeaderName::from_static("proxy-status"), status);
    }
    head
}

pub fn body(failure: Failure) -> String {
    format!("{NAME}: {}\n", failure.details())
}

/// The value of `Proxy-Status`.
pub fn proxy_status(failure: Failure) -> String {
    // A quoted string of RFC 8941 holds printable ASCII only, `"` and `\` escaped.
    let mut details = String::new();
    for c in failure.details().chars() {
        match c {
            '"' | '\\' => details.extend(['\\', c]),
            ' '..='~' => details.push(c),
            _ => details.push('?'),
        }
    }
    format!(
        "{NAME}; error={}; details=\"{details}\"",
        failure.proxy_error()
    )
}

fn reason(status: u16) -> &'static str {
    let status = StatusCode::from_u16(status).ok();
    status.and_then(|s| s.canonical_reason()).unwrap_or("Error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_why_and_that_it_closes() {
        let response = String::from_utf8(http1(Failure::BadRequest("no Host"), false)).unwrap();
        assert!(
            response.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{response}"
        );
        assert!(
            response.contains(
                "\r\nProxy-Status: outrigger; error=http_request_error; details=\"no Host\"\r\n"
            ),
            "{response}"
        );
        assert!(response.contains("\r\nConnection: close\r\n"), "{response}");
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "outrigger: no Host\n");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())));
    }

    #[test]
    fn the_answer_to_head_has_no_body() {
        let response = http1(Failure::ConnectRefused, true);
        assert!(response.ends_with(b"\r\n\r\n"));
    }

    #[test]
    fn details_are_quoted_as_structured_fields_are() {
        let status = proxy_status(Failure::BadRequest("a \"b\" \\ \r\n"));
        assert!(status.ends_with(r#"details="a \"b\" \\ ??""#), "{status}");
    }
}
