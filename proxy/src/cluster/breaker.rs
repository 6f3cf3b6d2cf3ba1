//! The breaker of one endpoint: `Admitting` until it fails too much, then `Tripped` for a while,
//! then `Probing` with a few requests whose outcome decides.
//!
//! While it admits, a pick reads one atomic and a success writes at most two; the lock is taken by
//! failures and around a trip only.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use outrigger_config::EndpointBreaker;

/// What a breaker does with the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Admitting = 0,
    Tripped = 1,
    Probing = 2,
}

impl State {
    pub fn label(self) -> &'static str {
        match self {
            Self::Admitting => "admitting",
            Self::Tripped => "tripped",
            Self::Probing => "probing",
        }
    }
}

/// How a request was let through; it goes back with the request's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Ordinary,
    Probe,
}

/// Times are milliseconds since its endpoint was made.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: AtomicU8,
    /// While `Tripped`: when probing begins. While `Probing`: when an unanswered probe is given up.
    until: AtomicU64,
    consecutive: AtomicU32,
    /// Requests answered in this window.
    answered: AtomicU32,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    window_began: u64,
    failed: u32,
    /// Trips since it last admitted; each doubles the duration.
    trips: u32,
    probes_out: u32,
    probes_succeeded: u32,
}

impl Rest {
    fn may_probe(&self, settings: &EndpointBreaker) -> bool {
        self.probes_out + self.probes_succeeded < settings.probes.get()
    }
}

