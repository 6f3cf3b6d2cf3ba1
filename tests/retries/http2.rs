//! The same over HTTP/2, gRPC's conditions and deadlines included.

use std::time::{Duration, Instant};

use h2::Reason;

use crate::{
    endpoints::routed,
    http2_endpoints::{Caller, Does, Http2Endpoints, in_runtime},
    support::World,
};

const BACK_OFF: &str = "back_off: { base_interval: 1ms }";

#[test]
fn each_grpc_condition_is_met_by_its_status_alone() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let names = [
        ("cancelled", "1"),
        ("deadline-exceeded", "4"),
        ("resource-exhausted", "8"),
        ("internal", "13"),
        ("unavailable", "14"),
    ];
    let policies = names
        .map(|(name, _)| format!("retry: {{ on: [{name}], non_idempotent: true, {BACK_OFF} }}"));
    let hosts = names.map(|(name, _)| format!("{name}.test"));
    let routes: Vec<_> = (hosts.iter().zip(&policies))
        .map(|(host, policy)| (host.as_str(), policy.as_str()))
        .collect();
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    in_runtime(async {
        let mut caller = Caller::connect(&world).await;
        for (name, own) in names {
            for (_, status) in names {
                endpoints.will([Does::Grpc(status)]);
                let host = format!("{name}.test");
                let answer = caller.call(&host, &[], b"ping").await.expect("an answer");
                let seen = endpoints.seen();
                if status == own {
                    assert_eq!(seen.len(), 2, "{name} after {status}");
                    assert_eq!(answer.grpc_status(), Some("0"));
                    assert!(seen.iter().all(|s| s.body == b"ping"), "{seen:?}");
                } else {
                    assert_eq!(seen.len(), 1, "{name} after {status}");
                    assert_eq!(answer.grpc_status(), Some(status));
                }
            }
        }
    });
}

#[test]
fn conditions_of_http_hold_for_streams_too() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let routes = [
        (
            "status.test",
            format!("retry: {{ on: [gateway-error], {BACK_OFF} }}"),
        ),
        (
            "reset.test",
            format!("retry: {{ on: [reset], {BACK_OFF} }}"),
        ),
        (
            "none.test",
            format!("retry: {{ on: [retriable-4xx], {BACK_OFF} }}"),
        ),
    ];
    let routes: Vec<_> = routes.iter().map(|(h, p)| (*h, p.as_str())).collect();
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    in_runtime(async {
        let mut caller = Caller::connect(&world).await;
        for (host, does, tries) in [
            ("status.test", Does::Status(503), 2),
            ("status.test", Does::Status(500), 1),
            ("reset.test", Does::Resets(Reason::INTERNAL_ERROR), 2),
            ("reset.test", Does::Status(503), 1),
            ("none.test", Does::Status(409), 2),
            ("none.test", Does::Status(503), 1),
        ] {
            endpoints.will([does]);
            let answer = caller.ask("PUT", host, [], b"body").await;
            let seen = endpoints.seen();
            assert_eq!(seen.len(), tries, "{host} after {does:?}: {answer:?}");
            assert!(seen.iter().all(|s| s.body == b"body"), "{seen:?}");
            assert_eq!(tries == 2, answer.is_ok_and(|a| a.status == 200), "{host}");
        }
    });
}

#[test]
fn a_post_that_was_seen_is_not_repeated_and_one_that_was_refused_is() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let policy = format!("retry: {{ on: [5xx, reset, unavailable, refused-stream], {BACK_OFF} }}");
    let proxy = world.serve(&routed(&[("svc.test", &policy)], ""));
    world.capture(&proxy);
    in_runtime(async {
        let mut caller = Caller::connect(&world).await;
        for does in [
            Does::Status(503),
            Does::Resets(Reason::INTERNAL_ERROR),
            Does::Grpc("14"),
        ] {
            endpoints.will([does]);
            let _ = caller.call("svc.test", &[], b"once").await;
            assert_eq!(endpoints.seen().len(), 1, "{does:?}");
        }
        // More often than what is sent again without any policy.
        endpoints.will([Does::Resets(Reason::REFUSED_STREAM); 9]);
        let answer = caller
            .call("svc.test", &[], b"once")
            .await
            .expect("an answer");
        assert_eq!(
            (answer.grpc_status(), endpoints.seen().len()),
            (Some("0"), 1)
        );
    });
}

#[test]
fn a_body_beyond_the_cap_is_relayed_and_not_repeated() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let policy = format!("retry: {{ on: [5xx], max_body_bytes: 200000, {BACK_OFF} }}");
    let proxy = world.serve(&routed(&[("svc.test", &policy)], ""));
    world.capture(&proxy);
    in_runtime(async {
        let mut caller = Caller::connect(&world).await;
        for (length, tries) in [(0, 2), (200_000, 2), (200_001, 1), (500_000, 1)] {
            let body = vec![b'x'; length];
            endpoints.will([Does::Status(503)]);
            let answer = caller
                .ask("PUT", "svc.test", [], &body)
                .await
                .expect("an answer");
            let seen = endpoints.seen();
            assert_eq!(
                (seen.len(), answer.status == 200),
                (tries, tries == 2),
                "{length}"
            );
            assert!(seen.iter().all(|s| s.body == body), "{length}");
        }
    });
}

