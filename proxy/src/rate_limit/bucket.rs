//! A token bucket in one number.
//!
//! The number is the moment at which the bucket is full again, the algorithm the generic cell rate
//! algorithm (ITU-T I.371, the virtual scheduling form): taking a token moves that moment by the time
//! in which one comes, and there are too few when it would lie further ahead than a whole bucket
//! takes to fill. One number can be swapped by one instruction, so that workers share a bucket
//! without a lock, and it means the same whatever the rate, so that a bucket outlives a change of
//! its limit. Time is an argument.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use outrigger_config::TokenBucket;

/// A sixteenth: the time in which a token comes is rounded up to it, so that a limit is never
/// exceeded, and undercut by 1/16,000 at most, at a million tokens a second. 64 bits of it last for
/// 36 years.
const UNITS_PER_NANO: u64 = 16;

/// Moments of one process, in [`UNITS_PER_NANO`] since it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

impl Clock {
    pub(super) fn new(began: Instant) -> Self {
        Self(began)
    }

    pub(super) fn at(self, now: Instant) -> Moment {
        let nanos = now.saturating_duration_since(self.0).as_nanos() as u64;
        Moment(nanos.saturating_mul(UNITS_PER_NANO))
    }
}

/// How fast tokens come, and how many there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// The time in which one comes; never 0.
    per_token: u64,
    /// The time in which all of them come.
    capacity: u64,
}

/// What a bucket has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) tokens: u64,
    pub(super) full_in: Duration,
}

/// Tokens taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// When it is full again now.
    full_at: u64,
    /// Until when they are not there yet.
    pub(super) wait: Duration,
}

impl Rate {
    /// Of settings without a problem: no product overflows.
    pub(super) fn new(bucket: &TokenBucket) -> Self {
        let interval = bucket.fill_interval.0.as_nanos() as u64 * UNITS_PER_NANO;
        let per_token = interval
            .div_ceil(bucket.tokens_per_fill.get().into())
            .max(1);
        Self {
            per_token,
            capacity: per_token.saturating_mul(bucket.max_tokens.get().into()),
        }
    }

    pub(super) fn max_tokens(self) -> u64 {
        self.capacity / self.per_token
    }

    /// Rounded up, from 1. What each token's time was rounded by is no reason for another second.
    pub(super) fn fills_in_seconds(self) -> u64 {
        let exact = self.capacity - self.max_tokens();
        exact.div_ceil(UNITS_PER_NANO * 1_000_000_000).max(1)
    }

    pub(super) fn per_second(self) -> f64 {
        1e9 * UNITS_PER_NANO as f64 / self.per_token as f64
    }

    /// Takes `tokens` from a bucket that is full at `full_at`, if they are there in `max_delay`.
    ///
    /// # Errors
    /// In which time they would be.
    fn take(
        self,
        full_at: u64,
        now: Moment,
        tokens: u32,
        max_delay: Duration,
    ) -> Result<Taken, Duration> {
        let before = self.ahead(full_at, now, max_delay);
        let after = before.saturating_add(self.per_token.saturating_mul(tokens.into()));
        let wait = units(after.saturating_sub(self.capacity));
        if wait > max_delay {
            return Err(wait);
        }
        Ok(Taken {
            full_at: now.0.saturating_add(after),
            wait,
        })
    }

    fn left(self, full_at: u64, now: Moment) -> Left {
        let ahead = self.ahead(full_at, now, Duration::ZERO);
        Left {
            tokens: (self.capacity - ahead) / self.per_token,
            full_in: units(ahead),
        }
    }

    /// How long until the bucket is full. One that was larger, or slower, before its limit was
    /// changed is empty at most.
    fn ahead(self, full_at: u64, now: Moment, max_delay: Duration) -> u64 {
        let delay = (max_delay.as_nanos() as u64).saturating_mul(UNITS_PER_NANO);
        full_at
            .saturating_sub(now.0)
            .min(self.capacity.saturating_add(delay))
    }
}

/// Rounded up: whoever waits for so long waits long enough.
fn units(units: u64) -> Duration {
    Duration::from_nanos(units.div_ceil(UNITS_PER_NANO))
}

/// A bucket; a new one is full.
#[derive(Debug, Default)]
pub(super) struct Bucket(AtomicU64);

impl Bucket {
    /// # Errors
    /// In which time the tokens would be there, if that is longer than `max_delay`.
    pub(super) fn take(
        &self,
        rate: Rate,
        now: Moment,
        tokens: u32,
        max_delay: Duration,
    ) -> Result<(Taken, Left), (Duration, Left)> {
        let mut full_at = self.0.load(Ordering::Relaxed);
        loop {
            let taken = match rate.take(full_at, now, tokens, max_delay) {
                Ok(taken) => taken,
                Err(wait) => return Err((wait, rate.left(full_at, now))),
            };
            // Nothing else is told through it, so no order is needed.
            match self.0.compare_exchange_weak(
                full_at,
                taken.full_at,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok((taken, rate.left(taken.full_at, now))),
                Err(seen) => full_at = seen,
            }
        }
    }

    /// Undoes a taking.
    pub(super) fn give_back(&self, rate: Rate, tokens: u32) {
        let units = rate.per_token.saturating_mul(tokens.into());
        let _ = self
            .0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                Some(full_at.saturating_sub(units))
            });
    }

    /// Whether it is as good as a new one.
    pub(super) fn is_full(&self, now: Moment) -> bool {
        self.0.load(Ordering::Relaxed) <= now.0
    }

    /// The less, the fuller.
    pub(super) fn emptiness(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "bucket/tests.rs"]
mod tests;
