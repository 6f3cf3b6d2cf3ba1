use super::*;
use crate::{Percent, Place};

fn problems(text: &str) -> Vec<Problem> {
    check(text).problems
}

fn places(text: &str) -> Vec<(u32, u32)> {
    let place = |p: &Problem| p.at.map(|Place { line, column, .. }| (line, column));
    problems(text).iter().filter_map(place).collect()
}

#[test]
fn nothing_written_means_every_default() {
    for text in [
        "",
        "# only a comment\n",
        "---\n",
        "capture:\n  # lease: 5s\nroutes:\n",
    ] {
        assert_eq!(parse(text), Ok(Settings::default()), "{text:?}");
    }
}

#[test]
fn everything_wrong_is_told_at_once_with_its_place_and_fix() {
    let text = r#"listen: ["0.0.0.0:15001"]
limits:
  max_conections: 5
capture:
  proxy_uid: root
  lease: 300ms
timeouts: { drain: 5 }
timeouts: {}
clusters:
  - name: a
    endpoints: [{ address: nowhere }, { address: "10.0.0.1:80", wieght: 0 }]
    load_balancer: least_requests
  - name: b
    dns: { name: x, port: 1 }
    panic_threshold: 101
  - name: b
    endpoints: [{ address: "10.0.0.1:80", priority: 2 }]
    load_balancer: { maglev: { table_size: 100 } }
routes:
  - match: { destination: 10.0.0.0/40, host: "a*b" }
    cluster: c
  - match: { port: 0 }
    cluster: bb
  - cluster: a
"#;
    let problems = problems(text);
    let told: Vec<_> = problems
        .iter()
        .map(|p| (p.at.unwrap().line, p.path.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (1, "listen"),
            (3, "limits.max_conections"),
            (5, "capture.proxy_uid"),
            (6, "capture.lease"),
            (7, "timeouts.drain"),
            (8, ""),
            (11, "clusters[0].endpoints[0].address"),
            (11, "clusters[0].endpoints[1].wieght"),
            (12, "clusters[0].load_balancer"),
            (15, "clusters[1].panic_threshold"),
            (16, "clusters[2].name"),
            (17, "clusters[2].endpoints[0].priority"),
            (18, "clusters[2].load_balancer.maglev.table_size"),
            (20, "routes[0].match.destination"),
            (22, "routes[1].match.port"),
            (24, "routes[2]"),
        ],
        "{problems:#?}"
    );
    for problem in &problems {
        assert!(!problem.fix.is_empty(), "{problem}");
        assert!(problem.line.is_some(), "{problem}");
    }
}

#[test]
fn a_typo_is_answered_with_what_was_meant() {
    for (text, meant) in [
        ("limits:\n  max_conections: 5\n", "`max_connections`"),
        ("access_log: { format: jsno }", "`json`"),
        (
            "routes: [{ match: {}, cluster: pay }]\nclusters: [{ name: pays, dns: { name: x, port: 1 } }]",
            "`pays`",
        ),
    ] {
        let fix = &problems(text)[0].fix;
        assert!(
            fix.contains("did you mean") && fix.contains(meant),
            "{text}: {fix}"
        );
    }
}

#[test]
fn a_lease_that_no_kernel_can_keep_is_refused() {
    for lease in ["300ms", "450ms", "61s", "1s 1ns"] {
        let text = format!("capture:\n  lease: {lease}\n");
        assert_eq!(places(&text), [(2, 10)], "{lease}");
    }
    for lease in ["400ms", "2s", "1m"] {
        assert!(parse(&format!("capture:\n  lease: {lease}\n")).is_ok());
    }
}

#[test]
fn a_value_of_the_wrong_kind_says_what_to_write() {
    for (text, write) in [
        ("listen: 5", "a list"),
        ("listen: [nowhere]", "an address and port"),
        ("admin: 127.0.0.1", "an address and port"),
        ("access_log: stdout", "keys with values"),
        ("workers: 0", "from 1 on"),
        ("workers: -1", "a whole number"),
        ("capture: { proxy_uid: root }", "a whole number"),
        ("capture: { exclude: { cidrs: [10.0.0.1] } }", "a network"),
        ("timeouts: { drain: 5 }", "a unit"),
        ("timeouts: { drain: [] }", "text"),
        ("[]", "keys with values"),
    ] {
        let problems = problems(text);
        assert!(problems[0].fix.contains(write), "{text}: {problems:?}");
    }
}

#[test]
fn the_admin_listener_has_a_port_of_its_own() {
    assert_eq!(places("admin: 127.0.0.1:15001\n"), [(1, 8)]);
}

#[test]
fn a_balancer_is_a_bare_name_or_has_values() {
    let text = |balancer| {
        format!("clusters: [{{ name: a, dns: {{ name: x, port: 1 }}, load_balancer: {balancer} }}]")
    };
    let balancer = |written| {
        parse(&text(written)).unwrap().clusters[0]
            .load_balancer
            .clone()
    };
    assert_eq!(
        balancer("least_request"),
        balancer("{ least_request: { choices: 2 } }")
    );
    assert_eq!(balancer("round_robin"), balancer("{ round_robin: {} }"));
    assert_ne!(
        balancer("maglev"),
        balancer("{ maglev: { hash_on: { header: x-user } } }")
    );
    let cookie = balancer("{ ring_hash: { hash_on: { cookie: { name: c, ttl: 1h } } } }");
    assert!(matches!(cookie, crate::LoadBalancer::RingHash(_)));
    assert!(parse(&text("{ maglev: { hash_on: header } }")).is_err());
}