#[test]
fn a_call_that_takes_too_long_ends_with_deadline_exceeded() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let routes = [
        ("request.test", "timeout: 200ms"),
        ("grpc.test", "grpc_timeout: {}"),
        ("stream.test", "max_stream_duration: 200ms"),
        ("idle.test", "idle_timeout: 200ms"),
    ];
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    in_runtime(async {
        let mut caller = Caller::connect(&world).await;
        for (host, headers) in [
            ("request.test", &[][..]),
            ("grpc.test", &[("grpc-timeout", "200m")][..]),
            ("stream.test", &[]),
            ("idle.test", &[]),
        ] {
            endpoints.will([Does::Hangs]);
            let begun = Instant::now();
            let answer = caller
                .call(host, headers, b"ping")
                .await
                .expect("an answer");
            assert!(begun.elapsed() >= Duration::from_millis(190), "{host}");
            assert_eq!(
                (answer.status, answer.grpc_status()),
                (200, Some("4")),
                "{host}"
            );
            assert!(answer.trailers.is_none(), "trailers only: {answer:?}");
            assert!(answer.headers.contains_key("proxy-status"), "{answer:?}");
            // The half that it has got is followed by the status.
            if host != "idle.test" {
                endpoints.will([Does::Begins]);
                let answer = caller
                    .call(host, headers, b"ping")
                    .await
                    .expect("an answer");
                assert_eq!(
                    (answer.body.as_slice(), answer.grpc_status()),
                    (&b"half"[..], Some("4")),
                    "{host}"
                );
            }
        }
        // What is no call is told in HTTP's words, or by a reset.
        endpoints.will([Does::Hangs]);
        let answer = caller
            .ask("GET", "request.test", [], b"")
            .await
            .expect("an answer");
        assert_eq!(answer.status, 504);
        endpoints.will([Does::Begins]);
        let cut = caller.ask("GET", "request.test", [], b"").await;
        assert!(cut.is_err_and(|e| e.is_reset()));
    });
}

#[test]
fn the_endpoint_is_told_what_is_left_of_the_deadline() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let retry = "retry: { on: [unavailable], non_idempotent: true, attempt_count: true, back_off: { base_interval: 100ms } }";
    let routes = [
        ("shorter.test", "timeout: 10s".to_owned()),
        ("capped.test", "grpc_timeout: { max: 2s }".to_owned()),
        ("offset.test", "grpc_timeout: { offset: 1s }".to_owned()),
        ("retried.test", retry.to_owned()),
    ];
    let routes: Vec<_> = routes.iter().map(|(h, p)| (*h, p.as_str())).collect();
    let proxy = world.serve(&routed(&routes, ""));
    world.capture(&proxy);
    in_runtime(async {
        let mut caller = Caller::connect(&world).await;
        let told = |endpoints: &Http2Endpoints| -> Vec<Duration> {
            let seen = endpoints.seen();
            let values = seen.iter().filter_map(|s| s.headers.get("grpc-timeout"));
            values.map(|v| micros(v.to_str().expect("ASCII"))).collect()
        };
        for (host, said, least, most) in [
            ("shorter.test", "1H", 9, 10),
            ("shorter.test", "5S", 4, 5),
            ("capped.test", "1M", 1, 2),
            ("offset.test", "3S", 1, 2),
        ] {
            endpoints.will([]);
            caller
                .call(host, &[("grpc-timeout", said)], b"ping")
                .await
                .expect("an answer");
            let told = told(&endpoints)[0];
            let within = Duration::from_secs(least)..=Duration::from_secs(most);
            assert!(within.contains(&told), "{host} {said}: {told:?}");
        }
        endpoints.will([Does::Grpc("14")]);
        caller
            .call("retried.test", &[("grpc-timeout", "5S")], b"ping")
            .await
            .expect("an answer");
        let told = told(&endpoints);
        assert!(told[1] < told[0], "{told:?}");
        let numbers: Vec<_> = (endpoints.seen().iter())
            .map(|s| s.headers["x-envoy-attempt-count"].clone())
            .collect();
        assert_eq!(numbers, ["1", "2"]);
    });
}

/// A `grpc-timeout`, of which ours are in microseconds from a tenth of a second on.
fn micros(text: &str) -> Duration {
    let number = text.strip_suffix('u').and_then(|n| n.parse().ok());
    Duration::from_micros(number.unwrap_or_else(|| panic!("{text}")))
}

#[test]
fn without_a_policy_a_call_is_left_as_it_is() {
    let world = World::new();
    let endpoints = Http2Endpoints::start(&world);
    let proxy = world.serve(&routed(&[("svc.test", "subset: {}")], ""));
    world.capture(&proxy);
    in_runtime(async {
        let mut caller = Caller::connect(&world).await;
        endpoints.will([Does::Grpc("14")]);
        let headers = [("grpc-timeout", "1H")];
        let answer = caller
            .call("svc.test", &headers, b"ping")
            .await
            .expect("an answer");
        let seen = endpoints.seen();
        assert_eq!((answer.grpc_status(), seen.len()), (Some("14"), 1));
        assert_eq!(seen[0].headers["grpc-timeout"], "1H");
    });
}
