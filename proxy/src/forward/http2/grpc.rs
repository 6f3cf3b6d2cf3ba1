//! What of gRPC has to be known to tell how a call went ("gRPC over HTTP/2", `PROTOCOL-HTTP2.md` of the
//! gRPC project).

use http::{HeaderMap, header::CONTENT_TYPE};

/// Whether headers are those of a call or of the answer to one.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let rest = content_type.and_then(|value| value.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How the call went, where these headers, or trailers, say so.
pub(super) fn status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
