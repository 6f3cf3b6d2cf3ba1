use crate::{Problem, check};

const CLUSTERS: &str = "clusters:\n- { name: a, endpoints: [{ address: '192.0.2.1:80', labels: { v: '1' } }] }\n- { name: b, dns: { name: x, port: 1 } }\nroutes:\n";

/// Of routes, a line each from line 5 on: line, column, path and whether it is an error.
fn told(routes: &str) -> Vec<(u32, u32, String, bool)> {
    let told = |problem: &Problem| {
        let at = problem.at.expect("a place");
        (at.line, at.column, problem.path.clone(), problem.is_error())
    };
    let problems = check(&format!("{CLUSTERS}{routes}- {{ match: {{ port: 1 }}, split: [{{ cluster: a, weight: 1 }}, {{ cluster: b, weight: 0 }}] }}\n")).problems;
    assert!(problems.iter().all(|p| !p.fix.is_empty()), "{problems:#?}");
    problems.iter().map(told).collect()
}

#[test]
fn what_is_wrong_with_a_route_is_told_where_it_stands() {
    for (route, path) in [
        ("match: {}", ""),
        (
            "match: {}, cluster: a, respond: { status: 200 }",
            ".respond",
        ),
        ("match: {}, cluster: c", ".cluster"),
        ("match: {}, split: [{ cluster: a, weight: 0 }]", ".split"),
        (
            "match: {}, split: [{ cluster: a, weight: 4294967295 }, { cluster: b, weight: 1 }]",
            ".split",
        ),
        (
            "match: {}, split: [{ cluster: c, weight: 1 }]",
            ".split[0].cluster",
        ),
        (
            "match: {}, split: [{ cluster: a, weight: 1 }], subset: { v: '1' }",
            ".subset",
        ),
        ("match: { host: 'a*b' }, cluster: a", ".match.host"),
        ("match: { host: 'a:80' }, cluster: a", ".match.host"),
        (
            "match: { path: { exact: a } }, cluster: a",
            ".match.path.exact",
        ),
        (
            "match: { path: { prefix: '/a?b' } }, cluster: a",
            ".match.path.prefix",
        ),
        (
            "match: { path: { exact: '/a/../b' } }, cluster: a",
            ".match.path.exact",
        ),
        (
            "match: { path: { regex: '(' } }, cluster: a",
            ".match.path.regex",
        ),
        (
            "match: { path: { exact: /a, prefix: /b } }, cluster: a",
            ".match.path",
        ),
        (
            "match: { sni: a, path: { exact: /a } }, cluster: a",
            ".match",
        ),
        ("match: { alpn: [h2], method: GET }, cluster: a", ".match"),
        ("match: { method: 'G T' }, cluster: a", ".match.method"),
        (
            "match: { headers: [{ name: ':path', exact: x }] }, cluster: a",
            ".match.headers[0].name",
        ),
        (
            "match: { headers: [{ name: 'a b' }] }, cluster: a",
            ".match.headers[0].name",
        ),
        (
            "match: { headers: [{ name: a, exact: x, prefix: y }] }, cluster: a",
            ".match.headers[0].prefix",
        ),
        (
            "match: { query: [{ name: a, contains: '' }] }, cluster: a",
            ".match.query[0].contains",
        ),
        ("match: {}, redirect: {}", ".redirect"),
        (
            "match: { path: { prefix: /x } }, redirect: { path: /a, prefix: /b }",
            ".redirect.prefix",
        ),
        ("match: {}, redirect: { prefix: /b }", ".redirect.prefix"),
        ("match: {}, redirect: { host: 'a b' }", ".redirect.host"),
        (
            "match: {}, redirect: { host: 'a:80', port: 81 }",
            ".redirect.port",
        ),
        (
            "match: {}, redirect: { path: /a, code: 200 }",
            ".redirect.code",
        ),
        ("match: {}, respond: { status: 199 }", ".respond.status"),
        (
            "match: {}, respond: { status: 204, body: x }",
            ".respond.body",
        ),
        (
            "match: {}, respond: { status: 200, headers: { content-length: '5' } }",
            ".respond.headers.content-length",
        ),
        (
            "match: {}, respond: { status: 200 }, rewrite: { host: x }",
            ".rewrite",
        ),
        (
            "match: {}, cluster: a, rewrite: { prefix: / }",
            ".rewrite.prefix",
        ),
        (
            "match: { path: { prefix: /a } }, cluster: a, rewrite: { prefix: '/a b' }",
            ".rewrite.prefix",
        ),
        (
            "match: { path: { prefix: /a } }, cluster: a, rewrite: { prefix: /, regex: { pattern: a, substitution: b } }",
            ".rewrite.regex",
        ),
        (
            "match: {}, cluster: a, rewrite: { regex: { pattern: 'a(b)', substitution: '\\2' } }",
            ".rewrite.regex.substitution",
        ),
        (
            "match: {}, cluster: a, rewrite: { regex: { pattern: 'a', substitution: \"b\\r\\n\" } }",
            ".rewrite.regex.substitution",
        ),
        (
            "match: {}, cluster: a, rewrite: { host: x, auto_host: true }",
            ".rewrite.auto_host",
        ),
        (
            "match: {}, cluster: a, rewrite: { host: \"x\\r\\ny\" }",
            ".rewrite.host",
        ),
        (
            "match: {}, cluster: a, request_headers: { set: { Host: x } }",
            ".request_headers.set.Host",
        ),
        (
            "match: {}, cluster: a, request_headers: { remove: [Transfer-Encoding] }",
            ".request_headers.remove[0]",
        ),
        (
            "match: {}, cluster: a, request_headers: { add: { x: \"a\\nb\" } }",
            ".request_headers.add.x",
        ),
        (
            "match: {}, cluster: a, response_headers: { add: { x: ' a' } }",
            ".response_headers.add.x",
        ),
        (
            "match: {}, cluster: a, response_headers: { set: { 'x y': a } }",
            ".response_headers.set.x y",
        ),
        (
            "match: {}, cluster: a, mirror: [{ cluster: original_destination }]",
            ".mirror[0].cluster",
        ),
        (
            "match: {}, cluster: a, mirror: [{ cluster: b, max_body_bytes: 2000000 }]",
            ".mirror[0].max_body_bytes",
        ),
        (
            "match: {}, cluster: a, mirror: [{ cluster: b, percent: 101 }]",
            ".mirror[0].percent",
        ),
        ("match: {}, cluster: a, fault: {}", ".fault"),
        (
            "match: {}, cluster: a, fault: { delay: { fixed: 0s } }",
            ".fault.delay.fixed",
        ),
        (
            "match: {}, cluster: a, fault: { abort: {} }",
            ".fault.abort",
        ),
        (
            "match: {}, cluster: a, fault: { abort: { status: 503, grpc_status: 14 } }",
            ".fault.abort",
        ),
        (
            "match: {}, cluster: a, fault: { abort: { grpc_status: 17 } }",
            ".fault.abort.grpc_status",
        ),
        ("match: {}, cluster: a, name: ''", ".name"),
    ] {
        let told = told(&format!("- {{ {route} }}\n"));
        let errors: Vec<_> = told.iter().filter(|(.., is_error)| *is_error).collect();
        assert_eq!(errors.len(), 1, "{route}: {told:?}");
        let (line, column, at, _) = errors[0];
        assert_eq!(
            (*line, at.as_str()),
            (5, &*format!("routes[0]{path}")),
            "{route}"
        );
        assert!(*column >= 3, "{route}: {column}");
    }
}

