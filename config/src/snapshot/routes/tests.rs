use std::fmt::Write;

use proptest::prelude::*;

use super::{holds::holds, *};
use crate::{Snapshot, check, parse};

fn table(routes: &[&str]) -> RouteTable {
    let mut text = "routes:\n".to_owned();
    for route in routes {
        let _ = writeln!(
            text,
            "- {{ match: {{ {route} }}, cluster: original_destination }}"
        );
    }
    Snapshot::compile(parse(&text).unwrap(), None).routes
}

fn one(route: &str) -> Arc<Decision> {
    let text = format!(
        "routes: [{{ {route} }}]\nclusters:\n{}",
        ["a", "b", "c"]
            .map(|name| format!("- {{ name: {name}, dns: {{ name: x, port: 1 }} }}\n"))
            .concat()
    );
    let settings = parse(&text).unwrap_or_else(|problems| panic!("{route}: {problems:#?}"));
    Snapshot::compile(settings, None)
        .routes
        .iter()
        .next()
        .unwrap()
        .clone()
}

/// A request's lines.
#[derive(Debug, Default)]
struct Lines(Vec<(&'static str, &'static str)>);

impl Headers for Lines {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for (_, value) in self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)) {
            visit(value.as_bytes());
        }
    }
}

/// A subject, its parts written one after the other.
#[derive(Debug)]
struct Asked {
    to: &'static str,
    sni: Option<&'static str>,
    alpn: Vec<Box<str>>,
    /// Host, method, path.
    request: Option<(Option<&'static str>, &'static str, Option<&'static str>)>,
    lines: Lines,
}

impl Asked {
    fn to(to: &'static str) -> Self {
        Self {
            to,
            sni: None,
            alpn: Vec::new(),
            request: None,
            lines: Lines::default(),
        }
    }

    fn host(to: &'static str, host: &'static str) -> Self {
        Self {
            request: Some((Some(host), "GET", Some("/"))),
            ..Self::to(to)
        }
    }

    fn get(path: &'static str) -> Self {
        Self {
            request: Some((Some("svc"), "GET", Some(path))),
            ..Self::to("10.0.0.1:80")
        }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.lines.0.push((name, value));
        self
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            destination: self.to.parse().unwrap(),
            sni: self.sni,
            alpn: &self.alpn,
            request: self.request.map(|(host, method, path)| HttpRequest {
                host,
                method,
                path: path.map(str::as_bytes),
                headers: &self.lines,
            }),
        }
    }
}

fn decide(table: &RouteTable, asked: &Asked) -> Option<usize> {
    table.decide(&asked.subject()).map(|d| d.index)
}

#[test]
fn each_key_holds_for_what_it_says() {
    let table = table(&[
        "host: api.internal, port: 80",
        "host: \"*.Internal\"",
        "sni: db.example",
        "destination: 203.0.113.0/24",
        "destination: \"2001:db8::/32\", port: 443",
        "port: 25",
        "port: 8000-8100",
    ]);
    let with_sni = Asked {
        sni: Some("db.example"),
        ..Asked::to("10.0.0.1:443")
    };
    for (asked, wanted) in [
        (Asked::host("10.0.0.1:80", "API.internal."), Some(0)),
        (Asked::host("10.0.0.1:81", "api.internal"), Some(1)),
        (Asked::host("10.0.0.1:80", "internal"), None),
        (Asked::host("10.0.0.1:80", "xinternal"), None),
        (Asked::host("10.0.0.1:80", "a.b.internal"), Some(1)),
        (with_sni, Some(2)),
        (Asked::to("203.0.113.9:1"), Some(3)),
        (Asked::to("[::ffff:203.0.113.9]:1"), Some(3)),
        (Asked::to("[2001:db8::1]:443"), Some(4)),
        (Asked::to("[2001:db8::1]:444"), None),
        (Asked::to("10.0.0.1:25"), Some(5)),
        (Asked::to("10.0.0.1:8050"), Some(6)),
        (Asked::to("10.0.0.1:9"), None),
    ] {
        assert_eq!(decide(&table, &asked), wanted, "{asked:?}");
    }
}

#[test]
fn the_first_route_that_holds_decides_however_it_is_filed() {
    let table = table(&[
        "port: 1-100",
        "host: a",
        "port: 80",
        "destination: 10.0.0.0/8",
        "",
    ]);
    assert_eq!(decide(&table, &Asked::host("10.0.0.1:80", "a")), Some(0));
    assert_eq!(decide(&table, &Asked::host("10.0.0.1:800", "a")), Some(1));
    assert_eq!(decide(&table, &Asked::to("10.0.0.1:800")), Some(3));
    assert_eq!(decide(&table, &Asked::to("11.0.0.1:800")), Some(4));
}

