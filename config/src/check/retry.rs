//! What is wrong with time limits and retries.

use super::{Findings, above_zero};
use crate::{Defaults, GrpcTimeout, Retry, RetryOn, Route, Span};

pub(super) fn of_route(route: &Route, path: &str, to: &mut Findings) {
    let times = [
        ("timeout", route.timeout),
        ("idle_timeout", route.idle_timeout),
        ("max_stream_duration", route.max_stream_duration),
        ("tunnel_idle_timeout", route.tunnel_idle_timeout),
    ];
    all(times, &route.grpc_timeout, &route.retry, path, to);
}

pub(super) fn of_defaults(defaults: &Defaults, to: &mut Findings) {
    let times = [
        ("timeout", defaults.timeout),
        ("idle_timeout", defaults.idle_timeout),
        ("max_stream_duration", defaults.max_stream_duration),
        ("tunnel_idle_timeout", defaults.tunnel_idle_timeout),
    ];
    all(
        times,
        &defaults.grpc_timeout,
        &defaults.retry,
        "defaults",
        to,
    );
}

fn all(
    times: [(&str, Option<Span>); 4],
    grpc_timeout: &Option<GrpcTimeout>,
    retry: &Option<Retry>,
    path: &str,
    to: &mut Findings,
) {
    for (key, time) in times {
        limit(time, &format!("{path}.{key}"), to);
    }
    if let Some(grpc) = grpc_timeout {
        limit(grpc.max, &format!("{path}.grpc_timeout.max"), to);
    }
    if let Some(policy) = retry {
        let [(_, timeout), ..] = times;
        one(policy, timeout, &format!("{path}.retry"), to);
    }
}

fn one(retry: &Retry, timeout: Option<Span>, path: &str, to: &mut Findings) {
    limit(
        retry.per_try_timeout,
        &format!("{path}.per_try_timeout"),
        to,
    );
    limit(
        retry.per_try_idle_timeout,
        &format!("{path}.per_try_idle_timeout"),
        to,
    );
    above_zero(
        retry.back_off.base_interval,
        &format!("{path}.back_off.base_interval"),
        to,
    );
    to.error_if(
        retry
            .back_off
            .max_interval
            .is_some_and(|max| max < retry.back_off.base_interval),
        &format!("{path}.back_off.max_interval"),
        "it is shorter than base_interval; raise it, or lower the other",
    );
    if let (Some(one), Some(all)) = (retry.per_try_timeout, timeout)
        && one >= all
    {
        to.warning(
            format!("{path}.per_try_timeout"),
            "it has no effect, for the route's `timeout` passes before it; lower it, or raise the other".into(),
        );
    }
    conditions(retry, path, to);
    for (index, header) in retry.retriable_headers.iter().enumerate() {
        let path = format!("{path}.retriable_headers[{index}]");
        name(&header.name, &path, to);
        to.error_if(
            header.exact.is_some() && header.prefix.is_some(),
            &path,
            "`exact` leaves nothing to `prefix`; keep one of them",
        );
    }
    for (index, header) in retry.rate_limited.reset_headers.iter().enumerate() {
        name(
            &header.name,
            &format!("{path}.rate_limited.reset_headers[{index}]"),
            to,
        );
    }
    if let Some(hedge) = &retry.hedge {
        limit(hedge.delay, &format!("{path}.hedge.delay"), to);
        to.error_if(
            hedge.delay.is_none() && !hedge.on_per_try_timeout,
            &format!("{path}.hedge"),
            "nothing begins a second try; set `delay` or `on_per_try_timeout`",
        );
        to.error_if(
            hedge.on_per_try_timeout && retry.per_try_timeout.is_none(),
            &format!("{path}.hedge.on_per_try_timeout"),
            "there is no such timeout; set `per_try_timeout`",
        );
    }
}

fn conditions(retry: &Retry, path: &str, to: &mut Findings) {
    let at = |on: RetryOn| retry.on.iter().position(|o| *o == on);
    to.error_if(
        retry.on.is_empty(),
        &format!("{path}.on"),
        "nothing is reason to retry; write some, such as `[gateway-error, reset]`, or leave the key out",
    );
    for (on, list, is_empty) in [
        (
            RetryOn::RetriableStatusCodes,
            "retriable_status_codes",
            retry.retriable_status_codes.is_empty(),
        ),
        (
            RetryOn::RetriableHeaders,
            "retriable_headers",
            retry.retriable_headers.is_empty(),
        ),
    ] {
        match at(on) {
            Some(at) if is_empty => to.warning(
                format!("{path}.on[{at}]"),
                format!("it never holds, for `{list}` is empty; write some there"),
            ),
            None if !is_empty => to.warning(
                format!("{path}.{list}"),
                format!("it has no effect; add `{}` to `on`", list.replace('_', "-")),
            ),
            _ => {}
        }
    }
    if let Some(bad) = (retry.retriable_status_codes.iter()).position(|s| !(200..600).contains(s)) {
        to.error(
            format!("{path}.retriable_status_codes[{bad}]"),
            "this is no status of an answer; write a number from 200 to 599".into(),
        );
    }
    if let Some(at) = at(RetryOn::Http3PostConnectFailure) {
        to.warning(
            format!("{path}.on[{at}]"),
            "it never holds, for no endpoint is spoken to in HTTP/3; remove it".into(),
        );
    }
    if !retry.non_idempotent
        && let Some(at) = retry.on.iter().position(|on| on.is_grpc())
    {
        to.warning(
            format!("{path}.on[{at}]"),
            "it never leads to a retry, for gRPC requests are POSTs that the endpoint has seen; set `non_idempotent: true` if your methods may be repeated".into(),
        );
    }
}

fn name(name: &str, path: &str, to: &mut Findings) {
    let is_token = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    to.error_if(
        !is_token,
        &format!("{path}.name"),
        "this is no header name; write one such as `retry-after`",
    );
}

/// Zero would let nothing through; Envoy's users write it for "no limit".
fn limit(time: Option<Span>, path: &str, to: &mut Findings) {
    to.error_if(
        time.is_some_and(|time| time.0.is_zero()),
        path,
        "0 would let nothing through; write `null`, or leave the key out, for no limit",
    );
}

#[cfg(test)]
mod tests;
