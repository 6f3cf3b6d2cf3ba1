use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU32, AtomicU64},
    thread,
};

use outrigger_config::Span;
use proptest::prelude::*;

use super::*;

fn rate(max_tokens: u32, tokens_per_fill: u32, fill_interval: Duration) -> Rate {
    let count = |n| NonZeroU32::new(n).expect("it is not zero");
    Rate::new(&TokenBucket {
        max_tokens: count(max_tokens),
        tokens_per_fill: count(tokens_per_fill),
        fill_interval: Span(fill_interval),
    })
}

const SECOND: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::ZERO;

fn moment(nanos: u64) -> Moment {
    Moment(nanos * UNITS_PER_NANO)
}

fn passes(bucket: &Bucket, rate: Rate, nanos: u64) -> bool {
    bucket.take(rate, moment(nanos), 1, NEVER).is_ok()
}

#[test]
fn a_full_bucket_lets_its_tokens_through_at_once_and_then_one_at_a_time() {
    let (bucket, rate) = (Bucket::default(), rate(3, 10, SECOND));
    for left in [2, 1, 0] {
        let (_, told) = bucket.take(rate, moment(0), 1, NEVER).expect("a token");
        assert_eq!(told.tokens, left);
    }
    let (wait, told) = bucket
        .take(rate, moment(0), 1, NEVER)
        .expect_err("it is empty");
    assert_eq!(wait, SECOND / 10);
    assert_eq!(
        told,
        Left {
            tokens: 0,
            full_in: SECOND * 3 / 10
        }
    );
    assert!(!passes(&bucket, rate, 99_999_999));
    assert!(passes(&bucket, rate, 100_000_000));
    assert!(!passes(&bucket, rate, 100_000_000));
}

#[test]
fn under_ten_times_the_rate_10100_pass_in_ten_seconds() {
    let (bucket, rate) = (Bucket::default(), rate(100, 1_000, SECOND));
    let admitted = (0..100_000)
        .filter(|i| passes(&bucket, rate, i * 100_000))
        .count();
    assert!(
        (9_999..=10_201).contains(&admitted),
        "{admitted} are not 10,100 ± 1 %"
    );
}

#[test]
fn several_tokens_are_taken_together_or_not_at_all() {
    let (bucket, rate) = (Bucket::default(), rate(5, 1, SECOND));
    bucket
        .take(rate, moment(0), 3, NEVER)
        .expect("three of five");
    let (wait, left) = bucket
        .take(rate, moment(0), 3, NEVER)
        .expect_err("two are left");
    assert_eq!((wait, left.tokens), (SECOND, 2));
    bucket.take(rate, moment(0), 2, NEVER).expect("these two");
}

#[test]
fn what_may_wait_is_told_how_long_and_who_comes_later_waits_longer() {
    let (bucket, rate) = (Bucket::default(), rate(1, 10, SECOND));
    let take = || bucket.take(rate, moment(0), 1, SECOND / 4);
    let waits: Vec<_> = (0..3)
        .map(|_| take().expect("a place").0.wait.as_millis())
        .collect();
    assert_eq!(waits, [0, 100, 200]);
    assert_eq!(take().expect_err("300 ms are too long").0, SECOND * 3 / 10);
}

#[test]
fn what_is_given_back_is_there_again() {
    let (bucket, rate) = (Bucket::default(), rate(2, 1, SECOND));
    assert!(passes(&bucket, rate, 0) && passes(&bucket, rate, 0));
    bucket.give_back(rate, 1);
    assert!(passes(&bucket, rate, 0) && !passes(&bucket, rate, 0));
    // More than was taken makes it no more than full.
    bucket.give_back(rate, 50);
    assert!(passes(&bucket, rate, 0) && passes(&bucket, rate, 0) && !passes(&bucket, rate, 0));
}

#[test]
fn a_bucket_whose_limit_was_lowered_is_empty_and_no_longer_than_it_takes_to_fill() {
    let bucket = Bucket::default();
    let slow = rate(100, 1, SECOND);
    for _ in 0..100 {
        assert!(passes(&bucket, slow, 0));
    }
    let small = rate(2, 1, SECOND);
    assert!(!passes(&bucket, small, 0));
    let (wait, left) = bucket
        .take(small, moment(0), 1, NEVER)
        .expect_err("it is empty");
    assert_eq!((wait, left.tokens), (SECOND, 0));
}

#[test]
fn workers_that_share_a_bucket_admit_what_one_would() {
    for round in 0..20 {
        let (bucket, rate) = (Bucket::default(), rate(1_000, 1, SECOND));
        let admitted = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        if passes(&bucket, rate, 0) {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner(), 1_000, "round {round}");
    }
}