#[test]
fn a_path_is_whole_or_begins_or_is_as_an_expression_says() {
    let table = table(&[
        "path: { exact: /exact }",
        "path: { prefix: /pre }",
        "path: { separated_prefix: /sep }",
        "path: { regex: '/re/[0-9]+' }",
        "path: { prefix: '/%61dmin' }",
    ]);
    for (path, wanted) in [
        ("/exact", Some(0)),
        ("/exact?q", Some(0)),
        ("/exact/", None),
        ("/prefix", Some(1)),
        ("/sep", Some(2)),
        ("/sep/x?y", Some(2)),
        ("/separate", None),
        ("/re/12?x", Some(3)),
        ("/re/12/x", None),
        ("/Exact", None),
        // Dots and escapes lead past no route, and into none.
        ("/x/../admin", Some(4)),
        ("/x/%2e%2e/adm%69n", Some(4)),
        ("/pre/../exact", Some(0)),
        ("/exact/../x", None),
    ] {
        assert_eq!(decide(&table, &Asked::get(path)), wanted, "{path}");
    }
    let connect = Asked {
        request: Some((Some("svc"), "CONNECT", None)),
        ..Asked::to("10.0.0.1:80")
    };
    assert_eq!(decide(&table, &connect), None);
}

#[test]
fn methods_headers_and_parameters_are_asked_for() {
    let table = table(&[
        "method: [PUT, PATCH]",
        "method: DELETE, headers: [{ name: x-sure }]",
        "headers: [{ name: X-Version, exact: v2 }, { name: x-no, present: false }]",
        "headers: [{ name: accept, contains: json, invert: true }]",
        "query: [{ name: debug, exact: '1' }]",
        "headers: [{ name: cookie, regex: '(?i).*id=[a-f]+.*' }]",
        "headers: [{ name: x-list, exact: 'a,b' }]",
    ]);
    let method = |method| Asked {
        request: Some((None, method, Some("/"))),
        ..Asked::to("10.0.0.1:80")
    };
    for (asked, wanted) in [
        (method("PATCH"), Some(0)),
        (method("patch"), None),
        (method("DELETE"), None),
        (method("DELETE").with("X-Sure", ""), Some(1)),
        (Asked::get("/").with("x-version", "v2"), Some(2)),
        (
            Asked::get("/").with("x-version", "v2").with("X-No", "1"),
            None,
        ),
        (Asked::get("/").with("Accept", "text/json"), None),
        (Asked::get("/").with("Accept", "text/plain"), Some(3)),
        (Asked::get("/?x&debug=1"), Some(4)),
        (Asked::get("/?debug=11"), None),
        (Asked::get("/").with("cookie", "ID=AB"), Some(5)),
        (
            Asked::get("/").with("x-list", "a").with("x-list", "b"),
            Some(6),
        ),
        (Asked::get("/"), None),
        (Asked::to("10.0.0.1:80"), None),
    ] {
        assert_eq!(decide(&table, &asked), wanted, "{asked:?}");
    }
}

#[test]
fn one_protocol_that_is_offered_is_enough() {
    let table = table(&["alpn: [h2, grpc]", "sni: '*.b'"]);
    let hello = |alpn: &[&str]| Asked {
        sni: Some("a.b"),
        alpn: alpn.iter().map(|a| (*a).into()).collect(),
        ..Asked::to("10.0.0.1:443")
    };
    assert_eq!(decide(&table, &hello(&["http/1.1", "h2"])), Some(0));
    assert_eq!(decide(&table, &hello(&["http/1.1"])), Some(1));
}

#[test]
fn ten_thousand_routes_of_one_host_are_not_looked_at_one_by_one() {
    let mut text = "routes:\n".to_owned();
    for n in 0..2_000 {
        let _ = writeln!(
            text,
            "- {{ match: {{ host: a, path: {{ prefix: /p{n}/ }} }}, cluster: original_destination }}"
        );
    }
    let table = Snapshot::compile(parse(&text).unwrap(), None).routes;
    let asked = Asked {
        request: Some((Some("a"), "GET", Some("/p1999/x"))),
        ..Asked::to("10.0.0.1:80")
    };
    assert_eq!(decide(&table, &asked), Some(1999));
    let subject = asked.subject();
    let view = View::of(&subject, true);
    let mut seen = 0;
    table
        .index
        .look_up(&view.probe(), &mut |filed| seen += filed.len());
    assert_eq!(seen, 1);
}

