//! Policy for original destinations: a cluster of one endpoint for each destination in use.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::Cluster;

/// Locks, so that workers rarely meet on one.
const SHARDS: usize = 16;

/// Clusters of one endpoint by its address; beyond a limit the least recently used go.
#[derive(Debug)]
pub(super) struct PerDestination {
    shards: [Mutex<Shard>; SHARDS],
}

type Shard = HashMap<SocketAddr, Kept>;

#[derive(Debug)]
struct Kept {
    cluster: Arc<Cluster>,
    last_used: Instant,
}

impl PerDestination {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// The cluster of `address`, made if there is none; at most `max` of them are kept.
    pub(super) fn at(
        &self,
        address: SocketAddr,
        max: usize,
        now: Instant,
        make: impl FnOnce() -> Arc<Cluster>,
    ) -> Arc<Cluster> {
        let mut shard = lock(&self.shards[shard_of(address)]);
        if let Some(known) = shard.get_mut(&address) {
            known.last_used = now;
            return known.cluster.clone();
        }
        let max = max.div_ceil(SHARDS);
        if shard.len() >= max {
            forget_some(&mut shard, (max / 8).max(1));
        }
        let cluster = make();
        let kept = Kept {
            cluster: cluster.clone(),
            last_used: now,
        };
        shard.insert(address, kept);
        cluster
    }

    /// The cluster of `address`, if there is one; it counts as used no later for being asked after.
    pub(super) fn find(&self, address: SocketAddr) -> Option<Arc<Cluster>> {
        let shard = lock(&self.shards[shard_of(address)]);
        shard.get(&address).map(|kept| kept.cluster.clone())
    }

    pub(super) fn all(&self) -> Vec<Arc<Cluster>> {
        let shards = self.shards.iter();
        shards
            .flat_map(|shard| {
                let shard = lock(shard);
                let clusters = shard.values().map(|kept| kept.cluster.clone());
                clusters.collect::<Vec<_>>()
            })
            .collect()
    }
}

/// Forgets the least recently used `count` whose last request has ended.
fn forget_some(shard: &mut Shard, count: usize) {
    let unused = shard
        .iter()
        .filter(|(_, kept)| Arc::strong_count(&kept.cluster) == 1);
    let mut unused: Vec<_> = unused.map(|(a, kept)| (kept.last_used, *a)).collect();
    let count = count.min(unused.len());
    if count == 0 {
        return;
    }
    unused.select_nth_unstable(count - 1);
    for (_, address) in &unused[..count] {
        shard.remove(address);
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shard_of(address: SocketAddr) -> usize {
    let low = match address.ip() {
        std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]),
        std::net::IpAddr::V6(ip) => usize::from(ip.octets()[15]),
    };
    (low ^ usize::from(address.port())) % SHARDS
}
