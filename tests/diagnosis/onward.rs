//! Where a connection ends at our own proxy, `explain` tells what that would do with it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use outrigger_config::control::{Identity, Reply, Request, socket_name};

use crate::{
    incident::nginx,
    netns::{Namespace, Pair, run},
    proxyctl::{Outcome, ctl, ctl_as, serve, until},
};

const CONFIG: &str = "
routes:
- { name: api, match: { host: '*.internal', port: 80 }, cluster: api }
- { name: keyed, match: { host: keyed.example }, cluster: keyed }
clusters:
- name: api
  endpoints: [{ address: '10.77.0.2:80' }, { address: '10.77.0.2:81' }]
  endpoint_breaker: { consecutive_failures: 1, trip_duration: 1h, max_trip_duration: 1h }
- name: keyed
  endpoints: [{ address: '10.77.0.2:80' }, { address: '10.77.0.2:82' }, { address: '10.77.0.2:83' }]
  load_balancer: { maglev: { hash_on: { header: x-user } } }
";

/// Everything but the proxy's own goes to the proxy.
const REDIRECT: &str = "iptables-legacy -t nat -A OUTPUT -p tcp --dport 80 -m owner ! --uid-owner 1337 -j REDIRECT --to-ports 15001";

fn config(text: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("onward-{}-{number}.yaml", std::process::id()));
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

pub(crate) fn request(namespace: &Namespace, host: &str) -> String {
    namespace.enter(|| {
        run(&format!(
            "curl -s -m 10 -o /dev/null -w %{{http_code}} -H Host:{host} http://10.77.0.2/"
        ))
    })
}

#[test]
fn route_cluster_and_endpoint_are_the_running_proxys_own() {
    let pair = Pair::new();
    let _server = nginx(&pair.peer, "onward", "10.77.0.2:80", "return 200 hello");
    let _proxy = serve(
        &pair.app,
        &format!("--workers 1 --config {}", config(CONFIG)),
    );
    ctl(&pair.app, "install-rules --json").expect("captured");

    let line = "explain 10.77.0.2:80 --host a.internal:80";
    let before = ctl(&pair.app, &format!("{line} --json"));
    assert_eq!(before.code, 0, "{before:?}");
    let explanation = &before.json["onward"]["explanation"];
    assert_eq!(explanation["route"]["name"], "api", "{before:?}");
    assert_eq!(explanation["route"]["matches"]["host"], "*.internal");
    let endpoints = explanation["targets"][0]["cluster"]["endpoints"]
        .as_array()
        .unwrap();
    assert_eq!(endpoints.len(), 2, "{before:?}");
    assert!(
        endpoints
            .iter()
            .all(|e| e["is_eligible"] == true && e["share_percent"] == 50.0)
    );

    // The dead endpoint trips its breaker; what is told follows.
    until("both endpoints to be tried", || {
        assert_eq!(request(&pair.app, "a.internal"), "200");
        endpoint(&ctl(&pair.app, &format!("{line} --json")), "10.77.0.2:81")["is_eligible"] == false
    });
    let after = ctl(&pair.app, &format!("{line} --json"));
    let dead = endpoint(&after, "10.77.0.2:81");
    assert_eq!(
        dead["objections"],
        serde_json::json!(["breaker_tripped"]),
        "{after:?}"
    );
    assert_eq!(dead["breaker"], "tripped");
    assert_eq!(
        after.json["onward"]["explanation"]["targets"][0]["cluster"]["chosen"],
        "10.77.0.2:80"
    );

    let text = ctl(&pair.app, line).stdout;
    for words in [
        "There Outrigger (pid ",
        "Route api (number 1) holds: it goes to cluster api, there to 10.77.0.2:80.",
        "the route asks for host *.internal, port 80",
        "1 of 2 endpoints may be chosen",
        "10.77.0.2:81: not chosen; its breaker is tripped",
        "of 1024 requests",
        "ct timeout set \"passing\"",
        "ct status dnat",
    ] {
        assert!(text.contains(words), "{words:?} is missing: {text}");
    }
    let first = text.lines().next().unwrap_or_default();
    assert!(first.contains("is taken by Outrigger"), "{text}");
    for words in ["may match", "objref", "it says besides"] {
        assert!(!text.contains(words), "{words:?} is told: {text}");
    }
}

#[test]
fn a_key_names_the_endpoint_and_without_a_word_of_the_request_nothing_is_guessed() {
    let pair = Pair::new();
    let _proxy = serve(
        &pair.app,
        &format!("--workers 1 --config {}", config(CONFIG)),
    );
    pair.app.enter(|| run(REDIRECT));
    let chosen = |user: &str| {
        let line =
            format!("explain 10.77.0.2:80 --host keyed.example --header x-user:{user} --json");
        let told = ctl(&pair.app, &line);
        let chosen = &told.json["onward"]["explanation"]["targets"][0]["cluster"]["chosen"];
        chosen
            .as_str()
            .unwrap_or_else(|| panic!("{told:?}"))
            .to_owned()
    };
    assert_eq!(chosen("ada"), chosen("ada"));
    let all: std::collections::BTreeSet<_> = (0..20).map(|n| chosen(&format!("u{n}"))).collect();
    assert_eq!(all.len(), 3, "{all:?}");

    let keyless = ctl(&pair.app, "explain 10.77.0.2:80 --host keyed.example");
    assert!(keyless.stdout.contains("--header"), "{keyless:?}");
    let silent = ctl(&pair.app, "explain 10.77.0.2:80");
    assert!(
        silent
            .stdout
            .contains("No route holds: it is passed on to where it was dialled"),
        "{silent:?}"
    );
    assert!(
        silent.stdout.contains("may hold instead: api, keyed"),
        "{silent:?}"
    );
}