/// `a` and `b` at each of two places, by a draw.
#[test]
fn a_draw_chooses_in_proportion_and_nothing_gets_no_weight() {
    let split = one(
        "match: {}, split: [{ cluster: a, weight: 1 }, { cluster: b, weight: 0 }, { cluster: c, weight: 3 }]",
    );
    let chosen = |draw: u32| split.branch(|| draw);
    assert_eq!(chosen(0), Some(0));
    assert_eq!(chosen((1 << 30) - 1), Some(0));
    assert_eq!(chosen(1 << 30), Some(2));
    assert_eq!(chosen(u32::MAX), Some(2));
    let single = one("match: {}, cluster: a");
    assert_eq!(single.branch(|| panic!("there is no choice")), Some(0));
}

#[test]
fn a_rewrite_replaces_what_was_found_and_keeps_the_query() {
    for (route, path, wanted) in [
        (
            "path: { prefix: /v1 } }, rewrite: { prefix: / }",
            "/v1/users?x=/v1",
            "/users?x=/v1",
        ),
        (
            "path: { prefix: /v1 } }, rewrite: { prefix: / }",
            "/v1",
            "/",
        ),
        (
            "path: { prefix: /v1 } }, rewrite: { prefix: /v2 }",
            "/v1x",
            "/v2x",
        ),
        (
            "path: { prefix: /v1/ } }, rewrite: { prefix: /v2 }",
            "/v1/x",
            "/v2x",
        ),
        (
            "path: { separated_prefix: /v1 } }, rewrite: { prefix: /v2/ }",
            "/v1/x",
            "/v2/x",
        ),
        (
            "path: { exact: /a } }, rewrite: { prefix: '/b?c' }",
            "/a?d",
            "/b?c",
        ),
        (
            "path: { prefix: /v1 } }, rewrite: { prefix: /v2 }",
            "/x/../v1/%61",
            "/v2/a",
        ),
        (
            "}, rewrite: { regex: { pattern: '^/u/([0-9]+)', substitution: '/users/\\1' } }",
            "/u/7/x?y",
            "/users/7/x?y",
        ),
        (
            "}, rewrite: { regex: { pattern: '/', substitution: '' } }",
            "/a/b",
            "/ab",
        ),
    ] {
        let decision = one(&format!("match: {{ {route}, cluster: a"));
        let rewritten = decision.rewritten(path.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(rewritten).unwrap(),
            wanted,
            "{route} {path}"
        );
    }
    let none = one("match: { path: { prefix: /v1 } }, rewrite: { host: x }, cluster: a");
    assert_eq!(none.rewritten(b"/v1"), None);
    assert_eq!(one("match: {}, cluster: a").rewritten(b"*"), None);
}

#[test]
fn a_redirect_keeps_what_it_does_not_name() {
    for (redirect, authority, path, wanted) in [
        ("scheme: https", "a.test", "/x?y", "https://a.test/x?y"),
        ("scheme: https", "a.test:80", "/", "https://a.test/"),
        (
            "scheme: https, port: 8443",
            "a.test:8080",
            "/",
            "https://a.test:8443/",
        ),
        (
            "code: 302, path: /",
            "a.test:8080",
            "/x",
            "http://a.test:8080/",
        ),
        ("host: b.test", "a.test:8080", "/x", "http://b.test/x"),
        (
            "host: b.test, strip_query: true",
            "a.test",
            "/x?y",
            "http://b.test/x",
        ),
        ("path: '/p'", "[::1]:80", "/x?y", "http://[::1]/p?y"),
        ("path: '/p?q'", "a.test", "/x?y", "http://a.test/p?q"),
        (
            "prefix: /new",
            "a.test",
            "/old/x?y",
            "http://a.test/new/x?y",
        ),
        (
            "regex: { pattern: old, substitution: new }",
            "a.test",
            "/old",
            "http://a.test/new",
        ),
        (
            "port: 81",
            "a.test",
            "//evil.test/",
            "http://a.test:81//evil.test/",
        ),
    ] {
        let path_key = if redirect.starts_with("prefix") {
            "path: { prefix: /old }"
        } else {
            ""
        };
        let decision = one(&format!(
            "match: {{ {path_key} }}, redirect: {{ {redirect} }}"
        ));
        let asked = Asked::get(path);
        let request = asked.subject().request.unwrap();
        let location = decision.location(&request, authority.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(location).unwrap(),
            wanted,
            "{redirect} {authority} {path}"
        );
    }
}