/// The figure's short form: four threads under a clock of the test's, which all of them advance.
#[test]
fn across_workers_10100_pass_in_ten_seconds() {
    let (bucket, rate) = (Bucket::default(), rate(100, 1_000, SECOND));
    let (asked, admitted) = (AtomicU64::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let at = asked.fetch_add(1, Ordering::Relaxed);
                    if at >= 100_000 {
                        return;
                    }
                    if passes(&bucket, rate, at * 100_000) {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let admitted = admitted.into_inner();
    assert!(
        (9_999..=10_201).contains(&admitted),
        "{admitted} are not 10,100 ± 1 %"
    );
}

/// The bucket of the textbook, in numbers that lose nothing: tokens in parts of one `interval`-th.
struct Textbook {
    level: u128,
    last: u64,
}

impl Textbook {
    fn passes(&mut self, max: u32, fill: u32, interval: u64, at: u64, tokens: u32) -> bool {
        let one = u128::from(interval);
        let grown = self.level + u128::from(at - self.last) * u128::from(fill);
        self.level = grown.min(one * u128::from(max));
        self.last = at;
        let wanted = one * u128::from(tokens);
        let is_there = self.level >= wanted;
        if is_there {
            self.level -= wanted;
        }
        is_there
    }
}

fn gaps() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let gap = prop_oneof![Just(0), 0..1_000_000_u64, 0..3_000_000_000_u64];
    prop::collection::vec((gap, 1..4_u32), 1..200)
}

proptest! {
    /// Where a token comes in a whole number of units, no decision differs from the textbook's.
    #[test]
    fn it_decides_as_the_textbook_does(
        max in 1..50_u32,
        fill in prop::sample::select(vec![1_u32, 2, 4, 5, 8, 10, 100, 1_000, 10_000]),
        gaps in gaps(),
    ) {
        let (bucket, rate) = (Bucket::default(), rate(max, fill, SECOND));
        let interval = SECOND.as_nanos() as u64;
        let mut textbook = Textbook { level: u128::from(max) * u128::from(interval), last: 0 };
        let mut at = 0;
        for (gap, tokens) in gaps {
            at += gap;
            let is_there = textbook.passes(max, fill, interval, at, tokens);
            prop_assert_eq!(bucket.take(rate, moment(at), tokens, NEVER).is_ok(), is_there);
        }
    }

    /// At any rate, in every window: no more than the burst and what came in it.
    #[test]
    fn no_window_has_more_than_the_burst_and_the_rate(
        max in 1..50_u32,
        fill in 1..2_000_000_u32,
        millis in 1..5_000_u64,
        gaps in gaps(),
    ) {
        let interval = Duration::from_millis(millis);
        let (bucket, rate) = (Bucket::default(), rate(max, fill, interval));
        let mut at = 0;
        let mut admitted = Vec::new();
        for (gap, tokens) in gaps {
            at += gap / 1_000;
            if bucket.take(rate, moment(at), tokens, NEVER).is_ok() {
                admitted.push((at, u64::from(tokens)));
            }
        }
        for (i, (from, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for (until, tokens) in &admitted[i..] {
                sum += tokens;
                let came = f64::from(fill) * (until - from) as f64 / interval.as_nanos() as f64;
                prop_assert!(sum as f64 <= f64::from(max) + came + 1e-6);
            }
        }
    }

    /// Whoever keeps to the rate, after any pauses, is never limited.
    #[test]
    fn a_client_that_conforms_is_never_limited(
        max in 1..50_u32,
        fill in 1..100_000_u32,
        pauses in prop::collection::vec(0..10_000_000_u64, 1..500),
    ) {
        let (bucket, rate) = (Bucket::default(), rate(max, fill, SECOND));
        let apart = rate.per_token.div_ceil(UNITS_PER_NANO);
        // Rounded up to a sixteenth of a nanosecond, and no further.
        prop_assert!(apart <= 1_000_000_000 / u64::from(fill) + 1);
        let mut at = 0;
        for pause in pauses {
            prop_assert!(passes(&bucket, rate, at));
            at += apart + pause;
        }
    }

    /// A client that waits for as long as it was told is admitted then, and not a unit before.
    #[test]
    fn the_wait_that_is_told_is_exact(max in 1..20_u32, fill in 1..1_000_u32, gaps in gaps()) {
        let (bucket, rate) = (Bucket::default(), rate(max, fill, SECOND));
        let mut at = 0;
        for (gap, tokens) in gaps {
            let tokens = tokens.min(max);
            at += gap / 100;
            if let Err((wait, _)) = bucket.take(rate, moment(at), tokens, NEVER) {
                let wait = wait.as_nanos() as u64;
                prop_assert!(bucket.take(rate, moment(at + wait - 1), tokens, NEVER).is_err());
                at += wait;
                prop_assert!(bucket.take(rate, moment(at), tokens, NEVER).is_ok());
            }
        }
    }
}
