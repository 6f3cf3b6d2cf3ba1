//! Limits of a proxy's own, over HTTP/1 and HTTP/2.

use std::fs;

use crate::{
    client::{ask, connect, hourly, limited, say, statuses},
    support::{SOON, SVC4, World, wait_until},
};

#[test]
fn who_is_over_the_limit_is_told_when_to_come_back_and_keeps_its_connection() {
    let world = World::new();
    let nginx = world.nginx();
    let proxy = world.serve(&limited(&hourly("hello", 3, ", x_ratelimit_headers: true")));
    world.capture(&proxy);
    let mut client = connect(&world);
    for _ in 0..3 {
        let told = ask(&mut client, "");
        assert_eq!((told.status, &*told.body), (200, "hello\n"));
        assert_eq!(told.header("ratelimit"), None, "{}", told.head);
    }
    for _ in 0..2 {
        let told = ask(&mut client, "");
        assert_eq!(told.status, 429, "{}", told.head);
        assert_eq!(
            told.header("ratelimit-policy"),
            Some("\"hello\";q=3;w=10800")
        );
        let wait: u64 = told
            .header("retry-after")
            .expect("when")
            .parse()
            .expect("seconds");
        assert!((3_590..=3_600).contains(&wait), "{wait}");
        assert_eq!(
            told.header("ratelimit"),
            Some(&*format!("\"hello\";r=0;t={wait}"))
        );
        assert_eq!(told.header("x-ratelimit-limit"), Some("3"));
        assert_eq!(told.header("x-ratelimit-remaining"), Some("0"));
        let status = told.header("proxy-status").expect("whose answer it is");
        assert!(status.contains("error=http_request_denied"), "{status}");
        assert_eq!(told.body, "outrigger: over a rate limit\n");
    }
    wait_until(SOON, "they are logged", || nginx.requests().len() == 3);
    world.until_counted("outrigger_requests_total", "reason=\"rate_limited\"", 2.0);
    let decided = |result| {
        world.metric_sum(
            "outrigger_rate_limit_decisions_total",
            &format!("result=\"{result}\""),
        )
    };
    assert_eq!((decided("admitted"), decided("limited")), (3.0, 2.0));
}

#[test]
fn a_body_of_what_is_turned_away_is_nobodys_next_request() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve(&limited(&hourly("hello", 1, "")));
    world.capture(&proxy);
    let mut client = connect(&world);
    assert_eq!(ask(&mut client, "").status, 200);
    let inner = "GET /smuggled HTTP/1.1\r\nHost: svc\r\n\r\n";
    for body in [
        format!("Content-Length: {}\r\n\r\n{inner}", inner.len()),
        format!(
            "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
            inner.len()
        ),
    ] {
        let told = say(
            &mut client,
            &format!("POST /hello HTTP/1.1\r\nHost: svc\r\n{body}"),
        );
        assert_eq!(told.status, 429);
        assert_eq!(told.header("connection"), None, "{}", told.head);
    }
    let told = ask(&mut client, "");
    assert_eq!(
        told.status, 429,
        "the answer to the last request and to none before"
    );
    // Of this one the end has not arrived, so that nothing can follow it.
    let told = say(
        &mut client,
        "PUT /hello HTTP/1.1\r\nHost: svc\r\nContent-Length: 5\r\n\r\n12",
    );
    assert_eq!(
        (told.status, told.header("connection")),
        (429, Some("close"))
    );
}

#[test]
fn each_value_of_a_header_has_a_bucket_of_its_own_and_one_may_have_a_larger() {
    let world = World::new();
    let _nginx = world.nginx();
    let by_user = hourly(
        "user",
        2,
        ", actions: [{ request_headers: { header_name: X-User, descriptor_key: user } }], \
         descriptors: [{ entries: [{ key: user, value: vip }], token_bucket: { max_tokens: 4, fill_interval: 1h } }]",
    );
    let proxy = world.serve(&limited(&by_user));
    world.capture(&proxy);
    assert_eq!(statuses(&world, 3, "x-user: ada\r\n"), [200, 200, 429]);
    assert_eq!(statuses(&world, 3, "x-user: bob\r\n"), [200, 200, 429]);
    assert_eq!(
        statuses(&world, 5, "x-user: vip\r\n"),
        [200, 200, 200, 200, 429]
    );
    // Without the header the limit is not about it.
    assert_eq!(statuses(&world, 4, ""), [200; 4]);
    assert_eq!(
        world.metric("outrigger_rate_limit_buckets{limit=\"user\"}"),
        3.0
    );
}

#[test]
fn what_one_limit_turns_away_takes_no_token_of_another() {
    let world = World::new();
    let _nginx = world.nginx();
    let by_user = ", actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }]";
    let limits = [hourly("all", 3, ""), hourly("user", 1, by_user)].join(", ");
    let proxy = world.serve(&limited(&limits));
    world.capture(&proxy);
    assert_eq!(statuses(&world, 4, "x-user: ada\r\n"), [200, 429, 429, 429]);
    assert_eq!(statuses(&world, 1, "x-user: bob\r\n"), [200]);
    assert_eq!(statuses(&world, 2, "x-user: eve\r\n"), [200, 429]);
    assert_eq!(
        statuses(&world, 1, "x-user: max\r\n"),
        [429],
        "all three are taken"
    );
}