impl Breaker {
    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Admitting,
            1 => State::Tripped,
            _ => State::Probing,
        }
    }

    /// Whether [`Self::admit`] would let a request through; changes nothing.
    pub(super) fn would_admit(&self, settings: &EndpointBreaker, now: u64) -> bool {
        let is_over = || now >= self.until.load(Ordering::Relaxed);
        match self.state() {
            State::Admitting => true,
            State::Tripped => is_over(),
            State::Probing => is_over() || self.lock().may_probe(settings),
        }
    }

    /// Lets a request through, or not.
    pub(super) fn admit(&self, settings: &EndpointBreaker, now: u64) -> Option<Admission> {
        match self.state() {
            State::Admitting => return Some(Admission::Ordinary),
            State::Tripped if now < self.until.load(Ordering::Relaxed) => return None,
            State::Tripped | State::Probing => {}
        }
        let mut rest = self.lock();
        match self.state() {
            State::Admitting => return Some(Admission::Ordinary),
            State::Tripped if now < self.until.load(Ordering::Relaxed) => return None,
            State::Tripped => self.probe_afresh(settings, &mut rest, now),
            // A probe that hangs must not keep the endpoint out for good.
            State::Probing if now >= self.until.load(Ordering::Relaxed) => {
                self.probe_afresh(settings, &mut rest, now);
            }
            State::Probing => {}
        }
        if !rest.may_probe(settings) {
            return None;
        }
        rest.probes_out += 1;
        Some(Admission::Probe)
    }

    pub(super) fn succeeded(&self, settings: &EndpointBreaker, admission: Admission) {
        if self.state() == State::Admitting {
            self.answered.fetch_add(1, Ordering::Relaxed);
            if self.consecutive.load(Ordering::Relaxed) != 0 {
                self.consecutive.store(0, Ordering::Relaxed);
            }
            return;
        }
        let mut rest = self.lock();
        if admission == Admission::Probe && self.state() == State::Probing {
            rest.probes_out = rest.probes_out.saturating_sub(1);
            rest.probes_succeeded += 1;
            if rest.probes_succeeded >= settings.probes.get() {
                *rest = Rest::default();
                self.answered.store(0, Ordering::Relaxed);
                self.consecutive.store(0, Ordering::Relaxed);
                self.set(State::Admitting);
            }
        }
    }

    /// Whether this failure tripped it.
    pub(super) fn failed(
        &self,
        settings: &EndpointBreaker,
        admission: Admission,
        now: u64,
    ) -> bool {
        let mut rest = self.lock();
        match (self.state(), admission) {
            (State::Admitting, _) => {
                if now.saturating_sub(rest.window_began) >= millis(settings.window.0) {
                    rest.window_began = now;
                    rest.failed = 0;
                    self.answered.store(0, Ordering::Relaxed);
                }
                rest.failed += 1;
                let answered = self.answered.fetch_add(1, Ordering::Relaxed) + 1;
                let consecutive = self.consecutive.fetch_add(1, Ordering::Relaxed) + 1;
                let is_row = settings
                    .consecutive_failures
                    .is_some_and(|n| consecutive >= n.get());
                let is_share = settings.failure_percent.is_some_and(|percent| {
                    answered >= settings.min_requests.get()
                        && u64::from(rest.failed) * 100
                            >= u64::from(answered) * u64::from(percent.0)
                });
                if is_row || is_share {
                    self.trip(settings, &mut rest, now);
                }
                is_row || is_share
            }
            (State::Probing, Admission::Probe) => {
                self.trip(settings, &mut rest, now);
                true
            }
            // Sent before the trip, which it would only repeat.
            (State::Probing | State::Tripped, _) => false,
        }
    }

    /// A request ended without telling anything of the endpoint.
    pub(super) fn withdrawn(&self, admission: Admission) {
        if admission == Admission::Probe && self.state() == State::Probing {
            let mut rest = self.lock();
            rest.probes_out = rest.probes_out.saturating_sub(1);
        }
    }

    fn trip(&self, settings: &EndpointBreaker, rest: &mut Rest, now: u64) {
        let doublings = rest.trips.min(20);
        let duration = millis(settings.trip_duration.0) << doublings;
        let longest = millis(settings.max_trip_duration.0).max(millis(settings.trip_duration.0));
        *rest = Rest {
            trips: rest.trips + 1,
            ..Rest::default()
        };
        self.until
            .store(now + duration.min(longest), Ordering::Relaxed);
        self.set(State::Tripped);
    }

    fn probe_afresh(&self, settings: &EndpointBreaker, rest: &mut Rest, now: u64) {
        (rest.probes_out, rest.probes_succeeded) = (0, 0);
        self.until
            .store(now + millis(settings.trip_duration.0), Ordering::Relaxed);
        self.set(State::Probing);
    }

    fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 24)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tripped_at(now: u64, settings: &EndpointBreaker) -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..5 {
            breaker.failed(settings, Admission::Ordinary, now);
        }
        assert_eq!(breaker.state(), State::Tripped);
        breaker
    }

    #[test]
    fn failures_in_a_row_trip_it_and_a_success_between_them_does_not() {
        let settings = EndpointBreaker::default();
        let breaker = Breaker::default();
        for _ in 0..4 {
            assert!(!breaker.failed(&settings, Admission::Ordinary, 0));
        }
        breaker.succeeded(&settings, Admission::Ordinary);
        assert!(!breaker.failed(&settings, Admission::Ordinary, 0));
        assert_eq!(breaker.state(), State::Admitting);
    }

    #[test]
    fn half_of_the_requests_failing_trips_it_even_without_a_row() {
        let settings = EndpointBreaker::default();
        let breaker = Breaker::default();
        let tripped = (0..20).any(|_| {
            breaker.succeeded(&settings, Admission::Ordinary);
            breaker.failed(&settings, Admission::Ordinary, 1)
        });
        assert!(tripped);
    }

    #[test]
    fn one_probe_decides() {
        let settings = EndpointBreaker::default();
        let breaker = tripped_at(0, &settings);
        assert_eq!(breaker.admit(&settings, 4_999), None);
        assert_eq!(breaker.admit(&settings, 5_000), Some(Admission::Probe));
        assert_eq!(breaker.admit(&settings, 5_001), None);
        breaker.succeeded(&settings, Admission::Probe);
        assert_eq!(breaker.admit(&settings, 5_002), Some(Admission::Ordinary));
    }

    #[test]
    fn a_probe_that_fails_doubles_the_wait_up_to_the_longest() {
        let settings = EndpointBreaker::default();
        let breaker = tripped_at(0, &settings);
        let mut now = 0;
        for wait in [5_000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            assert_eq!(breaker.admit(&settings, now + wait - 1), None);
            now += wait;
            assert_eq!(breaker.admit(&settings, now), Some(Admission::Probe));
            assert!(breaker.failed(&settings, Admission::Probe, now));
        }
    }

    #[test]
    fn a_probe_withdrawn_or_hanging_makes_room_for_another() {
        let settings = EndpointBreaker::default();
        let breaker = tripped_at(0, &settings);
        breaker.admit(&settings, 5_000).expect("a probe");
        breaker.withdrawn(Admission::Probe);
        breaker.admit(&settings, 5_001).expect("another probe");
        assert_eq!(breaker.admit(&settings, 6_000), None);
        assert_eq!(breaker.admit(&settings, 10_000), Some(Admission::Probe));
    }

    proptest! {
        /// Whatever happens: no more probes at once than allowed, nothing is admitted while
        /// tripped, and after the longest duration something is.
        #[test]
        fn random_histories(steps in prop::collection::vec((0..4_u8, 0..7_000_u64), 1..300)) {
            let settings = EndpointBreaker::default();
            let breaker = Breaker::default();
            let mut now = 0;
            let mut out = Vec::new();
            for (step, wait) in steps {
                match step {
                    0 => {
                        let before = breaker.state();
                        let admission = breaker.admit(&settings, now);
                        prop_assert!(before != State::Admitting || admission == Some(Admission::Ordinary));
                        out.extend(admission);
                    }
                    1 => if let Some(admission) = out.pop() { breaker.succeeded(&settings, admission) },
                    2 => if let Some(admission) = out.pop()
                        && breaker.failed(&settings, admission, now)
                    {
                        prop_assert_eq!(breaker.admit(&settings, now), None);
                    },
                    _ => now += wait,
                }
                let rest = breaker.lock();
                prop_assert!(rest.probes_out <= settings.probes.get());
            }
            now += 60_000;
            prop_assert!(breaker.admit(&settings, now).is_some());
        }
    }
}
