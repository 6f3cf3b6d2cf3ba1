//! Responses that the proxy makes itself.

use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::failure::Failure;

/// RFC 9209.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The response that tells a client of `failure`: status code, and why in `Proxy-Status`.
pub(super) fn refusal(failure: Failure) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(failure.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let why = format!(
        "outrigger; error={}; details=\"{}\"",
        failure.proxy_error(),
        failure.details()
    );
    if let Ok(why) = HeaderValue::try_from(why) {
        response.headers_mut().insert(PROXY_STATUS, why);
    }
    response
}
