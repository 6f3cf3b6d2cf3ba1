//! Messages against bytes that Envoy's own definitions made (xds-protos, through Google's protobuf),
//! and the service against one that speaks HTTP/2.

use super::*;

const REQUEST: &str = "0a096f7574726967676572122a0a1b0a0e72656d6f74655f6164647265737312093139322e302e322e370a0b0a04757365721203616461121f0a120a0b67656e657269635f6b65791203616c6c120508f40310021a020803";

/// Over the limit: 4 of 10 a second are left of the first, none of 500 a minute of the second; a
/// header each way, a body, and dynamic metadata, which is skipped.
const RESPONSE: &str = "0802121408011207080a10011a016e180422051080e59a77120d0802120508f4031002220208111a0e0a05782d776879120571756f7461220b0a05782d7261771a0261622a0a736c6f7720646f776e0a320a0a080a016b12031a0176";

fn bytes(hex: &str) -> Bytes {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("two hex digits")
    };
    digits.map(byte).collect()
}

fn limits(yaml: &str) -> Vec<RateLimit> {
    let text = format!(
        "rate_limit_services: [{{ name: s, cluster: c, domain: d }}]\n\
         clusters: [{{ name: c, endpoints: [{{ address: '192.0.2.1:80' }}] }}]\n\
         defaults: {{ rate_limits: [{yaml}] }}"
    );
    let settings = outrigger_config::parse(&text).expect("good settings");
    settings.defaults.rate_limits
}

fn entries(list: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
    list.iter().map(owned).collect()
}

#[test]
fn a_question_has_the_bytes_that_envoys_definitions_make() {
    let limits = limits(
        "{ name: a, service: s, actions: [remote_address] }, \
         { name: b, service: s, actions: [remote_address], hits_addend: 3, limit: { requests_per_unit: 500, unit: minute } }",
    );
    let request = RateLimitRequest {
        domain: "outrigger".into(),
        descriptors: vec![
            Descriptor::new(
                entries(&[("remote_address", "192.0.2.7"), ("user", "ada")]),
                &limits[0],
            ),
            Descriptor::new(entries(&[("generic_key", "all")]), &limits[1]),
        ],
    };
    assert_eq!(request.encode_to_vec(), bytes(REQUEST));
    assert_eq!(RateLimitRequest::decode(bytes(REQUEST)), Ok(request));
}

