use std::num::NonZeroU32;

use outrigger_config::Percent;
use proptest::prelude::*;

use super::*;

struct World {
    settings: OutlierDetection,
    endpoints: Vec<Endpoint>,
    outlier: Outlier,
    now: Instant,
}

impl World {
    fn of(count: u16, settings: OutlierDetection) -> Self {
        let now = Instant::now();
        let endpoint = |port| Endpoint::new(([192, 0, 2, 1], port).into(), now);
        Self {
            settings,
            endpoints: (1..=count).map(endpoint).collect(),
            outlier: Outlier::default(),
            now,
        }
    }

    fn observe(&self, index: usize, outcome: Outcome) -> bool {
        self.outlier.observe(
            &self.settings,
            &self.endpoints[index],
            outcome,
            Company::Cluster,
            || self.endpoints.iter(),
            self.now,
        )
    }

    fn sweep_after(&mut self, wait: Duration) -> bool {
        self.now += wait;
        let all: Vec<_> = self.endpoints.iter().collect();
        self.outlier.sweep(&self.settings, &all, self.now)
    }

    fn fail(&self, index: usize) -> bool {
        (0..5).any(|_| self.observe(index, Outcome::Error))
    }

    fn ejected(&self) -> usize {
        self.endpoints.iter().filter(|e| e.is_ejected()).count()
    }
}

const SWEEP: Duration = Duration::from_secs(10);

#[test]
fn five_errors_in_a_row_eject_and_thirty_seconds_later_it_is_back() {
    let mut world = World::of(3, OutlierDetection::default());
    assert!(world.fail(0));
    assert!(!world.sweep_after(SWEEP) && !world.sweep_after(SWEEP));
    assert_eq!(world.ejected(), 1);
    assert!(world.sweep_after(SWEEP));
    assert_eq!(world.ejected(), 0);
}

#[test]
fn a_success_ends_a_row() {
    let world = World::of(3, OutlierDetection::default());
    for _ in 0..4 {
        assert!(!world.observe(0, Outcome::Error));
    }
    world.observe(0, Outcome::Success);
    assert!(!world.observe(0, Outcome::Error));
}

#[test]
fn an_error_that_is_no_gateways_ends_a_row_of_gateway_failures() {
    let settings = OutlierDetection {
        consecutive_5xx: None,
        consecutive_gateway_failure: NonZeroU32::new(3),
        consecutive_local_origin_failure: None,
        ..OutlierDetection::default()
    };
    let world = World::of(3, settings);
    let rows = [
        (Outcome::GatewayFailure, false),
        (Outcome::LocalOriginFailure, false),
        (Outcome::Error, false),
        (Outcome::GatewayFailure, false),
        (Outcome::LocalOriginFailure, false),
        (Outcome::GatewayFailure, true),
    ];
    for (outcome, ejects) in rows {
        assert_eq!(world.observe(0, outcome), ejects);
    }
}

#[test]
fn one_of_two_may_be_ejected_and_the_only_one_not() {
    let two = World::of(2, OutlierDetection::default());
    assert!(two.fail(0) && !two.fail(1));
    let one = World::of(1, OutlierDetection::default());
    assert!(!one.fail(0));
}

#[test]
fn a_destination_by_itself_may_be_ejected() {
    let world = World::of(1, OutlierDetection::default());
    let endpoint = &world.endpoints[0];
    let ejected = (0..5).any(|_| {
        let all = || std::iter::once(endpoint);
        let (settings, outcome) = (&world.settings, Outcome::LocalOriginFailure);
        (world.outlier).observe(settings, endpoint, outcome, Company::Alone, all, world.now)
    });
    assert!(ejected);
}

#[test]
fn the_ejection_time_grows_with_each_and_shrinks_with_good_conduct() {
    let mut world = World::of(3, OutlierDetection::default());
    let mut times = Vec::new();
    for _ in 0..12 {
        assert!(world.fail(0));
        let began = world.now;
        while world.ejected() > 0 {
            world.sweep_after(SWEEP);
        }
        times.push(world.now.duration_since(began).as_secs());
    }
    assert_eq!(times[..4], [30, 60, 90, 120]);
    assert!(times.is_sorted() && times[11] == 300);
    for _ in 0..12 {
        world.sweep_after(SWEEP);
    }
    world.fail(0);
    world.sweep_after(3 * SWEEP);
    assert_eq!(world.ejected(), 0);
}

#[test]
fn one_far_below_the_mean_is_ejected_and_equals_are_not() {
    let mut world = World::of(10, OutlierDetection::default());
    for (index, every) in [7, 7, 7, 7, 7, 7, 7, 7, 7, 2].into_iter().enumerate() {
        for n in 1..=140 {
            let is_failing = n % every == 0;
            world.observe(
                index,
                if is_failing {
                    Outcome::Error
                } else {
                    Outcome::Success
                },
            );
        }
    }
    assert!(world.sweep_after(SWEEP));
    assert!(world.endpoints[9].is_ejected());
    assert_eq!(world.ejected(), 1);
}

#[test]
fn a_share_of_failures_ejects_where_asked_for() {
    let settings = OutlierDetection {
        consecutive_5xx: None,
        success_rate: None,
        failure_percentage: Some(FailurePercentage::default()),
        ..OutlierDetection::default()
    };
    let mut world = World::of(5, settings);
    for index in 0..5 {
        for _ in 0..60 {
            world.observe(
                index,
                if index == 2 {
                    Outcome::Error
                } else {
                    Outcome::Success
                },
            );
        }
    }
    assert!(world.sweep_after(SWEEP));
    assert!(world.endpoints[2].is_ejected());
}

proptest! {
    /// Never more ejected than allowed, each returns in its time, and its time never falls while
    /// it keeps being ejected.
    #[test]
    fn random_histories(
        count in 1..40_u16,
        percent in 0..=100_u8,
        steps in prop::collection::vec((0..40_usize, 0..6_u8, 0..15_u64), 1..400),
    ) {
        let settings = OutlierDetection {
            max_ejection_percent: Percent(percent),
            ..OutlierDetection::default()
        };
        let allowed = most_ejected(&settings, usize::from(count));
        let mut world = World::of(count, settings);
        for (index, step, wait) in steps {
            let index = index % usize::from(count);
            match step {
                0 => { world.observe(index, Outcome::Success); }
                1 => { world.observe(index, Outcome::LocalOriginFailure); }
                2..=4 => { world.fail(index); }
                _ => { world.sweep_after(Duration::from_secs(wait)); }
            }
            prop_assert!(world.ejected() <= allowed);
            for endpoint in &world.endpoints {
                let until = endpoint.tally.ejected_until.load(Ordering::Relaxed);
                prop_assert!(until <= endpoint.millis(world.now) + 300_000);
            }
        }
        world.sweep_after(Duration::from_secs(300));
        prop_assert_eq!(world.ejected(), 0);
    }

    #[test]
    fn ejection_times_never_fall_and_have_a_cap(times in 1..10_000_u32) {
        let settings = OutlierDetection::default();
        let (this, next) = (ejection_time(&settings, times), ejection_time(&settings, times + 1));
        prop_assert!(this <= next && next <= Duration::from_secs(300));
    }
}
