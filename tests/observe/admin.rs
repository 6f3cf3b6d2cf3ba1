//! The admin listener over TCP and a unix socket: answers by their schemas, orders, and who may ask.

use std::fs;

use serde_json::Value;

use crate::{
    ask::{admin, answers, ask, metric, traffic},
    support::{SOON, World, wait_until},
};

const CONFIG: &str = "
workers: 2
routes: [{ name: shop, match: { port: 8081 }, cluster: web }]
clusters: [{ name: web, endpoints: [{ address: '198.51.100.2:8081' }] }]
";

#[test]
fn what_it_answers_is_what_the_schema_says() {
    let world = World::new();
    let _web = world.peer(8081, answers);
    let proxy = world.serve(CONFIG);
    world.capture(&proxy);
    wait_until(SOON, "both workers accept", || {
        ask(&world, "GET", "/ready", "").status == 200
    });
    traffic(&world, 8081, 3);
    let held = world
        .app
        .within(|| std::net::TcpStream::connect("198.51.100.2:8081"));
    let held = held.expect("a connection");
    let schema: Value = serde_json::from_str(include_str!("../../docs/admin.schema.json"))
        .expect("docs/admin.schema.json is JSON");
    for path in [
        "/ready",
        "/config",
        "/clusters",
        "/connections",
        "/routes",
        "/logging",
        "/debug/heap",
    ] {
        let answer = ask(&world, "GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(
            answer.head.contains("content-type: application/json"),
            "{}",
            answer.head
        );
        let expected = &schema["properties"][format!("GET {path}")];
        assert!(expected.is_object(), "{path} has no schema");
        check(&answer.json(), expected, &schema, path);
    }
    let routes = ask(&world, "GET", "/routes", "").json();
    assert_eq!(routes["routes"][0]["name"], "shop");
    wait_until(SOON, "three requests on the route", || {
        ask(&world, "GET", "/routes", "").json()["routes"][0]["requests"] == 3
    });
    wait_until(SOON, "a connection in the list", || {
        let connections = ask(&world, "GET", "/connections", "").json();
        connections["connections"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["destination"] == "198.51.100.2:8081"))
    });
    drop(held);
}

