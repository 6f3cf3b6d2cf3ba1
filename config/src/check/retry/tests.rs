use crate::check as check_file;

/// Path, message and fix of each problem of a route with `keys`, warnings included.
fn problems(keys: &str) -> Vec<(String, String)> {
    let text = format!(
        "routes: [{{ match: {{}}, cluster: a, {keys} }}]\nclusters: [{{ name: a, endpoints: [{{ address: '10.0.0.1:80' }}] }}]"
    );
    let found = check_file(&text).problems.into_iter();
    found
        .map(|p| (p.path, format!("{}; {}", p.message, p.fix)))
        .collect()
}

#[track_caller]
fn one_problem(keys: &str, path: &str, says: &str) {
    let problems = problems(keys);
    assert_eq!(problems.len(), 1, "{keys}: {problems:?}");
    let (at, message) = &problems[0];
    assert_eq!(at, &format!("routes[0].{path}"), "{keys}: {message}");
    assert!(message.contains(says), "{keys}: {message}");
}

#[test]
fn envoys_default_policies_are_without_a_problem() {
    for keys in [
        "timeout: 15s, idle_timeout: 5m, max_stream_duration: 1h, tunnel_idle_timeout: 1h",
        "grpc_timeout: { max: 10s, offset: 50ms }",
        "retry: {}",
        "retry: { on: [5xx, reset-before-request, retriable-4xx, envoy-ratelimited], num_retries: 3, per_try_timeout: 1s, hedge: { on_per_try_timeout: true } }",
        "retry: { on: [unavailable], non_idempotent: true }",
    ] {
        assert_eq!(problems(keys), Vec::new(), "{keys}");
    }
}

#[test]
fn a_time_of_nothing_is_refused_with_what_means_no_limit() {
    for (keys, path) in [
        ("timeout: 0s", "timeout"),
        ("idle_timeout: 0s", "idle_timeout"),
        ("max_stream_duration: 0s", "max_stream_duration"),
        ("tunnel_idle_timeout: 0s", "tunnel_idle_timeout"),
        ("grpc_timeout: { max: 0s }", "grpc_timeout.max"),
        ("retry: { per_try_timeout: 0s }", "retry.per_try_timeout"),
        (
            "retry: { per_try_idle_timeout: 0s }",
            "retry.per_try_idle_timeout",
        ),
        ("retry: { hedge: { delay: 0s } }", "retry.hedge.delay"),
    ] {
        one_problem(keys, path, "null");
    }
}

#[test]
fn conditions_that_can_never_hold_are_told() {
    one_problem("retry: { on: [] }", "retry.on", "nothing is reason");
    one_problem(
        "retry: { on: [5xx, http3-post-connect-failure] }",
        "retry.on[1]",
        "HTTP/3",
    );
    one_problem(
        "retry: { on: [reset, unavailable] }",
        "retry.on[1]",
        "non_idempotent",
    );
    one_problem(
        "retry: { on: [retriable-status-codes] }",
        "retry.on[0]",
        "retriable_status_codes",
    );
    one_problem(
        "retry: { retriable_status_codes: [429] }",
        "retry.retriable_status_codes",
        "retriable-status-codes",
    );
    one_problem(
        "retry: { on: [retriable-status-codes], retriable_status_codes: [429, 99] }",
        "retry.retriable_status_codes[1]",
        "200 to 599",
    );
}

#[test]
fn what_contradicts_itself_is_told() {
    one_problem(
        "retry: { back_off: { base_interval: 1s, max_interval: 500ms } }",
        "retry.back_off.max_interval",
        "shorter",
    );
    one_problem(
        "timeout: 1s, retry: { per_try_timeout: 1s }",
        "retry.per_try_timeout",
        "no effect",
    );
    one_problem("retry: { hedge: {} }", "retry.hedge", "second try");
    one_problem(
        "retry: { hedge: { on_per_try_timeout: true } }",
        "retry.hedge.on_per_try_timeout",
        "per_try_timeout",
    );
    one_problem(
        "retry: { on: [retriable-headers], retriable_headers: [{ name: a, exact: b, prefix: c }] }",
        "retry.retriable_headers[0]",
        "keep one",
    );
    one_problem(
        "retry: { rate_limited: { reset_headers: [{ name: 'no name' }] } }",
        "retry.rate_limited.reset_headers[0].name",
        "no header name",
    );
}

#[test]
fn defaults_are_checked_alike() {
    let found = check_file("defaults: { timeout: 0s, retry: { on: [] } }").problems;
    let paths: Vec<_> = found.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["defaults.timeout", "defaults.retry.on"]);
}