#[test]
fn a_proxy_that_hangs_does_not_make_it_hang() {
    let pair = Pair::new();
    let proxy = serve(&pair.app, "");
    pair.app.enter(|| run(REDIRECT));
    assert_eq!(ctl(&pair.app, "explain 10.77.0.2:80").code, 0);
    proxy.signal("STOP");
    let asked = Instant::now();
    let told = ctl(&pair.app, "explain 10.77.0.2:80");
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(told.code, 2, "{told:?}");
    assert!(
        told.stdout
            .contains("not seen: what the proxy there would do: the proxy is stopped"),
        "{told:?}"
    );
    assert!(
        told.stdout.contains("15001"),
        "the rules are told all the same: {told:?}"
    );
}

#[test]
fn who_may_not_ask_is_told_so() {
    let pair = Pair::new();
    let _proxy = serve(&pair.app, "");
    pair.app.enter(|| run(REDIRECT));
    for command in ["status", "top"] {
        let told = ctl_as(&pair.app, 1000, command);
        assert_eq!(told.code, 1);
        let advice = "what to do: run it as root (sudo), or as user 1337";
        assert!(told.stderr.contains(advice), "{told:?}");
    }
    let told = ctl_as(&pair.app, 1000, "explain 10.77.0.2:80");
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.stdout.contains("not seen"), "{told:?}");
}

#[test]
fn a_proxy_of_another_version_is_named_as_that() {
    let pair = Pair::new();
    pair.app.enter(|| run(REDIRECT));
    let _old = pair.app.enter(|| {
        pretend("0.0.7", |stream| {
            let refusal = Reply::Refused(
                "not understood: unknown variant `explain`, expected one of …".into(),
            );
            let _ = writeln!(stream, "{}", serde_json::to_string(&refusal).unwrap());
        })
    });
    let told = ctl(&pair.app, "explain 10.77.0.2:80");
    assert_eq!(told.code, 2, "{told:?}");
    let version = env!("CARGO_PKG_VERSION");
    let words = format!(
        "the proxy is of version 0.0.7 and does not understand this proxyctl, which is {version}"
    );
    assert!(told.stdout.contains(&words), "{told:?}");
    let traffic = ctl(&pair.app, "top --json --interval 100ms");
    assert_eq!(
        (traffic.code, traffic.text("check")),
        (1, "version"),
        "{traffic:?}"
    );
}

/// A byte now and then, which each by itself comes in time.
#[test]
fn an_answer_that_trickles_is_given_up() {
    let pair = Pair::new();
    pair.app.enter(|| run(REDIRECT));
    let _slow = pair.app.enter(|| {
        pretend("0.1.0", |stream| {
            while stream.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(200));
            }
        })
    });
    let asked = Instant::now();
    let told = ctl(&pair.app, "explain 10.77.0.2:80");
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.stdout.contains("does not answer"), "{told:?}");
}

fn endpoint<'a>(told: &'a Outcome, address: &str) -> &'a serde_json::Value {
    let endpoints =
        told.json["onward"]["explanation"]["targets"][0]["cluster"]["endpoints"].as_array();
    let endpoints = endpoints.unwrap_or_else(|| panic!("{told:?}"));
    endpoints
        .iter()
        .find(|e| e["address"] == address)
        .unwrap_or_else(|| panic!("{told:?}"))
}

/// A control socket, and a listener, that tell who they are and then do as they are told. Both end with
/// what is returned, at the next connection at the latest.
fn pretend(version: &'static str, answer: fn(&mut UnixStream)) -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind("127.0.0.1:15001").unwrap();
    let name = SocketAddr::from_abstract_name(socket_name(15001)).unwrap();
    let control = UnixListener::bind_addr(&name).unwrap();
    let identity = Identity {
        instance: "pretended".into(),
        version: version.into(),
        pid: std::process::id(),
        uid: 0,
        workers: 1,
        listeners: vec![listener.local_addr().unwrap()],
        listener_inodes: Vec::new(),
        mark: None,
        uptime_secs: 1,
        draining: false,
        tethers: Vec::new(),
        captured_since: None,
    };
    thread::spawn(move || {
        for stream in control.incoming() {
            let Ok(mut stream) = stream else { return };
            let identity = identity.clone();
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(line)) = lines.next() {
                    match serde_json::from_str(&line) {
                        Ok(Request::Hello) => {
                            let hello = Reply::Hello(identity.clone());
                            let hello = serde_json::to_string(&hello).unwrap();
                            let _ = writeln!(stream, "{hello}");
                        }
                        _ => answer(&mut stream),
                    }
                }
            });
        }
    });
    listener
}