#[test]
fn what_is_legal_and_suspicious_is_a_warning_and_no_error() {
    let text = "clusters: [{ name: a, endpoints: [{ address: \"10.0.0.1:80\" }], zone_aware: {} }]\nroutes:\n- { match: {}, cluster: original_destination }\n- { match: { port: 80 }, cluster: original_destination }\n";
    let checked = check(text);
    assert!(checked.settings.is_some());
    assert_eq!(checked.problems.len(), 3, "{:#?}", checked.problems);
    assert!(!checked.problems.iter().any(Problem::is_error));
}

#[test]
fn a_required_key_that_is_wrong_is_not_called_missing_too() {
    let problems = problems("clusters: [{ name: a, endpoints: [{ address: x, weight: y }] }]");
    assert_eq!(problems.len(), 2, "{problems:#?}");
}

#[test]
fn a_route_to_a_cluster_that_cannot_be_read_is_no_second_problem() {
    let text = "clusters: [{ name: a, dns: 5 }]\nroutes: [{ match: {}, cluster: a }]";
    assert_eq!(problems(text).len(), 1, "{:#?}", problems(text));
}

#[test]
fn what_is_written_is_read() {
    let text = r#"
defaults: { circuit_breaker: {}, connect_timeout: 2s }
clusters:
  - name: payments
    endpoints: [{ address: "10.0.0.1:8080", weight: 3, labels: { version: 1.0 }, locality: { zone: a } }]
    panic_threshold: 0
    outlier_detection: { consecutive_5xx: null, success_rate: { stdev_factor: 2 } }
    health_check: { http: { path: /healthz }, port: 9000 }
routes:
  - match: { destination: 203.0.113.7, port: 80-81, host: "*.internal" }
    cluster: payments
    subset: { version: "1.0" }
"#;
    let settings = parse(text).unwrap();
    let cluster = &settings.clusters[0];
    assert_eq!(cluster.endpoints[0].labels["version"], "1.0");
    assert_eq!(cluster.panic_threshold, Percent(0));
    let outlier = cluster.outlier_detection.as_ref().unwrap();
    assert_eq!(outlier.consecutive_5xx, None);
    assert_eq!(
        settings.defaults.circuit_breaker.unwrap().max_requests,
        1024
    );
    assert_eq!(
        settings.routes[0].matches.destination.unwrap().to_string(),
        "203.0.113.7/32"
    );
}

#[test]
fn what_is_written_out_can_be_read_again() {
    let text = "clusters: [{ name: a, endpoints: [{ address: \"10.0.0.1:80\" }], load_balancer: maglev, health_check: { tcp: {} } }]\nroutes: [{ match: { port: 1-2 }, cluster: a }]";
    let settings = parse(text).unwrap();
    let written = serde_json::to_string(&settings).unwrap();
    assert_eq!(parse(&written), Ok(settings));
}

#[test]
fn a_thousand_problems_are_not_all_told() {
    let text = format!("listen: [{}]", vec!["x"; 1000].join(", "));
    let problems = problems(&text);
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert!(problems.last().unwrap().message.contains("more"));
}

#[test]
fn a_file_of_endpoints_is_a_list_of_them() {
    let endpoints =
        parse_endpoints("- address: 10.0.0.1:80\n- { address: \"[::1]:80\", weight: 2 }\n");
    assert_eq!(endpoints.unwrap().len(), 2);
    assert_eq!(parse_endpoints(""), Ok(Vec::new()));
    let problems = parse_endpoints("- address: 10.0.0.1:80\n- address: 10.0.0.1:80\n").unwrap_err();
    assert_eq!(problems[0].at.unwrap().line, 2);
}

/// A hundred warnings had become an error, and errors after them were lost.
#[test]
fn many_warnings_do_not_make_an_error_and_hide_none() {
    let mut text = "clusters:\n".to_owned();
    for cluster in 0..300 {
        text +=
            &format!("  - {{ name: c{cluster}, endpoints: [{{ address: '192.0.2.1:80' }}] }}\n");
    }
    let checked = check(&text);
    assert!(checked.settings.is_some(), "{:?}", checked.problems.last());
    assert_eq!(checked.settings.unwrap().clusters.len(), 300);
    text += "  - { name: last, connect_timeout: 0s, endpoints: [{ address: '192.0.2.1:80' }] }\n";
    let checked = check(&text);
    assert!(checked.settings.is_none());
    let errors = checked.problems.iter().filter(|p| p.is_error());
    assert!(
        errors
            .into_iter()
            .any(|p| p.path == "clusters[300].connect_timeout")
    );
}

#[test]
fn a_cluster_with_a_typo_is_checked_in_what_was_read_of_it() {
    let text = r#"clusters:
  - name: a
    endpoints: [{ address: "10.0.0.1:80" }]
    load_balancer: { maglev: { table_size: 100 } }
    panic_treshold: 3
  - name: b
    endpoints: [{ address: nowhere }, { address: "0.0.0.0:80" }]
    connect_timeout: 0s
routes: [{ match: { port: 1 }, cluster: a }, { match: { port: 2 }, cluster: b }]
"#;
    let problems = problems(text);
    let told: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        told,
        [
            "clusters[0].load_balancer.maglev.table_size",
            "clusters[0].panic_treshold",
            "clusters[1].endpoints[0].address",
            "clusters[1].connect_timeout",
        ],
        "{problems:?}"
    );
}