#[test]
fn a_clusters_limit_holds_whichever_route_leads_there_and_outlives_a_reload() {
    let world = World::new();
    let _nginx = world.nginx();
    let config = |route: &str, tokens| {
        format!(
            "routes: [{{ match: {{ host: a }}, cluster: svc }}, {{ match: {{ host: {route} }}, cluster: svc }}]\n\
             clusters:\n- name: svc\n  endpoints: [{{ address: '198.51.100.2:80' }}]\n  rate_limits: [{}]\n",
            hourly("svc", tokens, "")
        )
    };
    let proxy = world.serve(&config("b", 3));
    world.capture(&proxy);
    let get = |host: &str| {
        let request = format!("GET /hello HTTP/1.1\r\nHost: {host}\r\n\r\n");
        say(&mut connect(&world), &request).status
    };
    assert_eq!(
        [get("a"), get("b"), get("a"), get("b")],
        [200, 200, 200, 429]
    );
    let reloads = || world.metric_sum("outrigger_config_reloads_total", "result=\"applied\"");
    let before = reloads();
    let new = world.write("new.yaml", config("c", 3));
    fs::rename(new, world.dir().join("outrigger.yaml")).expect("a file of ours");
    wait_until(SOON, "the new file applies", || reloads() > before);
    assert_eq!([get("a"), get("c"), get("elsewhere")], [429, 429, 200]);
    let counted = world.metric_sum("outrigger_rate_limit_decisions_total", "result=\"limited\"");
    assert_eq!(counted, 3.0);
}

#[test]
fn under_defaults_each_destination_is_limited_by_itself() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve(&format!(
        "defaults: {{ rate_limits: [{}] }}\n",
        hourly("each", 1, "")
    ));
    world.capture(&proxy);
    assert_eq!(statuses(&world, 2, ""), [200, 429]);
    let other = world.app.try_sh(&format!(
        "curl -sS --http2-prior-knowledge -o /dev/null -w '%{{http_code}}' http://{SVC4}:8080/hello"
    ));
    assert_eq!(String::from_utf8_lossy(&other.stdout), "200");
}

#[test]
fn what_is_not_enforced_passes_and_is_counted() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve(&limited(&hourly(
        "shadow",
        1,
        ", enforced: 0, headers: always",
    )));
    world.capture(&proxy);
    assert_eq!(statuses(&world, 4, ""), [200; 4]);
    let decided = |result| {
        world.metric_sum(
            "outrigger_rate_limit_decisions_total",
            &format!("result=\"{result}\""),
        )
    };
    assert_eq!(
        (decided("admitted"), decided("shadowed"), decided("limited")),
        (1.0, 3.0, 0.0)
    );
}

#[test]
fn every_response_tells_what_is_left_where_that_is_asked_for() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve(&limited(&hourly("told", 10, ", headers: always")));
    world.capture(&proxy);
    let mut client = connect(&world);
    for left in [9, 8] {
        let told = ask(&mut client, "");
        assert_eq!((told.status, &*told.body), (200, "hello\n"));
        let limit = told.header("ratelimit").expect("what is left");
        assert!(
            limit.starts_with(&format!("\"told\";r={left};t=")),
            "{limit}"
        );
        assert_eq!(
            told.header("ratelimit-policy"),
            Some("\"told\";q=10;w=36000")
        );
    }
    let head = world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge -D - -o /dev/null http://{SVC4}:8080/hello"
    ));
    assert!(head.contains("ratelimit: \"told\";r=7;t="), "{head}");
}

#[test]
fn a_request_may_wait_for_its_token() {
    let world = World::new();
    let _nginx = world.nginx();
    let slow = "{ name: slow, token_bucket: { max_tokens: 1, tokens_per_fill: 10, fill_interval: 1s }, max_delay: 10s }";
    let proxy = world.serve(&limited(slow));
    world.capture(&proxy);
    let begun = std::time::Instant::now();
    assert_eq!(statuses(&world, 4, ""), [200; 4]);
    // Three of them came 100 ms after the one before.
    assert!(begun.elapsed().as_millis() >= 299, "{:?}", begun.elapsed());
    assert!(world.metric("outrigger_rate_limit_delayed_total{limit=\"slow\"}") >= 1.0);
}

/// `curl`'s view of one HTTP/2 request: the status and the head.
fn h2(world: &World, options: &str) -> String {
    world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge -i {options} http://{SVC4}:8080/hello"
    ))
}

#[test]
fn streams_are_limited_and_grpc_calls_told_in_their_own_words() {
    let world = World::new();
    let _nginx = world.nginx();
    let config = |exhausted: bool| {
        limited(&hourly(
            "h2",
            2,
            &format!(", rate_limited_as_resource_exhausted: {exhausted}"),
        ))
    };
    let proxy = world.serve(&config(false));
    world.capture(&proxy);
    for _ in 0..2 {
        assert!(h2(&world, "").starts_with("HTTP/2 200"));
    }
    let head = h2(&world, "");
    assert!(head.starts_with("HTTP/2 429"), "{head}");
    assert!(
        head.contains("retry-after: ") && head.ends_with("over a rate limit\n"),
        "{head}"
    );
    let call = "-X POST -H 'content-type: application/grpc' -H 'te: trailers'";
    let head = h2(&world, call);
    assert!(head.starts_with("HTTP/2 200"), "{head}");
    assert!(
        head.contains("grpc-status: 14") && head.contains("ratelimit: "),
        "{head}"
    );
    let told = world
        .app
        .sh(&format!("h2load -n 20 -c 2 -m 5 http://{SVC4}:8080/hello"));
    assert!(
        told.contains("status codes: 0 2xx, 0 3xx, 20 4xx, 0 5xx"),
        "{told}"
    );

    let reloads = || world.metric_sum("outrigger_config_reloads_total", "result=\"applied\"");
    let before = reloads();
    let new = world.write("new.yaml", config(true));
    fs::rename(new, world.dir().join("outrigger.yaml")).expect("a file of ours");
    wait_until(SOON, "the new file applies", || reloads() > before);
    let head = h2(&world, call);
    assert!(head.contains("grpc-status: 8"), "{head}");
}
