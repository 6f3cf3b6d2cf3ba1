//! What the process knows of each destination in use, shared by all workers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::observe::{DestinationMetrics, Exemplars, Totals};

/// Locks, so that workers rarely meet on one; they come here once a connection, not once a request.
const SHARDS: usize = 16;

/// Destinations remembered before the least recently used that nobody holds is forgotten. One takes
/// about 1 KiB, metrics included.
const REMEMBERED: usize = 10_000;

/// How long a destination is expected to speak first after it did.
const SPEAKS_FIRST_FOR: Duration = Duration::from_secs(600);

/// One destination: what was learned of it and what is counted for it.
#[derive(Debug)]
pub struct Destination {
    pub address: SocketAddr,
    pub metrics: DestinationMetrics,
    pub exemplars: Exemplars,
    born: Instant,
    /// Milliseconds since `born` until which it is expected to speak first; 0: it is not.
    speaks_first_until: AtomicU64,
    /// Milliseconds since `born` of the last look-up.
    last_used: AtomicU64,
    offers_extended_connect: AtomicBool,
}

impl Destination {
    pub fn new(address: SocketAddr, workers: usize, now: Instant) -> Self {
        Self {
            address,
            metrics: DestinationMetrics::new(workers),
            exemplars: Exemplars::default(),
            born: now,
            speaks_first_until: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            offers_extended_connect: AtomicBool::new(false),
        }
    }

    /// Whether the destination spoke before its client not long ago: a hint to dial at once, never
    /// a verdict.
    pub fn speaks_first(&self, now: Instant) -> bool {
        self.speaks_first_until.load(Ordering::Relaxed) > self.millis(now)
    }

    /// Notes who spoke first this time.
    pub fn note_first_speaker(&self, is_server: bool, now: Instant) {
        let until = if is_server {
            self.millis(now + SPEAKS_FIRST_FOR)
        } else {
            0
        };
        if self.speaks_first_until.load(Ordering::Relaxed) != until {
            self.speaks_first_until.store(until, Ordering::Relaxed);
        }
    }

    fn last_used(&self) -> Instant {
        self.born + Duration::from_millis(self.last_used.load(Ordering::Relaxed))
    }

    /// Whether the destination's HTTP/2 settings have offered extended CONNECT (RFC 8441).
    pub fn offers_extended_connect(&self) -> bool {
        self.offers_extended_connect.load(Ordering::Relaxed)
    }

    pub fn note_extended_connect(&self) {
        self.offers_extended_connect.store(true, Ordering::Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_millis() as u64
    }
}

/// Destinations by address.
#[derive(Debug)]
pub struct Registry {
    workers: usize,
    /// What was counted for destinations that are no longer remembered, so that no total ever falls.
    forgotten: Mutex<Totals>,
    shards: [Mutex<HashMap<SocketAddr, Arc<Destination>>>; SHARDS],
}

impl Default for Registry {
    /// For one worker.
    fn default() -> Self {
        Self::new(1)
    }
}

impl Registry {
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            forgotten: Mutex::default(),
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
        }
    }

    /// The destination at `address`, made if it is not known.
    pub fn destination(&self, address: SocketAddr, now: Instant) -> Arc<Destination> {
        let shard = &self.shards[shard_of(address)];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard.get(&address) {
            known.last_used.store(known.millis(now), Ordering::Relaxed);
            return known.clone();
        }
        if shard.len() >= REMEMBERED / SHARDS {
            self.forget_some(&mut shard);
        }
        let destination = Arc::new(Destination::new(address, self.workers, now));
        shard.insert(address, destination.clone());
        destination
    }

    pub fn count(&self) -> usize {
        let lengths = self.shards.iter().map(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.len()
        });
        lengths.sum()
    }

    /// Every destination known now, in no order.
    pub fn all(&self) -> Vec<Arc<Destination>> {
        self.shards
            .iter()
            .flat_map(|shard| {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                shard.values().cloned().collect::<Vec<_>>()
            })
            .collect()
    }

    /// What was counted for destinations forgotten by now.
    pub(crate) fn forgotten(&self) -> Totals {
        self.lock_forgotten().clone()
    }

    /// Forgets the least recently used eighth that nobody else holds: looking through a shard costs
    /// more than forgetting, so it is not done for each new destination.
    fn forget_some(&self, shard: &mut HashMap<SocketAddr, Arc<Destination>>) {
        let mut unused: Vec<_> = shard
            .values()
            .filter(|d| Arc::strong_count(d) == 1)
            .map(|d| (d.last_used(), d.address))
            .collect();
        let surplus = (REMEMBERED / SHARDS / 8).min(unused.len());
        if surplus == 0 {
            return;
        }
        unused.select_nth_unstable(surplus - 1);
        for (_, address) in &unused[..surplus] {
            // Taken apart and not merely read: that waits for what its last holder counted.
            if let Some(destination) = shard.remove(address).and_then(Arc::into_inner) {
                self.lock_forgotten().merge(&destination.metrics.totals());
            }
        }
    }

    fn lock_forgotten(&self) -> MutexGuard<'_, Totals> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn shard_of(address: SocketAddr) -> usize {
    let low = match address.ip() {
        std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]),
        std::net::IpAddr::V6(ip) => usize::from(ip.octets()[15]),
    };
    (low ^ usize::from(address.port())) % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::test_record as record;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 7], port))
    }

    #[test]
    fn the_hint_expires() {
        let now = Instant::now();
        let destination = Destination::new(address(3306), 1, now);
        assert!(!destination.speaks_first(now));
        destination.note_first_speaker(true, now);
        assert!(destination.speaks_first(now + SPEAKS_FIRST_FOR / 2));
        assert!(!destination.speaks_first(now + 2 * SPEAKS_FIRST_FOR));
    }

    #[test]
    fn a_client_that_speaks_first_corrects_the_hint() {
        let now = Instant::now();
        let destination = Destination::new(address(80), 1, now);
        destination.note_first_speaker(true, now);
        destination.note_first_speaker(false, now);
        assert!(!destination.speaks_first(now));
    }

    #[test]
    fn destinations_in_use_are_never_forgotten_and_the_rest_is_bounded() {
        let registry = Registry::default();
        let now = Instant::now();
        let held = registry.destination(address(1), now);
        for port in 2..=u16::MAX {
            registry.destination(address(port), now);
        }
        assert!(registry.count() <= REMEMBERED);
        assert!(Arc::ptr_eq(&held, &registry.destination(address(1), now)));
    }

    #[test]
    fn the_least_recently_used_are_forgotten_first_and_their_counts_stay() {
        let registry = Registry::default();
        let now = Instant::now();
        let full = REMEMBERED / SHARDS;
        // Ports this far apart share a shard.
        let destination = |n: usize, at| registry.destination(address((n * SHARDS) as u16), at);
        for n in 0..full {
            destination(n, now).metrics.observe(0, &record());
        }
        let used = Arc::downgrade(&destination(0, now + Duration::from_secs(1)));
        destination(full, now);
        assert!(used.upgrade().is_some());
        let forgotten = full + 1 - registry.count();
        assert_eq!(forgotten, full / 8);
        assert_eq!(registry.forgotten().latency.count(), forgotten as u64);
    }
}
