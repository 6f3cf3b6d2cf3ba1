//! What a service has said to be over its limit, remembered until that is reset. Time is an argument.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use foldhash::fast::FixedState;

use super::Status;
use crate::rate_limit::buckets::Key;

/// By the key of a descriptor.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<Key, Over, FixedState>>);

#[derive(Clone, Copy, Debug)]
struct Over {
    until: Instant,
    status: Status,
}

impl Cache {
    /// What was said, if it still holds: with the time that is left.
    pub(super) fn over(&self, key: Key, now: Instant) -> Option<Status> {
        let over = *self.lock().get(&key)?;
        let left = over.until.checked_duration_since(now)?;
        if left.is_zero() {
            return None;
        }
        let mut status = over.status;
        if let Some(quota) = &mut status.quota {
            quota.reset = left;
        }
        Some(status)
    }

    /// Remembers `status`, which holds for `lasts`, unless there are `max` others that still hold.
    pub(super) fn remember(
        &self,
        key: Key,
        status: Status,
        lasts: Duration,
        max: usize,
        now: Instant,
    ) {
        let mut cache = self.lock();
        if cache.len() >= max && !cache.contains_key(&key) {
            cache.retain(|_, over| over.until > now);
        }
        if cache.len() < max {
            let until = now + lasts;
            cache.insert(key, Over { until, status });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Over, FixedState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::told::Quota;

    const OVER: Status = Status {
        is_over: true,
        quota: Some(Quota {
            allocated: 10,
            window: 60,
            available: 0,
            reset: Duration::from_secs(5),
        }),
    };

    fn remember(cache: &Cache, key: Key, seconds: u64, now: Instant) {
        cache.remember(key, OVER, Duration::from_secs(seconds), 2, now);
    }

    #[test]
    fn it_holds_until_the_reset_and_tells_how_long_that_is() {
        let (cache, now) = (Cache::default(), Instant::now());
        remember(&cache, 1, 5, now);
        let later = now + Duration::from_secs(3);
        let status = cache.over(1, later).expect("it holds");
        assert_eq!(status.quota.expect("a quota").reset, Duration::from_secs(2));
        assert!(cache.over(2, later).is_none());
        assert!(cache.over(1, now + Duration::from_secs(5)).is_none());
    }

    #[test]
    fn it_is_bounded_and_what_is_over_makes_room() {
        let (cache, now) = (Cache::default(), Instant::now());
        for key in 1..=3 {
            remember(&cache, key, 5 * key as u64, now);
        }
        assert!(cache.over(3, now).is_none());
        let later = now + Duration::from_secs(6);
        remember(&cache, 3, 5, later);
        assert!(cache.over(3, later).is_some() && cache.over(2, later).is_some());
    }
}
