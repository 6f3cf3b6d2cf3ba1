use std::{num::NonZeroU32, sync::Arc, time::Duration};

use outrigger_config::{Cluster as Settings, Endpoint as Described, LoadBalancer, Locality};
use proptest::prelude::*;

use super::*;
use crate::cluster::Outcome;
use crate::cluster::Rng;

fn address(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

fn cluster(text: &str, endpoints: &[Described], now: Instant) -> Arc<Cluster> {
    let settings: Settings = serde_json::from_str(text).expect("a cluster");
    let cluster = Cluster::new(settings.into(), Locality::default(), 1, now);
    cluster.set_endpoints(endpoints, false, now);
    cluster
}

fn endpoints(count: u16) -> Vec<Described> {
    (1..=count)
        .map(|port| Described::at(address(port)))
        .collect()
}

/// What befell an endpoint.
#[derive(Clone, Copy, Debug)]
struct Fate {
    weight: u32,
    priority: u8,
    is_labelled: bool,
    is_unhealthy: bool,
    is_ejected: bool,
    is_tripped: bool,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let flag = || prop::bool::weighted(0.3);
    let fate = (1..4_u32, 0..3_u8, any::<bool>(), flag(), flag(), flag()).prop_map(
        |(weight, priority, is_labelled, is_unhealthy, is_ejected, is_tripped)| Fate {
            weight,
            priority,
            is_labelled,
            is_unhealthy,
            is_ejected,
            is_tripped,
        },
    );
    prop::collection::vec(fate, 0..6)
}

fn policies() -> impl Strategy<Value = LoadBalancer> {
    prop_oneof![
        Just(LoadBalancer::RoundRobin),
        Just(LoadBalancer::LeastRequest(Default::default())),
        Just(LoadBalancer::PeakEwma(Default::default())),
        Just(LoadBalancer::Random),
        Just(LoadBalancer::RingHash(Default::default())),
        // A small table, since each case fills some.
        Just(serde_json::from_str(r#"{"maglev": {"table_size": 251}}"#).expect("a policy")),
    ]
}

proptest! {
    /// The whole promise: real picks do what was foretold, and foretelling changed nothing.
    #[test]
    fn picks_do_what_was_foretold(
        fates in fates(),
        load_balancer in policies(),
        panic_threshold in prop::sample::select(vec![0, 50]),
        asks_subset in any::<bool>(),
        falls_back in any::<bool>(),
        hash in prop::option::of(any::<u64>()),
        seed in any::<u64>(),
    ) {
        let now = Instant::now();
        let mut settings: Settings = serde_json::from_str(
            r#"{"name": "c", "endpoints": [],
                "endpoint_breaker": {"consecutive_failures": 1},
                "outlier_detection": {}}"#,
        ).expect("a cluster");
        settings.load_balancer = load_balancer;
        settings.panic_threshold = outrigger_config::Percent(panic_threshold);
        if falls_back {
            settings.subset_fallback = outrigger_config::SubsetFallback::AnyEndpoint;
        }
        let described: Vec<_> = fates.iter().zip(1..).map(|(fate, port)| Described {
            weight: NonZeroU32::new(fate.weight).expect("not zero"),
            priority: fate.priority,
            labels: if fate.is_labelled { labels() } else { Labels::new() },
            ..Described::at(address(port))
        }).collect();
        let cluster = Cluster::new(settings.into(), Locality::default(), seed, now);
        cluster.set_endpoints(&described, false, now);
        for (endpoint, fate) in cluster.endpoints().iter().zip(&fates) {
            endpoint.set_unhealthy(fate.is_unhealthy, now);
            endpoint.set_ejected(fate.is_ejected);
            let settings = cluster.settings();
            if fate.is_tripped {
                let breaker = settings.endpoint_breaker.as_ref().expect("set above");
                let admission = endpoint.breaker.admit(breaker, 0).expect("it admits");
                endpoint.breaker.failed(breaker, admission, 0);
            }
        }
        let wanted = if asks_subset { labels() } else { Labels::new() };
        let subset = asks_subset.then(|| cluster.subset(&wanted, now));
        cluster.rebuild(now);

        let context = PickContext { hash, subset, ..Default::default() };
        let (outlook, refusal) = cluster.outlook(&context, &wanted, now);
        prop_assert_eq!(&cluster.outlook(&context, &wanted, now).0, &outlook);
        let eligible: Vec<_> = outlook.endpoints.iter().filter(|e| e.is_eligible).collect();
        let whole: f64 = eligible.iter().map(|e| e.share_percent).sum();
        prop_assert!(eligible.is_empty() || (whole - 100.0).abs() < 0.1, "{}", whole);
        for endpoint in outlook.endpoints.iter().filter(|e| !e.is_eligible) {
            prop_assert!(!endpoint.objections.is_empty(), "{:?}", endpoint);
        }
        let rng = Rng::new(seed);
        for _ in 0..20 {
            match cluster.pick(&context, &rng, now) {
                Err(error) => prop_assert_eq!(Some(error), refusal),
                Ok(picked) => {
                    prop_assert_eq!(None, refusal);
                    let is_foretold = eligible.iter().any(|e| e.address == picked.endpoint.address);
                    prop_assert!(is_foretold, "{:?} of {:?}", picked.endpoint.address, outlook);
                    if let Some(chosen) = outlook.chosen {
                        prop_assert_eq!(chosen, picked.endpoint.address);
                    }
                }
            }
        }
    }
}

fn labels() -> Labels {
    Labels::from([("version".into(), "2".into())])
}

#[test]
fn limits_that_are_reached_are_told() {
    let now = Instant::now();
    let text = r#"{"name": "c", "endpoints": [], "circuit_breaker": {"max_requests": 1}}"#;
    let cluster = cluster(text, &endpoints(2), now);
    let context = PickContext::default();
    let (free, refusal) = cluster.outlook(&context, &Labels::new(), now);
    assert_eq!((free.requests, refusal), (Use { now: 0, max: 1 }, None));
    let held = cluster.pick(&context, &Rng::new(1), now).expect("room");
    let (full, refusal) = cluster.outlook(&context, &Labels::new(), now);
    assert_eq!(full.requests, Use { now: 1, max: 1 });
    assert_eq!(refusal, Some(PickError::Overflow(Overflow::Requests)));
    assert_eq!(full.endpoints.iter().map(|e| e.active).sum::<u32>(), 1);
    drop(held);
}

#[test]
fn a_breaker_that_probes_is_foretold_as_long_as_it_has_a_probe_left() {
    let now = Instant::now();
    let text = r#"{"name": "c", "endpoints": [], "endpoint_breaker":
        {"consecutive_failures": 1, "trip_duration": "1s", "probes": 1}}"#;
    let cluster = cluster(text, &endpoints(1), now);
    let (context, rng) = (PickContext::default(), Rng::new(1));
    let outlook = |at| cluster.outlook(&context, &Labels::new(), at);
    let failed = cluster.pick(&context, &rng, now).expect("it admits");
    failed.report(Outcome::Error, now);
    let (tripped, refusal) = outlook(now);
    assert_eq!(tripped.endpoints[0].objections, [Objection::BreakerTripped]);
    assert_eq!(refusal, Some(PickError::Tripped));

    let later = now + Duration::from_secs(1);
    let (due, refusal) = outlook(later);
    assert_eq!((due.chosen, refusal), (Some(address(1)), None));
    assert_eq!(
        due.endpoints[0].breaker.as_deref(),
        Some("tripped"),
        "asking begins no probe"
    );
    let probe = cluster.pick(&context, &rng, later).expect("a probe");
    let (out, refusal) = outlook(later);
    assert_eq!(out.endpoints[0].objections, [Objection::BreakerProbing]);
    assert_eq!(refusal, Some(PickError::Tripped));
    drop(probe);
}

#[test]
fn of_many_endpoints_those_that_may_be_chosen_are_told_first() {
    let now = Instant::now();
    let cluster = cluster(r#"{"name": "c", "endpoints": []}"#, &endpoints(300), now);
    for endpoint in cluster.endpoints().iter().take(150) {
        endpoint.set_unhealthy(true, now);
    }
    cluster.rebuild(now);
    let (outlook, _) = cluster.outlook(&PickContext::default(), &Labels::new(), now);
    assert_eq!((outlook.endpoints.len(), outlook.omitted), (MOST_TOLD, 200));
    assert!(outlook.endpoints.iter().all(|e| e.is_eligible));
    let line = serde_json::to_string(&outlook).expect("plain data");
    assert!(
        line.len() < outrigger_config::control::MAX_LINE / 2,
        "{}",
        line.len()
    );
}