/// The routes that are never reached, by place, and what is in their way.
fn never_reached(routes: &[&str]) -> Vec<(usize, usize)> {
    let text: String =
        std::iter::once("routes:\n".to_owned())
            .chain(routes.iter().map(|route| {
                format!("- {{ match: {{ {route} }}, cluster: original_destination }}\n")
            }))
            .collect();
    let checked = check(&text);
    let settings = checked
        .settings
        .unwrap_or_else(|| panic!("{:#?}", checked.problems));
    let matches: Vec<_> = settings
        .routes
        .iter()
        .map(|r| normal(&r.matches))
        .enumerate()
        .collect();
    covers::never_reached(&matches)
}

#[test]
fn a_route_behind_a_wider_one_is_never_reached() {
    for (wide, narrow) in [
        ("", "host: a"),
        ("host: A", "host: a."),
        ("host: '*.b'", "host: x.a.b"),
        ("host: '*.b'", "host: '*.a.b'"),
        ("host: '*'", "host: 'x.*'"),
        ("host: '*.c'", "host: '*-x.c'"),
        (
            "destination: 10.0.0.0/8",
            "destination: 10.1.0.0/16, port: 80",
        ),
        ("port: 80-90", "port: 85"),
        ("path: { prefix: / }", "path: { exact: /x }, method: GET"),
        ("path: { separated_prefix: /v1 }", "path: { prefix: /v1/x }"),
        ("path: { prefix: /v1 }", "path: { separated_prefix: /v1/ }"),
        ("path: { regex: '/[a-z]+' }", "path: { exact: /x }"),
        ("method: [GET, PUT]", "method: PUT"),
        (
            "headers: [{ name: x }]",
            "headers: [{ name: X, prefix: a }, { name: y }]",
        ),
        (
            "headers: [{ name: x, prefix: a }]",
            "headers: [{ name: X, exact: ab }]",
        ),
        ("sni: '*.b', alpn: [h2, h3]", "sni: a.b, alpn: [h2]"),
        ("query: [{ name: q }]", "query: [{ name: q, exact: '1' }]"),
    ] {
        assert_eq!(
            never_reached(&[wide, narrow]),
            [(1, 0)],
            "{wide} | {narrow}"
        );
    }
    for (one, other) in [
        ("host: x.b", "host: '*.b'"),
        ("path: { exact: /x }", "path: { prefix: /x }"),
        ("path: { separated_prefix: /v1 }", "path: { prefix: /v1 }"),
        ("path: { prefix: /v1/ }", "path: { separated_prefix: /v1 }"),
        ("port: 80", "host: a"),
        (
            "headers: [{ name: x, prefix: a }]",
            "headers: [{ name: x, present: false }]",
        ),
        (
            "headers: [{ name: x }]",
            "headers: [{ name: x, present: false }]",
        ),
        ("method: GET", ""),
        ("host: 'a.*'", "host: '*.b'"),
    ] {
        assert_eq!(never_reached(&[one, other]), [], "{one} | {other}");
    }
}

/// What a random route asks for.
fn route() -> impl Strategy<Value = String> {
    let key = |key: &'static str, values: &'static [&'static str]| {
        prop::option::of(prop::sample::select(values).prop_map(move |v| format!("{key}: {v}")))
    };
    (
        key(
            "destination",
            &[
                "10.0.0.0/8",
                "10.0.0.0/24",
                "10.0.0.1",
                "'::/0'",
                "0.0.0.0/0",
            ],
        ),
        key("port", &["80", "81", "80-81", "1-65535"]),
        key(
            "host",
            &["a", "a.b", "'*.b'", "'*.a.b'", "B", "'*'", "'a*'", "'*a.b'"],
        ),
        key("sni", &["a", "'*.b'"]),
        key(
            "path",
            &[
                "{ exact: /a }",
                "{ exact: /a/b }",
                "{ prefix: / }",
                "{ prefix: /a }",
                "{ separated_prefix: /a }",
                "{ separated_prefix: /a/ }",
                "{ regex: '/[ab]+' }",
            ],
        ),
        key("method", &["GET", "PUT", "[GET, PUT]"]),
        key(
            "headers",
            &[
                "[{ name: x, exact: a }]",
                "[{ name: X, exact: b }]",
                "[{ name: x }]",
                "[{ name: x, prefix: a, invert: true }]",
                "[{ name: y, present: false }, { name: x, exact: a }]",
            ],
        ),
        key(
            "query",
            &["[{ name: q, exact: '1' }]", "[{ name: q, present: false }]"],
        ),
        key("alpn", &["[h2]", "[h2, http/1.1]"]),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i)| {
            [a, b, c, d, e, f, g, h, i]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(", ")
        })
}