/// As much of JSON Schema as the page uses: types, properties, required keys, items, references,
/// alternatives. An object's keys must all be in its schema.
fn check(value: &Value, schema: &Value, root: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().expect("a name");
        return check(value, &root["$defs"][name], root, at);
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[choice].as_array() {
            let fits = choices
                .iter()
                .any(|choice| std::panic::catch_unwind(|| check(value, choice, root, at)).is_ok());
            assert!(fits, "{at}: {value} is none of {schema}");
            return;
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_kind = |name: &Value| name == kind || name == "number" && kind == "integer";
    match &schema["type"] {
        Value::Null => {}
        Value::Array(kinds) => assert!(kinds.iter().any(is_kind), "{at}: {value} for {schema}"),
        one => assert!(is_kind(one), "{at}: {value} for {schema}"),
    }
    match value {
        Value::Array(items) => {
            for item in items {
                check(item, &schema["items"], root, &format!("{at}[]"));
            }
        }
        Value::Object(entries) => {
            for key in schema["required"].as_array().into_iter().flatten() {
                let key = key.as_str().expect("a key");
                assert!(entries.contains_key(key), "{at}: no {key} in {value}");
            }
            let Some(properties) = schema["properties"].as_object() else {
                return;
            };
            for (key, value) in entries {
                if let Some(schema) = properties.get(key) {
                    check(value, schema, root, &format!("{at}.{key}"));
                }
            }
        }
        _ => {}
    }
}

#[test]
fn orders_do_what_they_say() {
    let world = World::new();
    let mut proxy = world.serve("workers: 1");
    let ready = || ask(&world, "GET", "/ready", "").status;
    // The listeners are bound before the worker accepts from them.
    wait_until(SOON, "the worker accepts", || ready() == 200);
    assert_eq!(ask(&world, "POST", "/healthcheck/fail", "").status, 200);
    assert_eq!(ready(), 503);
    assert_eq!(ask(&world, "POST", "/healthcheck/ok", "").status, 200);
    assert_eq!(ready(), 200);

    assert_eq!(ask(&world, "GET", "/logging", "").json()["filter"], "info");
    let set = ask(
        &world,
        "POST",
        "/logging?level=outrigger_proxy::detect=debug,warn",
        "",
    );
    assert_eq!(set.status, 200, "{}", set.text());
    let filter = ask(&world, "GET", "/logging", "").json()["filter"].clone();
    assert!(
        filter.as_str().is_some_and(|f| f.contains("detect=debug")),
        "{filter}"
    );
    let wrong = ask(&world, "POST", "/logging?level=lout", "");
    assert_eq!(wrong.status, 400);
    assert!(
        wrong.text().contains("`lout` is no level"),
        "{}",
        wrong.text()
    );

    let reloaded = ask(&world, "POST", "/reload", "");
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    assert_eq!(ask(&world, "POST", "/drain", "").status, 202);
    let status = proxy.wait(SOON);
    assert!(status.success(), "{status}: {}", proxy.log());
}

#[test]
fn a_web_page_reaches_nothing_and_other_hosts_no_more_than_they_should() {
    let world = World::new();
    let token = world.write("token", "s3cret\n");
    let config = format!(
        "workers: 1\nadmin: {{ listen: '0.0.0.0:15000', allow_remote: true, token_file: {} }}",
        token.display()
    );
    let proxy = world.serve(&config);
    let show = "Authorization: Bearer s3cret\r\n";
    for (method, path, lines, status) in [
        ("GET", "/config", show, 200),
        ("GET", "/config", "", 401),
        ("GET", "/config", "Authorization: Bearer wrong\r\n", 401),
        ("GET", "/metrics", "", 200),
        ("GET", "/metrics", "Host: rebound.example\r\n", 421),
        ("GET", "/metrics", "Sec-Fetch-Site: cross-site\r\n", 403),
        (
            "POST",
            "/drain",
            "Origin: http://evil.example\r\nAuthorization: Bearer s3cret\r\n",
            403,
        ),
        ("POST", "/drain", "", 401),
        ("GET", "/drain", show, 405),
    ] {
        let answer = ask(&world, method, path, lines);
        assert_eq!(
            answer.status,
            status,
            "{method} {path} {lines}: {}",
            answer.text()
        );
        assert!(!answer.text().contains("s3cret"));
        assert!(
            answer.head.contains("x-content-type-options: nosniff"),
            "{}",
            answer.head
        );
    }
    assert!(!proxy.log().contains("s3cret"));
    assert!(
        proxy.log().contains("reachable from elsewhere"),
        "{}",
        proxy.log()
    );
}

#[test]
fn a_profile_shows_the_programs_own_functions() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    let profile = std::thread::scope(|scope| {
        let taking = scope.spawn(|| ask(&world, "GET", "/debug/profile?seconds=3", ""));
        while !taking.is_finished() {
            traffic(&world, 80, 100);
        }
        taking.join().expect("a profile")
    });
    assert_eq!(profile.status, 200, "{}", profile.text());
    let has = |text: &[u8]| profile.body.windows(text.len()).any(|w| w == text);
    assert!(
        has(b"nanoseconds") && has(b"outrigger_proxy"),
        "{} bytes",
        profile.body.len()
    );
    let wrong = ask(&world, "GET", "/debug/profile?seconds=0", "");
    assert_eq!(wrong.status, 400);
    // The timer is off again, and traffic goes on.
    traffic(&world, 80, 10);
    drop(admin(&world));
}

#[test]
fn logs_follow_a_reload_and_one_that_cannot_be_opened_changes_nothing() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let (one, two) = (world.dir().join("one.log"), world.dir().join("two.log"));
    for log in [&one, &two] {
        fs::write(log, "").expect("ours");
        fs::set_permissions(log, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .expect("ours");
    }
    let config = |logs: &str| format!("workers: 1\naccess_log:\n{logs}");
    let proxy = world.serve(&config(&format!("- to: {}\n", one.display())));
    world.capture(&proxy);
    traffic(&world, 80, 1);
    let lines = |log| fs::read_to_string(log).expect("a log").lines().count();
    wait_until(SOON, "a line", || lines(&one) == 1);
    let both = format!(
        "- to: {}\n- to: {}\n  format: '%ROUTE_NAME% %RESP(SERVER)% %RESPONSE_CODE% %REQ(USER-AGENT)% %REQ(:PATH)%'\n",
        one.display(),
        two.display()
    );
    proxy.reconfigure(&config(&both));
    assert_eq!(ask(&world, "POST", "/reload", "").status, 200);
    traffic(&world, 80, 1);
    wait_until(SOON, "a line in each", || {
        lines(&one) == 2 && lines(&two) == 1
    });
    let line = fs::read_to_string(&two).expect("a log");
    assert_eq!(line, "- test 200 test /orders?token=*\n");
    proxy.reconfigure(&config("- to: /nonexistent/access.log\n"));
    let rejected = ask(&world, "POST", "/reload", "");
    assert_eq!(rejected.status, 422, "{}", rejected.text());
    assert!(
        rejected.text().contains("/nonexistent/access.log"),
        "{}",
        rejected.text()
    );
    traffic(&world, 80, 1);
    wait_until(SOON, "the old logs in force", || {
        lines(&one) == 3 && lines(&two) == 2
    });
    assert_eq!(
        metric(&world, "outrigger_access_log_dropped_total", ""),
        0.0
    );
}
