//! A line for each reason to refuse connections, but no flood of them: what refuses one connection
//! refuses thousands a second. The metric counts every one.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::failure::Failure;

/// Often enough to see that it goes on, seldom enough for a day of it to fit in a log.
const PAUSE: Duration = Duration::from_secs(1);

/// Shared by all workers.
#[derive(Debug, Default)]
pub struct RefusalLog(Mutex<HashMap<&'static str, Pause>>);

#[derive(Debug)]
struct Pause {
    since: Instant,
    suppressed: u64,
}

impl RefusalLog {
    /// Says that `client` was reset, unless the same reason was given within the last second.
    pub fn refused(&self, client: SocketAddr, failure: Failure) {
        let reason = failure.label();
        match self.admit(reason, Instant::now()) {
            None => {}
            Some(0) => {
                tracing::warn!(%client, reason, "{}; connection reset", failure.details());
            }
            Some(suppressed) => {
                tracing::warn!(%client, reason, suppressed, "{}; connection reset, as {suppressed} others since the last such line", failure.details());
            }
        }
    }

    /// Whether to say it now, and how many were not told of.
    fn admit(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pauses.get_mut(reason) {
            Some(pause) if now.saturating_duration_since(pause.since) < PAUSE => {
                pause.suppressed += 1;
                None
            }
            pause => {
                let suppressed = pause.map_or(0, |pause| pause.suppressed);
                let begun = Pause {
                    since: now,
                    suppressed: 0,
                };
                pauses.insert(reason, begun);
                Some(suppressed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: each refused connection was a line.
    #[test]
    fn a_reason_is_given_once_a_second_with_the_count_of_the_others() {
        let (log, start) = (RefusalLog::default(), Instant::now());
        let at = |reason, after| log.admit(reason, start + Duration::from_millis(after));
        assert_eq!(at("loop", 0), Some(0));
        assert_eq!(at("loop", 1), None);
        assert_eq!(at("not_redirected", 2), Some(0), "another reason");
        assert_eq!(at("loop", 999), None);
        assert_eq!(at("loop", 1000), Some(2));
        assert_eq!(at("loop", 1001), None);
        assert_eq!(at("loop", 5000), Some(1));
    }
}