fn asked() -> impl Strategy<Value = Asked> {
    let request = (
        prop::option::of(prop::sample::select(vec!["a", "A.b", "x.a.b", "b", "ab."])),
        prop::sample::select(vec!["GET", "PUT", "POST"]),
        prop::option::of(prop::sample::select(vec![
            "/", "/a", "/a/b?q=1", "/ab", "/x/../a", "/%61?q",
        ])),
    );
    let line = (
        prop::sample::select(vec!["x", "X", "y"]),
        prop::sample::select(vec!["a", "b", "ab"]),
    );
    (
        prop::sample::select(vec![
            "10.0.0.1:80",
            "10.0.0.2:81",
            "10.1.0.1:80",
            "11.0.0.1:82",
            "[::1]:80",
        ]),
        prop::option::of(prop::sample::select(vec!["a", "x.b"])),
        prop::collection::vec(prop::sample::select(vec!["h2", "http/1.1", "x"]), 0..3),
        prop::option::of(request),
        prop::collection::vec(line, 0..3),
    )
        .prop_map(|(to, sni, alpn, request, lines)| Asked {
            to,
            sni,
            alpn: alpn.into_iter().map(Into::into).collect(),
            request,
            lines: Lines(lines),
        })
}

/// A table of the matches alone, whatever a check would say of them.
fn unchecked(matches: &[Match]) -> RouteTable {
    let route = |matches: &Match| Route {
        matches: matches.clone(),
        ..serde_json::from_str(r#"{ "match": {}, "cluster": "original_destination" }"#).unwrap()
    };
    RouteTable::compile(matches.iter().map(route).collect(), &HashMap::new())
}

fn read(route: &str) -> Match {
    let text = format!("routes: [{{ match: {{ {route} }}, cluster: original_destination }}]");
    let checked = check(&text);
    checked
        .settings
        .unwrap_or_else(|| panic!("{route}: {:#?}", checked.problems))
        .routes
        .remove(0)
        .matches
}

proptest! {
    #[test]
    fn the_index_decides_as_looking_at_each_route_would(
        routes in prop::collection::vec(route(), 0..40),
        asked in prop::collection::vec(asked(), 1..20),
    ) {
        // A route that asks for HTTP and TLS is an error of its own.
        let routes: Vec<_> = routes.iter().filter(|r| !is_contradiction(r)).map(|r| read(r)).collect();
        let table = unchecked(&routes);
        for asked in &asked {
            let subject = asked.subject();
            let view = View::of(&subject, true);
            let one_by_one = routes.iter().position(|m| holds(&normal(m), &view));
            prop_assert_eq!(decide(&table, asked), one_by_one, "{:?}", asked);
        }
    }

    #[test]
    fn what_is_said_to_be_never_reached_is_not(
        routes in prop::collection::vec(route(), 2..12),
        asked in prop::collection::vec(asked(), 1..40),
    ) {
        let routes: Vec<_> = routes.iter().filter(|r| !is_contradiction(r)).map(|r| read(r)).collect();
        let normal: Vec<_> = routes.iter().map(normal).enumerate().collect();
        for (never, before) in covers::never_reached(&normal) {
            for asked in &asked {
                let subject = asked.subject();
                let view = View::of(&subject, true);
                prop_assert!(!holds(&normal[never].1, &view) || holds(&normal[before].1, &view), "{:?}: {:?} {:?}", asked, routes[before], routes[never]);
            }
        }
    }

    #[test]
    fn a_location_is_one_line_of_the_host_that_was_meant(path in "/[!-~]{0,40}") {
        let decision = one("match: {}, redirect: { scheme: https, host: b.test }");
        let lines = Lines::default();
        let request = HttpRequest { host: None, method: "GET", path: Some(path.as_bytes()), headers: &lines };
        let location = decision.location(&request, b"a.test").unwrap();
        prop_assert!(location.starts_with(b"https://b.test/"));
        prop_assert!(location.iter().all(|b| (0x21..0x7f).contains(b)));
    }
}

fn is_contradiction(route: &str) -> bool {
    let has = |keys: &[&str]| {
        keys.iter()
            .any(|key| route.split(", ").any(|part| part.starts_with(key)))
    };
    has(&["host:", "path:", "method:", "headers:", "query:"]) && has(&["sni:", "alpn:"])
}
