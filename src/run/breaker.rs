//! When to give up capturing for a proxy that dies again and again, and when to try again. Pure: time
//! is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use outrigger_config::Supervisor;

/// The first pause of a breaker that tripped.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long a proxy must live, without a connection to lose, before one that failed is trusted again.
const PROBATION: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Breaker {
    settings: Supervisor,
    deaths: VecDeque<Instant>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Admitting,
    /// Attempts that failed since it tripped.
    Tripped {
        attempts: u32,
    },
}

impl Breaker {
    pub(super) fn new(settings: Supervisor) -> Self {
        Self {
            settings,
            deaths: VecDeque::new(),
            state: State::Admitting,
        }
    }

    /// A proxy died: how long to wait before the next one is started.
    pub(super) fn died(&mut self, now: Instant) -> Duration {
        let window = self.settings.death_window.0;
        self.deaths.push_back(now);
        self.deaths
            .retain(|&death| now.saturating_duration_since(death) <= window);
        let attempts = match self.state {
            State::Tripped { attempts } => attempts + 1,
            State::Admitting if self.deaths.len() < self.settings.max_deaths as usize => {
                return Duration::ZERO;
            }
            State::Admitting => 0,
        };
        self.state = State::Tripped { attempts };
        let doubled = FIRST_PAUSE.saturating_mul(1 << attempts.min(16));
        doubled.min(self.settings.max_backoff.0)
    }

    /// How long the next proxy must live before it is captured for.
    pub(super) fn probation(&self) -> Duration {
        if self.has_tripped() {
            PROBATION
        } else {
            Duration::ZERO
        }
    }

    /// A proxy has been captured for all that time.
    pub(super) fn lived(&mut self, captured: Duration) {
        if captured >= self.settings.death_window.0 {
            self.state = State::Admitting;
            self.deaths.clear();
        }
    }

    pub(super) fn has_tripped(&self) -> bool {
        self.state != State::Admitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_death_now_and_then_is_no_reason_to_give_up() {
        let mut breaker = Breaker::new(Supervisor::default());
        let start = Instant::now();
        for minute in 0..100 {
            assert_eq!(breaker.died(start + SECOND * 20 * minute), Duration::ZERO);
        }
        assert!(!breaker.has_tripped());
    }

    #[test]
    fn a_loop_of_crashes_trips_and_its_pauses_double_up_to_the_limit() {
        let mut breaker = Breaker::new(Supervisor::default());
        let now = Instant::now();
        for _ in 0..4 {
            assert_eq!(breaker.died(now), Duration::ZERO);
            assert_eq!(breaker.probation(), Duration::ZERO);
        }
        let pauses: Vec<_> = (0..8).map(|_| breaker.died(now).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(breaker.probation() > Duration::ZERO);
    }

    #[test]
    fn a_proxy_that_lasts_is_trusted_like_the_first() {
        let mut breaker = Breaker::new(Supervisor::default());
        let now = Instant::now();
        for _ in 0..5 {
            breaker.died(now);
        }
        breaker.lived(SECOND * 59);
        assert!(breaker.has_tripped());
        breaker.lived(SECOND * 60);
        assert!(!breaker.has_tripped());
        assert_eq!(breaker.died(now), Duration::ZERO);
    }
}
