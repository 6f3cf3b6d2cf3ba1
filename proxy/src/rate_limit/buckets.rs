//! The buckets of one limit by what traffic is told apart by: in shards, so that workers rarely meet
//! on a lock, and bounded, whatever values clients make up.
//!
//! A bucket is known by a hash of these values under keys of this process: its place takes the same
//! room whatever a client sends, no credentials are kept in memory, and none can be made to meet
//! another's. A bucket that has filled up is as good as none, so it is the first to go; when none
//! has, the fullest go, and whoever has just been limited stays so.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use foldhash::fast::FixedState;

use super::bucket::{Bucket, Moment};

const SHARDS: usize = 16;

/// What stands for the values that one bucket is for.
pub(super) type Key = u128;

#[derive(Debug)]
pub(super) struct Buckets {
    shards: [Mutex<HashMap<Key, Bucket, FixedState>>; SHARDS],
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Buckets {
    /// Lets `use_it` have the bucket at `key`, a new one if there is none. Of `max` buckets each
    /// shard has its part. Tells how many had to be forgotten that were not full.
    pub(super) fn at<T>(
        &self,
        key: Key,
        now: Moment,
        max: usize,
        use_it: impl FnOnce(&Bucket) -> T,
    ) -> (T, usize) {
        // Few buckets in few shards, so that the bound is kept.
        let shards = (max / 64).clamp(1, SHARDS);
        let mut shard = lock(&self.shards[(key >> 96) as usize % shards]);
        if let Some(bucket) = shard.get(&key) {
            return (use_it(bucket), 0);
        }
        let room = max / shards;
        let forgotten = if shard.len() >= room {
            make_room(&mut shard, now, room)
        } else {
            0
        };
        (use_it(shard.entry(key).or_default()), forgotten)
    }

    /// The same for a bucket that is there already.
    pub(super) fn known(&self, key: Key, max: usize, use_it: impl FnOnce(&Bucket)) {
        let shards = (max / 64).clamp(1, SHARDS);
        if let Some(bucket) = lock(&self.shards[(key >> 96) as usize % shards]).get(&key) {
            use_it(bucket);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

fn lock(
    shard: &Mutex<HashMap<Key, Bucket, FixedState>>,
) -> MutexGuard<'_, HashMap<Key, Bucket, FixedState>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what is full; if nothing is, the fullest eighth: looking through a shard costs more than
/// forgetting, so it is not done for each new bucket.
fn make_room(shard: &mut HashMap<Key, Bucket, FixedState>, now: Moment, room: usize) -> usize {
    shard.retain(|_, bucket| !bucket.is_full(now));
    if shard.len() < room {
        return 0;
    }
    let before = shard.len();
    let mut emptiness: Vec<_> = shard.values().map(Bucket::emptiness).collect();
    let surplus = (before / 8).max(before + 1 - room).min(before);
    let (_, limit, _) = emptiness.select_nth_unstable(surplus - 1);
    let limit = *limit;
    let mut left = surplus;
    shard.retain(|_, bucket| {
        let goes = left > 0 && bucket.emptiness() <= limit;
        left -= usize::from(goes);
        !goes
    });
    before - shard.len()
}

/// Makes keys: two hashes, each under a secret of its own.
#[derive(Debug, Default)]
pub(super) struct Keys(RandomState, RandomState);

pub(super) struct KeyHasher {
    hashers: [std::hash::DefaultHasher; 2],
}

impl Keys {
    pub(super) fn hasher(&self) -> KeyHasher {
        KeyHasher {
            hashers: [self.0.build_hasher(), self.1.build_hasher()],
        }
    }
}

impl KeyHasher {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.hashers.iter_mut().for_each(|h| h.write(bytes));
    }

    pub(super) fn write_len(&mut self, len: usize) {
        self.hashers.iter_mut().for_each(|h| h.write_usize(len));
    }

    pub(super) fn finish(&self) -> Key {
        let [one, other] = self.hashers.each_ref().map(Hasher::finish);
        u128::from(one) << 64 | u128::from(other)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use outrigger_config::{Span, TokenBucket};

    use super::*;
    use crate::rate_limit::bucket::{Clock, Rate};

    fn one_a_second() -> Rate {
        Rate::new(&TokenBucket {
            max_tokens: 10.try_into().expect("it is not zero"),
            tokens_per_fill: 1.try_into().expect("it is not zero"),
            fill_interval: Span::from_secs(1),
        })
    }

    /// Takes `tokens` at `key`; whether they were there.
    fn take(buckets: &Buckets, key: Key, now: Moment, max: usize, tokens: u32) -> (bool, usize) {
        buckets.at(key, now, max, |bucket| {
            bucket
                .take(one_a_second(), now, tokens, Duration::ZERO)
                .is_ok()
        })
    }

    #[test]
    fn each_key_has_a_bucket_of_its_own() {
        let (buckets, now) = (
            Buckets::default(),
            Clock::new(Instant::now()).at(Instant::now()),
        );
        assert!(take(&buckets, 1, now, 100, 10).0);
        assert!(!take(&buckets, 1, now, 100, 1).0);
        assert!(take(&buckets, 2, now, 100, 10).0);
        assert_eq!(buckets.count(), 2);
    }

    #[test]
    fn there_are_never_more_than_allowed_and_who_was_limited_stays_so() {
        let began = Instant::now();
        let (buckets, clock) = (Buckets::default(), Clock::new(began));
        let now = clock.at(began + Duration::from_secs(1));
        let limited = u128::MAX;
        assert!(take(&buckets, limited, now, 1_000, 10).0);
        let mut forgotten = 0;
        for key in 0..100_000_u128 {
            // Spread over the shards, as hashes are.
            forgotten += take(&buckets, key << 96 | key, now, 1_000, 1).1;
            assert!(buckets.count() <= 1_000);
        }
        assert!(forgotten >= 99_000, "{forgotten}");
        assert!(!take(&buckets, limited, now, 1_000, 1).0);
    }

    #[test]
    fn what_has_filled_up_goes_first_and_loses_nothing() {
        let began = Instant::now();
        let (buckets, clock) = (Buckets::default(), Clock::new(began));
        for key in 0..63 {
            take(&buckets, key, clock.at(began), 64, 1);
        }
        let later = clock.at(began + Duration::from_secs(5));
        take(&buckets, 63, later, 64, 10);
        assert_eq!(take(&buckets, 64, later, 64, 1), (true, 0));
        assert_eq!(buckets.count(), 2);
        assert!(!take(&buckets, 63, later, 64, 1).0);
    }

    #[test]
    fn keys_differ_between_processes_and_between_values() {
        let key = |keys: &Keys, bytes: &[u8]| {
            let mut hasher = keys.hasher();
            hasher.write(bytes);
            hasher.finish()
        };
        let (one, other) = (Keys::default(), Keys::default());
        assert_eq!(key(&one, b"a"), key(&one, b"a"));
        assert_ne!(key(&one, b"a"), key(&one, b"b"));
        assert_ne!(key(&one, b"a"), key(&other, b"a"));
    }
}
