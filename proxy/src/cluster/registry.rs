//! What the process knows of each destination in use, shared by all workers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::observe::DestinationMetrics;

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
    born: Instant,
    /// Milliseconds since `born` until which it is expected to speak first; 0: it is not.
    speaks_first_until: AtomicU64,
    /// Milliseconds since `born` of the last look-up.
    last_used: AtomicU64,
    offers_extended_connect: AtomicBool,
}

impl Destination {
    pub fn new(address: SocketAddr, now: Instant) -> Self {
        Self {
            address,
            metrics: DestinationMetrics::default(),
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
    shards: [Mutex<HashMap<SocketAddr, Arc<Destination>>>; SHARDS],
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
        }
    }
}

impl Registry {
    /// The destination at `address`, made if it is not known.
    pub fn destination(&self, address: SocketAddr, now: Instant) -> Arc<Destination> {
        let shard = &self.shards[shard_of(address)];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard.get(&address) {
            known.last_used.store(known.millis(now), Ordering::Relaxed);
            return known.clone();
        }
        if shard.len() >= REMEMBERED / SHARDS {
            forget_one(&mut shard);
        }
        let destination = Arc::new(Destination::new(address, now));
        shard.insert(address, destination.clone());
        destination
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
}

fn shard_of(address: SocketAddr) -> usize {
    let low = match address.ip() {
        std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]),
        std::net::IpAddr::V6(ip) => usize::from(ip.octets()[15]),
    };
    (low ^ usize::from(address.port())) % SHARDS
}

/// Forgets the least recently used destination that only the registry still holds.
fn forget_one(shard: &mut HashMap<SocketAddr, Arc<Destination>>) {
    let oldest = shard
        .values()
        .filter(|d| Arc::strong_count(d) == 1)
        .max_by_key(|d| d.born.elapsed().as_millis() as u64 - d.last_used.load(Ordering::Relaxed))
        .map(|d| d.address);
    if let Some(address) = oldest {
        shard.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 7], port))
    }

    #[test]
    fn the_hint_expires() {
        let now = Instant::now();
        let destination = Destination::new(address(3306), now);
        assert!(!destination.speaks_first(now));
        destination.note_first_speaker(true, now);
        assert!(destination.speaks_first(now + SPEAKS_FIRST_FOR / 2));
        assert!(!destination.speaks_first(now + 2 * SPEAKS_FIRST_FOR));
    }

    #[test]
    fn a_client_that_speaks_first_corrects_the_hint() {
        let now = Instant::now();
        let destination = Destination::new(address(80), now);
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
        assert!(registry.all().len() <= REMEMBERED);
        assert!(Arc::ptr_eq(&held, &registry.destination(address(1), now)));
    }
}
