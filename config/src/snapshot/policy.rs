//! What a request may take and how often it is tried, as one value that it holds while it lasts.

use std::{sync::Arc, time::Duration};

use crate::{Defaults, GrpcTimeout, Retry, Route, Span};

/// Time limits and retries of one route, or of `defaults`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestPolicy {
    pub timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub tunnel_idle_timeout: Option<Duration>,
    pub grpc_timeout: GrpcTimeout,
    pub retry: Option<Retry>,
}

impl RequestPolicy {
    /// None if nothing is asked for.
    pub(super) fn of_route(route: &Route) -> Option<Arc<Self>> {
        Self::of(
            [
                route.timeout,
                route.idle_timeout,
                route.max_stream_duration,
                route.tunnel_idle_timeout,
            ],
            &route.grpc_timeout,
            &route.retry,
        )
    }

    /// None if nothing is asked for.
    pub(super) fn of_defaults(defaults: &Defaults) -> Option<Arc<Self>> {
        Self::of(
            [
                defaults.timeout,
                defaults.idle_timeout,
                defaults.max_stream_duration,
                defaults.tunnel_idle_timeout,
            ],
            &defaults.grpc_timeout,
            &defaults.retry,
        )
    }

    fn of(
        times: [Option<Span>; 4],
        grpc_timeout: &Option<GrpcTimeout>,
        retry: &Option<Retry>,
    ) -> Option<Arc<Self>> {
        if times == [None; 4] && grpc_timeout.is_none() && retry.is_none() {
            return None;
        }
        let [
            timeout,
            idle_timeout,
            max_stream_duration,
            tunnel_idle_timeout,
        ] = times.map(|time| time.map(|span| span.0));
        Some(Arc::new(Self {
            timeout,
            idle_timeout,
            max_stream_duration,
            tunnel_idle_timeout,
            grpc_timeout: grpc_timeout.clone().unwrap_or_default(),
            retry: retry.clone().map(with_names_in_lower_case),
        }))
    }
}

/// As header names are compared.
fn with_names_in_lower_case(mut retry: Retry) -> Retry {
    let retriable = retry.retriable_headers.iter_mut().map(|h| &mut h.name);
    let reset = (retry.rate_limited.reset_headers.iter_mut()).map(|h| &mut h.name);
    for name in retriable.chain(reset) {
        name.make_ascii_lowercase();
    }
    retry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn policy(keys: &str) -> Option<Arc<RequestPolicy>> {
        let text = format!("routes: [{{ match: {{}}, cluster: original_destination{keys} }}]");
        RequestPolicy::of_route(&parse(&text).expect("it is valid").routes[0])
    }

    #[test]
    fn a_route_that_asks_for_nothing_has_none() {
        assert_eq!(policy(""), None);
        assert_eq!(RequestPolicy::of_defaults(&Defaults::default()), None);
    }

    #[test]
    fn whatever_is_asked_for_makes_one() {
        for keys in [
            ", timeout: 1s",
            ", idle_timeout: 1s",
            ", max_stream_duration: 1s",
            ", tunnel_idle_timeout: 1s",
            ", grpc_timeout: {}",
            ", retry: {}",
        ] {
            assert!(policy(keys).is_some(), "{keys}");
        }
    }

    #[test]
    fn header_names_are_kept_in_lower_case() {
        let policy = policy(", retry: { retriable_headers: [{ name: X-Again }] }");
        let retry = policy.and_then(|p| p.retry.clone()).expect("retries");
        assert_eq!(retry.retriable_headers[0].name, "x-again");
    }
}
