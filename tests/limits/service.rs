//! A rate limit service that many proxies could share, and what becomes of traffic when it is slow,
//! dead or says no.

use std::time::Instant;

use crate::{
    client::{ask, connect, say, statuses},
    server::{Asked, OK, OK_WITH_HEADERS, OVER, OVER_NOW, Server},
    support::{SVC4, Speak, World},
};

const PORT: u16 = 8081;

/// Everything to where it was dialled, if the service agrees.
fn config(service: &str, limits: &str) -> String {
    format!(
        "rate_limit_services: [{{ name: rls, cluster: rls, domain: shop{service} }}]\n\
         clusters: [{{ name: rls, endpoints: [{{ address: '{SVC4}:{PORT}' }}] }}]\n\
         routes: [{{ match: {{}}, cluster: original_destination, rate_limits: [{limits}] }}]\n"
    )
}

const BY_USER: &str = "{ name: user, service: rls, actions: [remote_address, \
                       { request_headers: { header_name: x-user, descriptor_key: user } }] }";

/// Longer than a busy machine takes; the service answers at once.
const PATIENT: &str = ", timeout: 10s";

fn counted(world: &World, result: &str) -> f64 {
    world.metric_sum(
        "outrigger_rate_limit_service_requests_total",
        &format!("result=\"{result}\""),
    )
}