#[test]
fn an_answer_is_read_with_all_that_it_says() {
    let answer = read(bytes(RESPONSE), 2).expect("an answer");
    let [first, second] = answer.statuses[..] else {
        panic!("{answer:?}");
    };
    assert!(!first.is_over && second.is_over);
    let quota = first.quota.expect("a quota");
    assert_eq!((quota.allocated, quota.window, quota.available), (10, 1, 4));
    assert_eq!(quota.reset, Duration::from_millis(250));
    let quota = second.quota.expect("a quota");
    assert_eq!(
        (quota.allocated, quota.window, quota.available),
        (500, 60, 0)
    );
    assert_eq!(quota.reset, Duration::from_secs(17));
    let told = |headers: &Headers| format!("{headers:?}");
    assert_eq!(told(&answer.response_headers), r#"[("x-why", "quota")]"#);
    assert_eq!(told(&answer.request_headers), r#"[("x-raw", "ab")]"#);
    assert_eq!(answer.body.as_deref(), Some(&b"slow down\n"[..]));
}

#[test]
fn what_is_said_of_all_holds_for_each_where_nothing_is_said_of_each() {
    let over = |hex, questions| {
        let answer = read(bytes(hex), questions)?;
        Some(
            answer
                .statuses
                .iter()
                .map(|s| s.is_over)
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(over("0801", 2), Some(vec![false, false]));
    assert_eq!(over("0802", 2), Some(vec![true, true]));
    // No code, and no message at all.
    assert_eq!(over("", 1), None);
    assert_eq!(over("ff", 1), None);
}

#[test]
fn a_limit_that_the_service_is_to_apply_is_another_key() {
    let limits = limits(
        "{ name: a, service: s, actions: [remote_address] }, \
         { name: b, service: s, actions: [remote_address], limit: { requests_per_unit: 5, unit: day } }",
    );
    let keys = Keys::default();
    let question = |limit| Question::new(entries(&[("k", "v")]), limit);
    assert_eq!(
        question(&limits[0]).key(&keys),
        question(&limits[0]).key(&keys)
    );
    assert_ne!(
        question(&limits[0]).key(&keys),
        question(&limits[1]).key(&keys)
    );
}

mod spoken {
    use std::{cell::Cell, future::pending, rc::Rc};

    use http::{HeaderMap, Response};
    use outrigger_config::Settings;
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing;

    /// A service that gives the same answer to every question, or none; and counts them.
    async fn server(answer: Option<&'static str>) -> (std::net::SocketAddr, Rc<Cell<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("a bound address");
        let asked = Rc::new(Cell::new(0));
        let counted = asked.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let asked = counted.clone();
                tokio::task::spawn_local(async move {
                    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        assert_eq!(request.uri().path(), client_path());
                        asked.set(asked.get() + 1);
                        tokio::task::spawn_local(async move {
                            let mut body = request.into_body();
                            while let Some(Ok(data)) = body.data().await {
                                let _ = body.flow_control().release_capacity(data.len());
                            }
                            let Some(hex) = answer else {
                                return pending().await;
                            };
                            let message = bytes(hex);
                            let mut frame = vec![0];
                            frame.extend((message.len() as u32).to_be_bytes());
                            frame.extend(message);
                            let mut sent = respond
                                .send_response(Response::new(()), false)
                                .expect("sent");
                            sent.send_data(frame.into(), false).expect("sent");
                            let mut trailers = HeaderMap::new();
                            trailers.insert("grpc-status", "0".parse().expect("a value"));
                            sent.send_trailers(trailers).expect("sent");
                        });
                    }
                });
            }
        });
        (address, asked)
    }

    fn client_path() -> &'static str {
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
    }

    fn service(address: std::net::SocketAddr, more: &str) -> (Arc<Shared>, Arc<Service>) {
        let text = format!(
            "rate_limit_services: [{{ name: s, cluster: c, domain: d {more} }}]\n\
             clusters: [{{ name: c, endpoints: [{{ address: '{address}' }}] }}]"
        );
        let shared = testing::shared(Settings::default());
        shared.clusters.fill(&text);
        let settings = outrigger_config::parse(&text).expect("good settings");
        let wanted = &settings.rate_limit_services;
        shared.rate_limits.follow(&shared, wanted, &shared.clusters);
        let service = shared.rate_limits.services.find("s").expect("followed");
        (shared, service)
    }

    fn question() -> Question {
        let limits = limits("{ name: a, service: s, actions: [remote_address] }");
        Question::new(entries(&[("remote_address", "192.0.2.7")]), &limits[0])
    }

    fn counted(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    #[test]
    fn it_is_asked_over_one_connection_and_believed() {
        testing::run(async {
            let (address, asked) = server(Some("0801")).await;
            let (_shared, service) = service(address, ", timeout: 10s");
            for _ in 0..3 {
                let answer = service.ask([&question()].into_iter()).await;
                assert!(!answer.expect("an answer").statuses[0].is_over);
            }
            assert_eq!((asked.get(), counted(&service.state.counts.ok)), (3, 3));
            assert_eq!(service.pending(), 0);
        });
    }

    #[test]
    fn what_is_over_its_limit_is_not_asked_about_again_until_the_reset() {
        testing::run(async {
            // One status, over 500 a minute, for 17 s.
            let (address, asked) = server(Some("0802120d0802120508f403100222020811")).await;
            let (_shared, service) = service(address, ", timeout: 10s");
            for _ in 0..5 {
                let answer = service
                    .ask([&question()].into_iter())
                    .await
                    .expect("an answer");
                assert!(answer.statuses[0].is_over);
                assert!(answer.statuses[0].quota.expect("a quota").reset > Duration::from_secs(1));
            }
            assert_eq!(asked.get(), 1);
            assert_eq!(counted(&service.state.counts.cache_hits), 4);
            let (_other, uncached) = self::service(address, ", timeout: 10s, cache_entries: 0");
            for _ in 0..2 {
                uncached
                    .ask([&question()].into_iter())
                    .await
                    .expect("an answer");
            }
            assert_eq!(asked.get(), 3);
        });
    }

    #[test]
    fn one_that_stalls_keeps_nobody_longer_than_the_timeout() {
        testing::run(async {
            let (address, _) = server(None).await;
            let (_shared, service) = service(address, ", timeout: 30ms");
            assert!(service.ask([&question()].into_iter()).await.is_none());
            assert_eq!(counted(&service.state.counts.timeouts), 1);
            assert!(!service.denies_unanswered());
        });
    }

    #[test]
    fn one_that_is_dead_fails_and_is_denied_if_that_is_asked_for() {
        testing::run(async {
            let address = testing::closed_port().await;
            let (_shared, service) = service(address, ", timeout: 10s, failure_mode_deny: true");
            assert!(service.ask([&question()].into_iter()).await.is_none());
            assert_eq!(counted(&service.state.counts.errors), 1);
            assert!(service.denies_unanswered());
            assert_eq!(counted(&service.state.counts.failure_mode_denied), 1);
        });
    }

    #[test]
    fn no_more_questions_are_under_way_than_allowed() {
        testing::run(async {
            let (address, _) = server(None).await;
            let (_shared, service) = service(address, ", timeout: 100ms, max_pending_requests: 1");
            let (one, other) = (question(), question());
            let (one, other) = tokio::join!(
                service.ask([&one].into_iter()),
                service.ask([&other].into_iter())
            );
            assert!(one.is_none() && other.is_none());
            assert_eq!(counted(&service.state.counts.overflows), 1);
            assert_eq!(counted(&service.state.counts.timeouts), 1);
            assert_eq!(service.pending(), 0);
        });
    }
}
