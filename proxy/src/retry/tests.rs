use outrigger_config::{BackOff, Cluster as Settings, Locality, RetryOn, Span};
use proptest::prelude::*;

use super::{conditions::tests::Head, *};
use crate::cluster::Rng;

const IDEMPOTENT: Repeatable = Repeatable {
    is_idempotent: true,
    is_kept: true,
};
const POST: Repeatable = Repeatable {
    is_idempotent: false,
    is_kept: true,
};

fn policy(num_retries: u32) -> Retry {
    Retry {
        on: vec![RetryOn::Status5xx],
        num_retries,
        ..Retry::default()
    }
}

fn moment(rng: &Rng) -> Moment<'_> {
    Moment {
        rng,
        now: SystemTime::UNIX_EPOCH,
        left: None,
    }
}

fn cluster(breaker: &str) -> Arc<Cluster> {
    let text = format!(
        "routes: [{{ match: {{}}, cluster: c }}]\nclusters: [{{ name: c, endpoints: [{{ address: '127.0.0.1:1' }}], circuit_breaker: {breaker} }}]"
    );
    let settings = outrigger_config::parse(&text).expect("it is valid");
    let settings: Settings = settings.clusters[0].clone();
    let now = std::time::Instant::now();
    let cluster = Cluster::new(Arc::new(settings.clone()), Locality::default(), 0, now);
    cluster.set_endpoints(&settings.endpoints, false, now);
    cluster
}

fn fails(retries: &Retries, policy: &Retry, fate: Fate<'_>, request: Repeatable) -> bool {
    let rng = Rng::new(1);
    retries
        .again(policy, fate, request, || moment(&rng))
        .is_none()
}

#[test]
fn a_request_is_repeated_as_often_as_the_policy_says() {
    let retries = Retries::new(None);
    let policy = policy(2);
    assert!(!fails(&retries, &policy, Fate::TimedOut, IDEMPOTENT));
    assert!(!fails(&retries, &policy, Fate::TimedOut, IDEMPOTENT));
    assert!(fails(&retries, &policy, Fate::TimedOut, IDEMPOTENT));
    assert_eq!(retries.made(), 2);
}

#[test]
fn what_may_have_been_seen_is_repeated_only_if_that_is_harmless_or_asked_for() {
    let answer = Head(503, Vec::new());
    for fate in [
        answer.fate(),
        Fate::TimedOut,
        Fate::Reset { has_left: true },
    ] {
        assert!(fails(&Retries::new(None), &policy(1), fate, POST));
        assert!(!fails(&Retries::new(None), &policy(1), fate, IDEMPOTENT));
        let asked = Retry {
            non_idempotent: true,
            ..policy(1)
        };
        assert!(!fails(&Retries::new(None), &asked, fate, POST));
    }
    for fate in [
        Fate::NotConnected,
        Fate::Refused,
        Fate::Reset { has_left: false },
    ] {
        assert!(!fails(&Retries::new(None), &policy(1), fate, POST));
    }
}

#[test]
fn what_is_no_longer_there_is_never_repeated() {
    let gone = Repeatable {
        is_kept: false,
        ..IDEMPOTENT
    };
    assert!(fails(
        &Retries::new(None),
        &policy(1),
        Fate::NotConnected,
        gone
    ));
}

#[test]
fn an_answer_that_says_when_is_not_repeated_earlier_nor_when_that_is_too_late() {
    let rng = Rng::new(1);
    let again = |value| {
        let head = Head(503, vec![("retry-after", value)]);
        let retries = Retries::new(None);
        retries.again(&policy(1), head.fate(), IDEMPOTENT, || moment(&rng))
    };
    assert!(again("3").is_some_and(|wait| wait >= Duration::from_secs(3)));
    assert_eq!(again("60"), None);
}

#[test]
fn nothing_is_waited_for_that_the_deadline_would_cut_off() {
    let rng = Rng::new(1);
    let head = Head(503, vec![("retry-after", "3")]);
    let retries = Retries::new(None);
    let left = Some(Duration::from_secs(3));
    let moment = Moment {
        left,
        ..moment(&rng)
    };
    let again = retries.again(&policy(1), head.fate(), IDEMPOTENT, || moment);
    assert_eq!((again, retries.made()), (None, 0));
}

#[test]
fn max_retries_bounds_those_of_the_whole_cluster_until_they_are_settled() {
    let cluster = cluster("{ max_retries: 1 }");
    let (one, other) = (
        Retries::new(Some(cluster.clone())),
        Retries::new(Some(cluster.clone())),
    );
    assert!(!fails(&one, &policy(5), Fate::TimedOut, IDEMPOTENT));
    assert!(fails(&other, &policy(5), Fate::TimedOut, IDEMPOTENT));
    // Its own place is free again when its try is over.
    assert!(!fails(&one, &policy(5), Fate::TimedOut, IDEMPOTENT));
    one.settle(true);
    assert!(!fails(&other, &policy(5), Fate::TimedOut, IDEMPOTENT));
    let counted = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let counts = &cluster.counts;
    assert_eq!(counted(&counts.retries), 3);
    assert_eq!(counted(&counts.retry_overflows), 1);
    assert_eq!(counted(&counts.retry_successes), 1);
}

#[test]
fn a_budget_takes_the_place_of_max_retries_and_grows_with_the_load() {
    let cluster = cluster(
        "{ max_retries: 0, retry_budget: { budget_percent: 20, min_retry_concurrency: 1 } }",
    );
    let begin = |n: usize| -> Vec<_> {
        let retries = (0..n).map(|_| Retries::new(Some(cluster.clone())));
        retries
            .filter(|r| !fails(r, &policy(1), Fate::TimedOut, IDEMPOTENT))
            .collect()
    };
    assert_eq!(begin(10).len(), 1);
    let _active: Vec<_> = (0..50)
        .map(|_| cluster.thresholds().request().expect("room"))
        .collect();
    assert_eq!(begin(50).len(), 10);
}

#[test]
fn a_client_is_told_to_continue_once() {
    let retries = Retries::new(None);
    assert!(retries.first_continue());
    assert!(!retries.first_continue());
}

proptest! {
    /// Whatever happens in whichever order: never more retries than allowed, never one of what may
    /// have had an effect, and never a wait beyond the deadline.
    #[test]
    fn random_histories(
        num_retries in 0..5_u32,
        non_idempotent: bool,
        is_idempotent: bool,
        fates in prop::collection::vec((0..5_u8, 200..600_u16, any::<bool>(), 0..200_u64), 1..20),
        seed: u64,
    ) {
        let policy = Retry {
            on: vec![RetryOn::Status5xx, RetryOn::RefusedStream],
            non_idempotent,
            back_off: BackOff { base_interval: Span::from_millis(25), max_interval: None },
            ..policy(num_retries)
        };
        let rng = Rng::new(seed);
        let retries = Retries::new(None);
        for (kind, status, is_kept, left) in fates {
            let head = Head(status, Vec::new());
            let fate = match kind {
                0 => Fate::NotConnected,
                1 => Fate::Refused,
                2 => Fate::Reset { has_left: true },
                3 => Fate::TimedOut,
                _ => head.fate(),
            };
            let left = Duration::from_millis(left);
            let moment = Moment { left: Some(left), ..moment(&rng) };
            let request = Repeatable { is_idempotent, is_kept };
            if let Some(wait) = retries.again(&policy, fate, request, || moment) {
                prop_assert!(is_kept && wait < left);
                prop_assert!(kind < 4 || status >= 500);
                prop_assert!(is_idempotent || non_idempotent || kind < 2);
            }
            prop_assert!(retries.made() <= num_retries);
        }
    }
}
