//! Which route holds for a request.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use crate::{
    site::{SERVICE, each_version},
    support::{SOON, SVC4, Speak, World, wait_until},
};

#[test]
fn path_method_header_and_query_decide() {
    each_version(&["a", "b", "rest"], |site| {
        let _proxy = site.proxy(
            "- { match: { path: { prefix: /v1/ } }, cluster: a }
- { match: { path: { separated_prefix: /sep } }, cluster: b }
- { match: { path: { regex: '/[0-9]+' } }, cluster: b }
- { match: { method: [PUT, DELETE] }, cluster: a }
- { match: { headers: [{ name: x-one, suffix: '-beta' }] }, cluster: b }
- { match: { query: [{ name: shard, exact: '2' }] }, cluster: b }
- { match: { host: '*.b.test' }, cluster: b }
- { match: {}, cluster: rest }",
        );
        for (arguments, name) in [
            (format!("{SERVICE}/v1/x"), "a"),
            (format!("{SERVICE}/v1"), "rest"),
            (format!("{SERVICE}/sep/x"), "b"),
            (format!("{SERVICE}/separate"), "rest"),
            (format!("{SERVICE}/123"), "b"),
            (format!("{SERVICE}/123x"), "rest"),
            (format!("-X DELETE {SERVICE}/"), "a"),
            (format!("-H 'X-One: new-beta' {SERVICE}/"), "b"),
            (format!("-H 'X-One: new' {SERVICE}/"), "rest"),
            (format!("'{SERVICE}/?a=1&shard=2'"), "b"),
            (format!("-H 'Host: x.b.test' {SERVICE}/"), "b"),
            (format!("{SERVICE}/"), "rest"),
        ] {
            let answer = site.curl(&arguments);
            assert!(
                answer.starts_with(&format!("{name} ")),
                "{arguments}: {answer}"
            );
        }
    });
}

#[test]
fn dots_lead_past_no_route_and_are_sent_on_as_they_came() {
    each_version(&["open", "secret"], |site| {
        let _proxy = site.proxy(
            "- { match: { path: { prefix: /admin } }, cluster: secret }
- { match: {}, cluster: open }",
        );
        for path in [
            "/x/../admin",
            "/%61dmin",
            "/./admin/",
            "/x/%2e%2E/admin",
            "/x\\..\\admin",
        ] {
            let answer = site.get("svc", path);
            // nginx refuses some of them itself; who was asked is what counts.
            assert!(!answer.starts_with("open "), "{path}: {answer}");
            if answer.starts_with("secret ") {
                assert_eq!(answer, format!("secret GET svc {path} [] []\n"));
            }
        }
        assert!(site.get("svc", "/administrator").starts_with("secret "));
        assert!(site.get("svc", "/x/admin").starts_with("open "));
    });
}

#[test]
fn traffic_is_split_by_weight() {
    each_version(&["a", "b", "c"], |site| {
        let _proxy = site.proxy(
            "- match: {}\n  split: [{ cluster: a, weight: 3 }, { cluster: b, weight: 1 }, { cluster: c, weight: 0 }]",
        );
        let asked: Vec<_> = (0..400).map(|n| ("svc", format!("/{n}"))).collect();
        let mut each = BTreeMap::new();
        for (_, answer) in site.over_one_connection((SVC4, 80), &asked) {
            let name = answer.split(' ').next().expect("a name").to_owned();
            *each.entry(name).or_insert(0) += 1;
        }
        assert_eq!(each.values().sum::<i32>(), 400, "{each:?}");
        assert!(!each.contains_key("c"), "{each:?}");
        // Seven standard deviations from 100.
        assert!((40..160).contains(&each["b"]), "{each:?}");
    });
}

#[test]
fn a_protocol_that_a_client_offers_within_tls_decides() {
    let world = World::new();
    let _nginx = world.nginx();
    let _other = world.peer(9001, |mut stream| {
        stream.hear(5)?;
        stream.say("this is no TLS")
    });
    let proxy = world.serve(
        "routes:\n- { match: { port: 4443, alpn: [h2] }, cluster: tls }\n- { match: { port: 4443 }, cluster: other }\nclusters:\n\
         - { name: tls, endpoints: [{ address: '198.51.100.2:443' }] }\n- { name: other, endpoints: [{ address: '198.51.100.2:9001' }] }\n",
    );
    world.capture(&proxy);
    let ask = |version: &str| {
        let ca = world.dir().join("svc.crt");
        world.app.try_sh(&format!(
            "curl -sS {version} --cacert {} --connect-to svc.test:443:198.51.100.2:4443 https://svc.test/hello",
            ca.display()
        ))
    };
    let answered = ask("--http2");
    assert_eq!(
        String::from_utf8_lossy(&answered.stdout),
        "hello\n",
        "{answered:?}"
    );
    assert!(!ask("--http1.1").status.success());
}

#[test]
fn a_request_that_is_rewritten_is_logged_as_it_came() {
    each_version(&["a"], |site| {
        let logs = site.world.dir().join("logs");
        fs::create_dir(&logs).expect("the test's directory is writable");
        let everyone = Permissions::from_mode(0o777);
        fs::set_permissions(&logs, everyone).expect("a directory of our own");
        let log = logs.join("access.log");
        let routes = "- match: { path: { prefix: /v1 } }
  cluster: a
  rewrite: { prefix: /v2, host: other.test }";
        let _proxy = site.proxy(&format!(
            "{routes}\naccess_log: {{ to: {} }}",
            log.display()
        ));
        assert_eq!(
            site.get("svc", "/v1/x?y"),
            "a GET other.test /v2/x?y [] []\n"
        );
        wait_until(SOON, "it is logged", || {
            fs::read_to_string(&log)
                .unwrap_or_default()
                .contains("/v1/x")
        });
        let logged = fs::read_to_string(&log).expect("it is there");
        assert!(
            !logged.contains("other.test") && !logged.contains("/v2"),
            "{logged}"
        );
    });
}
