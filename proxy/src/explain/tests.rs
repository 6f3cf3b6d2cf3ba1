use std::sync::Arc;

use outrigger_config::{Snapshot, control::RequestHead};

use super::*;

const CLUSTERS: &str = "
clusters:
- name: api
  endpoints: [{ address: '192.0.2.1:80' }, { address: '192.0.2.2:80' }]
  load_balancer: { ring_hash: { hash_on: { header: x-user } } }
routes:
- { name: api, match: { host: '*.internal', port: 80 }, cluster: api }
- { match: { destination: 203.0.113.9 }, cluster: api, subset: { version: nobody } }
";

fn shared(text: &str) -> Shared {
    let shared = Shared::uncaptured(1);
    shared.clusters.fill(text);
    let settings = outrigger_config::parse(text).expect("good settings");
    let snapshot = Snapshot::compile(settings, Some(&shared.configuration.snapshot()));
    shared
        .configuration
        .publish(Arc::new(snapshot), &shared.clusters, &shared.rate_limits);
    shared
}

fn about(destination: &str) -> Question {
    Question {
        destination: destination.parse().expect("an address"),
        client: None,
        sni: None,
        request: None,
    }
}

fn asking(destination: &str, host: &str, headers: &[(&str, &str)]) -> Question {
    let headers = headers.iter().map(|(n, v)| ((*n).into(), (*v).into()));
    Question {
        request: Some(RequestHead {
            host: Some(host.into()),
            headers: headers.collect(),
            ..RequestHead::default()
        }),
        ..about(destination)
    }
}

#[test]
fn the_route_its_reason_and_its_cluster_are_told() {
    let shared = shared(CLUSTERS);
    let question = asking("203.0.113.7:80", "a.internal", &[]);
    let told = explain(&shared, &question, Instant::now());
    let route = told.route.expect("a route");
    assert_eq!((route.index, &*route.name), (0, "api"));
    assert_eq!(route.matches["host"], "*.internal");
    assert_eq!(
        route.matches.as_object().map(|keys| keys.len()),
        Some(2),
        "{}",
        route.matches
    );
    assert_eq!(route.policy["cluster"], "api");
    let [target] = &told.targets[..] else {
        panic!("one target: {:?}", told.targets);
    };
    let cluster = target.cluster.as_ref().expect("a cluster");
    assert_eq!(
        (&*cluster.load_balancer, cluster.has_key),
        ("ring_hash", false)
    );
    assert_eq!(
        (cluster.chosen, &target.refusal, cluster.is_default),
        (None, &None, false)
    );
    assert_eq!((target.share_percent, told.config_generation), (100.0, 2));
}

#[test]
fn a_key_chooses_the_endpoint_that_real_requests_with_it_go_to() {
    let shared = shared(CLUSTERS);
    let cluster = shared.clusters.find("api").expect("it is configured");
    let rng = crate::cluster::Rng::new(1);
    for user in ["ada", "bob", "cleo", "dan"] {
        let question = asking("203.0.113.7:80", "a.internal", &[("X-User", user)]);
        let told = explain(&shared, &question, Instant::now());
        let told = told.targets[0].cluster.as_ref().expect("a cluster");
        let context = crate::cluster::PickContext {
            hash: Some(crate::cluster::hash_of(user.as_bytes())),
            ..Default::default()
        };
        let picked = cluster
            .pick(&context, &rng, Instant::now())
            .expect("an endpoint");
        assert!(told.has_key);
        assert_eq!(told.chosen, Some(picked.endpoint.address), "{user}");
    }
}

#[test]
fn what_would_be_refused_is_told_with_the_word_of_the_log() {
    let shared = shared(CLUSTERS);
    let told = explain(&shared, &about("203.0.113.9:443"), Instant::now());
    assert_eq!(told.targets[0].refusal.as_deref(), Some("no_endpoint"));
    let route = told.route.expect("a route");
    assert_eq!((route.index, &*route.name), (1, "route-2"));
}

#[test]
fn without_a_word_of_its_contents_the_routes_that_might_hold_are_named() {
    let shared = shared(CLUSTERS);
    let told = explain(&shared, &about("203.0.113.7:80"), Instant::now());
    assert_eq!(told.route, None);
    assert_eq!(
        (&told.targets[0].cluster, &told.targets[0].refusal),
        (&None, &None)
    );
    assert_eq!(told.undecided, ["api"]);
    // On another port that route holds for nothing.
    let told = explain(&shared, &about("203.0.113.7:81"), Instant::now());
    assert!(told.undecided.is_empty(), "{:?}", told.undecided);
    let told = explain(
        &shared,
        &asking("203.0.113.7:80", "x.org", &[]),
        Instant::now(),
    );
    assert!(told.undecided.is_empty(), "{:?}", told.undecided);
}

#[test]
fn a_question_asked_again_and_again_leaves_no_trace() {
    let shared = shared(CLUSTERS);
    let question = asking("203.0.113.7:80", "a.internal", &[("x-user", "ada")]);
    let first = explain(&shared, &question, Instant::now());
    for _ in 0..100 {
        assert_eq!(explain(&shared, &question, Instant::now()), first);
    }
    let cluster = shared.clusters.find("api").expect("it is configured");
    for endpoint in cluster.endpoints() {
        let requests = endpoint
            .counts
            .requests
            .load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((requests, endpoint.active()), (0, 0));
    }
    assert_eq!(shared.registry.count(), 0);
}

#[test]
fn a_split_is_told_target_by_target_and_an_answer_as_one() {
    let shared = shared(
        "
clusters:
- { name: old, endpoints: [{ address: '192.0.2.1:80' }] }
- { name: new, endpoints: [{ address: '192.0.2.2:80' }] }
routes:
- { match: { path: { exact: /gone } }, respond: { status: 410 } }
- { match: { port: 80 }, split: [{ cluster: old, weight: 9 }, { cluster: new, weight: 1 }] }
",
    );
    let mut question = asking("203.0.113.7:80", "svc", &[]);
    let told = explain(&shared, &question, Instant::now());
    let targets: Vec<_> = told
        .targets
        .iter()
        .map(|t| (t.cluster.as_ref().map(|c| &*c.name), t.share_percent))
        .collect();
    assert_eq!(targets, [(Some("old"), 90.0), (Some("new"), 10.0)]);

    question.request.as_mut().expect("a request").path = Some("/gone".into());
    let told = explain(&shared, &question, Instant::now());
    assert_eq!(told.route.expect("a route").answer, Some(410));
    assert!(told.targets.is_empty());
}

#[test]
fn a_destination_that_nobody_uses_is_foretold_under_the_defaults_and_not_remembered() {
    let now = Instant::now();
    let settings = outrigger_config::parse("defaults: { circuit_breaker: { max_requests: 7 } }")
        .expect("good settings");
    let timeout = settings.timeouts.connect;
    let defaults = settings
        .defaults
        .as_cluster(timeout)
        .expect("they ask for something");
    let cluster = crate::cluster::Cluster::new(defaults.clone().into(), Default::default(), 1, now);
    let limits = crate::rate_limit::RateLimits::new(now);
    let onward = Onward::new(cluster.clone(), &defaults, None, &limits);
    let to = "203.0.113.7:80".parse().expect("an address");
    let (outlook, failure) = onward.outlook(to, None, &NoHeaders, &Labels::new(), now);
    assert_eq!(
        (outlook.requests.max, outlook.chosen, failure),
        (7, Some(to), None)
    );
    assert!(cluster.destinations().is_empty());
}
