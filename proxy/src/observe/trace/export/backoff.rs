//! Pauses between exports while the collector fails.

use std::time::Duration;

/// After the first failure; twice as long after each one more. OTLP asks for exponential backoff with
/// jitter, and leaves the figures open.
const FIRST: Duration = Duration::from_secs(1);

/// A collector that is back is found soon.
const LONGEST: Duration = Duration::from_secs(30);

/// A collector that asks for no pause at all would have the control thread do nothing but send.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After one more failure: what the collector asked for, within reason, or ours. `chance`, from 0
    /// to 1, spreads sidecars that failed together.
    pub(super) fn pause(&mut self, asked: Option<Duration>, chance: f64) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        match asked {
            Some(asked) => asked.clamp(SHORTEST, LONGEST),
            None => pause.min(LONGEST).mul_f64(0.8 + 0.4 * chance),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_the_collector_may_ask_for_its_own() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause(None, 0.5).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        let asked = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(backoff.pause(asked(3), 0.9), Duration::from_secs(3));
        assert_eq!(backoff.pause(asked(3600), 0.9), LONGEST);
        assert_eq!(backoff.pause(asked(0), 0.9), SHORTEST);
        let spread = [0.0, 1.0].map(|chance| Backoff::default().pause(None, chance).as_millis());
        assert_eq!(spread, [800, 1200]);
    }
}