#[test]
fn the_service_is_asked_and_believed_and_not_asked_again_until_the_reset() {
    let world = World::new();
    let _nginx = world.nginx();
    let server = Server::start(world.svc.listen(PORT), |asked| {
        let is_eve = asked.descriptors[0].contains(&"user=eve".to_owned());
        Some(if is_eve { OVER } else { OK })
    });
    let proxy = world.serve(&config(PATIENT, BY_USER));
    world.capture(&proxy);
    assert_eq!(statuses(&world, 2, "x-user: ada\r\n"), [200; 2]);
    let asked = Asked {
        domain: "shop".into(),
        descriptors: vec![vec![
            "remote_address=198.51.100.1".into(),
            "user=ada".into(),
        ]],
    };
    assert_eq!(server.asked(), [asked.clone(), asked]);

    let mut eve = connect(&world);
    let told = ask(&mut eve, "x-user: eve\r\n");
    assert_eq!((told.status, &*told.body), (429, "slow down\n"));
    assert_eq!(told.header("x-why"), Some("quota"));
    assert_eq!(told.header("ratelimit-policy"), Some("\"user\";q=500;w=60"));
    assert_eq!(told.header("ratelimit"), Some("\"user\";r=0;t=17"));
    assert_eq!(told.header("retry-after"), Some("17"));
    for _ in 0..3 {
        assert_eq!(ask(&mut eve, "x-user: eve\r\n").status, 429);
    }
    assert_eq!(server.asked().len(), 3, "the last three were known");
    assert_eq!(counted(&world, "over_limit"), 1.0);
    assert_eq!(
        world.metric("outrigger_rate_limit_service_cache_hits_total{service=\"rls\"}"),
        3.0
    );
    // Without the header there is nothing to ask about.
    assert_eq!(statuses(&world, 1, ""), [200]);
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn all_limits_of_a_service_are_one_question() {
    let world = World::new();
    let _nginx = world.nginx();
    let server = Server::start(world.svc.listen(PORT), |_| Some(OK));
    let all = "{ name: all, service: rls, actions: [{ generic_key: { descriptor_value: all } }, destination_address] }";
    let proxy = world.serve(&config(PATIENT, &format!("{BY_USER}, {all}")));
    world.capture(&proxy);
    assert_eq!(statuses(&world, 1, "x-user: ada\r\n"), [200]);
    let descriptors: [Vec<String>; 2] = [
        vec!["remote_address=198.51.100.1".into(), "user=ada".into()],
        vec![
            "generic_key=all".into(),
            "destination_address=198.51.100.2:80".into(),
        ],
    ];
    assert_eq!(server.asked()[0].descriptors, descriptors);
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn the_service_may_have_headers_added_both_ways() {
    let world = World::new();
    let _nginx = world.nginx();
    let _server = Server::start(world.svc.listen(PORT), |_| Some(OK_WITH_HEADERS));
    let limit =
        "{ name: all, service: rls, actions: [{ generic_key: { descriptor_value: all } }] }";
    let proxy = world.serve(&config(PATIENT, limit));
    world.capture(&proxy);
    let mut client = connect(&world);
    for _ in 0..2 {
        let told = say(
            &mut client,
            "GET /echo-headers HTTP/1.1\r\nHost: svc\r\n\r\n",
        );
        assert!(told.body.starts_with("r|"), "{}", told.body);
        assert_eq!(told.header("x-why"), Some("quota"), "{}", told.head);
    }
    let answer = world.app.sh(&format!(
        "curl -sS --http2-prior-knowledge -i http://{SVC4}:8080/echo-headers"
    ));
    assert!(
        answer.contains("x-why: quota") && answer.contains("\nr|"),
        "{answer}"
    );
}

#[test]
fn a_service_that_stalls_lets_traffic_pass_after_its_timeout() {
    let world = World::new();
    let _nginx = world.nginx();
    let _server = Server::start(world.svc.listen(PORT), |_| None);
    let proxy = world.serve(&config("", BY_USER));
    world.capture(&proxy);
    let begun = Instant::now();
    assert_eq!(statuses(&world, 5, "x-user: ada\r\n"), [200; 5]);
    // The timeout of each is 20 ms.
    assert!(begun.elapsed().as_millis() >= 100, "{:?}", begun.elapsed());
    assert_eq!(counted(&world, "timeout"), 5.0);
    let unanswered = |action: &str| {
        world.metric_sum(
            "outrigger_rate_limit_service_unanswered_total",
            &format!("action=\"{action}\""),
        )
    };
    assert_eq!((unanswered("allowed"), unanswered("denied")), (5.0, 0.0));
}

#[test]
fn without_a_service_traffic_passes_or_is_denied_as_asked() {
    for (deny, status) in [(false, 200), (true, 500)] {
        let world = World::new();
        let _nginx = world.nginx();
        let proxy = world.serve(&config(
            &format!("{PATIENT}, failure_mode_deny: {deny}"),
            BY_USER,
        ));
        world.capture(&proxy);
        let mut client = connect(&world);
        let told = ask(&mut client, "x-user: ada\r\n");
        assert_eq!(told.status, status, "{}", told.head);
        assert_eq!(counted(&world, "error"), 1.0);
        if deny {
            let cause = told.header("proxy-status").expect("whose answer it is");
            assert!(
                cause.contains("rate limit service does not answer"),
                "{cause}"
            );
        }
    }
}

#[test]
fn a_service_that_comes_back_is_asked_again() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve(&config(PATIENT, BY_USER));
    world.capture(&proxy);
    assert_eq!(statuses(&world, 1, "x-user: ada\r\n"), [200]);
    let server = Server::start(world.svc.listen(PORT), |_| Some(OVER_NOW));
    assert_eq!(statuses(&world, 2, "x-user: ada\r\n"), [429; 2]);
    assert_eq!(
        server.asked().len(),
        2,
        "an answer without a reset is not remembered"
    );
}

#[test]
fn connections_of_what_is_no_http_are_asked_about_too() {
    let world = World::new();
    let peer = world.peer(7, |mut stream| {
        let line = stream.hear_until("\n")?;
        stream.say(line)
    });
    let _server = Server::start(world.svc.listen(PORT), |asked| {
        let is_echo =
            asked.descriptors[0].contains(&"destination_address=198.51.100.2:7".to_owned());
        Some(if is_echo { OVER_NOW } else { OK })
    });
    let limit = "{ name: all, service: rls, actions: [destination_address] }";
    let proxy = world.serve(&config(PATIENT, limit));
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 7));
    client.say("ping\n").expect("it can be written");
    assert!(client.hear_until("\n").is_err());
    assert_eq!(peer.accepted(), 0);
}