#[test]
fn what_is_suspicious_is_a_warning() {
    for (routes, path) in [
        (
            "- { match: { method: get }, cluster: a }\n",
            "routes[0].match.method",
        ),
        (
            "- { match: { method: [GET, GET] }, cluster: a }\n",
            "routes[0].match.method",
        ),
        (
            "- { match: { sni: a }, respond: { status: 403 } }\n",
            "routes[0].respond",
        ),
        (
            "- { match: { sni: a }, cluster: a, rewrite: { host: x } }\n",
            "routes[0]",
        ),
        (
            "- { match: { port: 9 }, split: [{ cluster: a, weight: 1, subset: { v: '2' } }] }\n",
            "routes[0].split[0].subset",
        ),
        (
            "- { match: { host: '*.x' }, cluster: a }\n- { match: { host: y.X, method: GET }, cluster: b }\n",
            "routes[1]",
        ),
        ("- { match: { port: 1 }, cluster: a }\n", "routes[1]"),
    ] {
        let told = told(routes);
        assert_eq!(told.len(), 1, "{routes}: {told:?}");
        assert_eq!((told[0].2.as_str(), told[0].3), (path, false), "{routes}");
    }
}

#[test]
fn two_routes_of_one_name_are_told() {
    let told = told(
        "- { match: { port: 8 }, cluster: a, name: x }\n- { match: { port: 9 }, cluster: a, name: x }\n",
    );
    let paths: Vec<_> = told
        .iter()
        .map(|(line, _, path, _)| (*line, path.as_str()))
        .collect();
    assert_eq!(paths, [(6, "routes[1].name")]);
    // A name that another has by default.
    let told = self::told(
        "- { match: { port: 8 }, cluster: a, name: route-2 }\n- { match: { port: 9 }, cluster: a }\n",
    );
    assert_eq!(told.len(), 1);
}

#[test]
fn everything_that_is_right_says_nothing() {
    let routes = r#"- { match: { host: api.*, path: { separated_prefix: /v1 }, method: [GET], headers: [{ name: x, regex: '(?i)a.*', invert: true }] }, cluster: a, subset: { v: '1' } }
- { match: { path: { exact: /x } }, cluster: a, rewrite: { prefix: /y, host: 'h:80' }, request_headers: { add: { a: b }, remove: [c] }, mirror: [{ cluster: b, percent: 0.1 }] }
- { match: { query: [{ name: q }] }, redirect: { scheme: https, code: 307 }, response_headers: { set: { x: y } } }
- { match: { destination: 203.0.113.0/24 }, respond: { status: 403, body: no, headers: { x: y } } }
- { match: { alpn: [h2] }, cluster: original_destination, fault: { delay: { fixed: 1s, percent: 0.5 }, abort: { status: 503, percent: 0.5 } } }
"#;
    assert_eq!(told(routes), []);
}

/// What a reload compares, and an upgrade hands over.
#[test]
fn every_kind_of_route_can_be_written_out_and_read_again() {
    let text = format!(
        "{CLUSTERS}- {{ match: {{ path: {{ regex: '/a' }}, method: GET, headers: [{{ name: x, present: false }}] }}, split: [{{ cluster: a, weight: 1 }}, {{ cluster: b, weight: 2 }}], rewrite: {{ regex: {{ pattern: a, substitution: b }} }}, fault: {{ delay: {{ fixed: 1s, percent: 0.25 }} }}, mirror: [{{ cluster: b }}] }}\n"
    );
    let settings = crate::parse(&text).unwrap();
    let written = serde_json::to_string(&settings).unwrap();
    assert_eq!(crate::parse(&written), Ok(settings));
}
