use proptest::prelude::*;

use super::*;
use crate::{Snapshot, parse};

fn table(routes: &[&str]) -> RouteTable {
    let mut text = "routes:\n".to_owned();
    for route in routes {
        text += &format!("- {{ match: {{ {route} }}, cluster: original_destination }}\n");
    }
    Snapshot::compile(parse(&text).unwrap(), None).routes
}

fn subject<'a>(to: &str, host: Option<&'a str>, sni: Option<&'a str>) -> Subject<'a> {
    let request = host.map(|host| HttpRequest {
        host: Some(host),
        method: "GET",
        path: Some(b"/"),
        headers: &NoHeaders,
    });
    Subject {
        sni,
        request,
        ..Subject::at(to.parse().unwrap())
    }
}

fn decide(table: &RouteTable, to: &str, host: Option<&str>, sni: Option<&str>) -> Option<usize> {
    table.decide(&subject(to, host, sni)).map(|d| d.index)
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
    for (to, host, sni, wanted) in [
        ("10.0.0.1:80", Some("API.internal."), None, Some(0)),
        ("10.0.0.1:81", Some("api.internal"), None, Some(1)),
        ("10.0.0.1:80", Some("internal"), None, None),
        ("10.0.0.1:80", Some("xinternal"), None, None),
        ("10.0.0.1:80", Some("a.b.internal"), None, Some(1)),
        ("10.0.0.1:443", None, Some("db.example"), Some(2)),
        ("203.0.113.9:1", None, None, Some(3)),
        ("[::ffff:203.0.113.9]:1", None, None, Some(3)),
        ("[2001:db8::1]:443", None, None, Some(4)),
        ("[2001:db8::1]:444", None, None, None),
        ("10.0.0.1:25", None, None, Some(5)),
        ("10.0.0.1:8050", None, None, Some(6)),
        ("10.0.0.1:9", None, None, None),
    ] {
        assert_eq!(
            decide(&table, to, host, sni),
            wanted,
            "{to} {host:?} {sni:?}"
        );
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
    assert_eq!(decide(&table, "10.0.0.1:80", Some("a"), None), Some(0));
    assert_eq!(decide(&table, "10.0.0.1:800", Some("a"), None), Some(1));
    assert_eq!(decide(&table, "10.0.0.1:800", None, None), Some(3));
    assert_eq!(decide(&table, "11.0.0.1:800", None, None), Some(4));
}

/// What the index must agree with.
fn one_by_one(table: &RouteTable, subject: &Subject<'_>) -> Option<usize> {
    let host = subject.request.and_then(|r| r.host).map(normal);
    let sni = subject.sni.map(normal);
    table
        .iter()
        .find(|d| {
            holds(
                &d.settings.matches,
                subject.destination,
                host.as_deref(),
                sni.as_deref(),
            )
        })
        .map(|d| d.index)
}

proptest! {
    #[test]
    fn the_index_decides_as_looking_at_each_route_would(
        routes in prop::collection::vec(
            (
                prop::option::of(prop::sample::select(vec!["10.0.0.0/8", "10.0.0.0/24", "10.0.0.1", "::/0", "0.0.0.0/0"])),
                prop::option::of(prop::sample::select(vec!["80", "81", "80-81", "1-65535"])),
                prop::option::of(prop::sample::select(vec!["a", "a.b", "'*.b'", "'*.a.b'", "B"])),
                prop::option::of(prop::sample::select(vec!["a", "'*.b'"])),
            ),
            0..12,
        ),
        to in prop::sample::select(vec!["10.0.0.1:80", "10.0.0.2:81", "10.1.0.1:80", "11.0.0.1:82", "[::1]:80"]),
        host in prop::option::of(prop::sample::select(vec!["a", "A.b", "x.a.b", "b", "c."])),
        sni in prop::option::of(prop::sample::select(vec!["a", "x.b"])),
    ) {
        let written: Vec<_> = routes
            .iter()
            .map(|(destination, port, host, sni)| {
                [("destination", destination), ("port", port), ("host", host), ("sni", sni)]
                    .into_iter()
                    .filter_map(|(key, value)| value.map(|value| match key {
                        "destination" => format!("{key}: '{value}'"),
                        _ => format!("{key}: {value}"),
                    }))
                    .collect::<Vec<_>>()
                    .join(", ")
            })
            .collect();
        let written: Vec<_> = written.iter().map(String::as_str).collect();
        let table = table(&written);
        let subject = subject(to, host, sni);
        prop_assert_eq!(table.decide(&subject).map(|d| d.index), one_by_one(&table, &subject));
    }
}
