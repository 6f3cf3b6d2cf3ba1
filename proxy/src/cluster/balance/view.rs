//! The hosts of a cluster, or of one subset of it, arranged for picking: priorities, zones and panic
//! become pools with fixed shares of the traffic, so that a pick decides by one draw.

use std::time::Instant;

use outrigger_config::Locality;

use super::{
    Host, Picker,
    priority::{Level, shares},
    slow_start,
};
use crate::cluster::{
    endpoint::Endpoint,
    host_set::{Member, Policy},
    pick::PickContext,
    rng::{Rng, mix},
};

/// Draws before the hosts are looked through one by one.
const DRAWS: usize = 8;

/// Weights are multiplied by it while a slow start takes parts of them.
const FINE: f64 = 100.0;

#[derive(Debug, Default)]
pub(in crate::cluster) struct View {
    pools: Box<[Pool]>,
}

#[derive(Debug)]
struct Pool {
    hosts: Box<[Host]>,
    picker: Picker,
    /// Up to which of 2^32 draws it is taken.
    bound: u64,
    is_panicking: bool,
}

impl View {
    pub(in crate::cluster) fn new(
        members: &[&Member],
        policy: &Policy,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut by_priority: Vec<Vec<&Member>> = Vec::new();
        for member in members {
            let priority = usize::from(member.priority);
            if by_priority.len() <= priority {
                by_priority.resize_with(priority + 1, Vec::new);
            }
            by_priority[priority].push(member);
        }
        let settings = &policy.settings;
        let levels: Vec<_> = by_priority.iter().map(|m| level(m)).collect();
        let shares = shares(
            &levels,
            settings.overprovisioning_factor,
            policy.panic_threshold(),
        );
        let mut view = Builder {
            policy,
            pools: Vec::new(),
            filled: 0.0,
            seed,
            now,
        };
        for (members, share) in by_priority.iter().zip(shares) {
            if share.of_all > 0.0 && share.is_panicking {
                view.add(members, share.of_all, true);
            } else if share.of_all > 0.0 {
                view.add_by_zone(members, share.of_all);
            }
        }
        view.finish()
    }

    pub(in crate::cluster) fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// Whether a pick has made what is made for the first one.
    pub(in crate::cluster) fn is_prepared(&self) -> bool {
        self.pools.iter().any(|p| p.picker.is_prepared())
    }

    pub(in crate::cluster) fn prepare(&self) {
        for pool in &self.pools {
            pool.picker.prepare(&pool.hosts);
        }
    }

    /// A host that `admit`s the request, and how. An untried, usable one if there is one; a host that
    /// does not admit never.
    pub(in crate::cluster) fn pick<A>(
        &self,
        policy: &Policy,
        context: &PickContext<'_>,
        rng: &Rng,
        now: Instant,
        admit: impl Fn(&Endpoint) -> Option<A>,
    ) -> Option<(&Host, A)> {
        let key = context.hash.unwrap_or_else(|| rng.next());
        // A key keeps to its pool, else it would have a host in each.
        let draw = match context.hash {
            Some(key) if policy.is_by_key() => mix(!key) >> 32,
            _ => u64::from(rng.word()),
        };
        let chosen = self.pools.iter().position(|p| draw < p.bound).unwrap_or(0);
        for is_choosy in [true, false] {
            for n in 0..self.pools.len() {
                let pool = &self.pools[(chosen + n) % self.pools.len()];
                let admit = |host: &Host| {
                    let is_fit = !is_choosy || pool.is_fit(host, context);
                    is_fit.then(|| admit(&host.endpoint))?
                };
                let found = pool.pick(key, rng, now, admit);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// Every host that a pick may come to now, with its part of the requests by weight; draws nothing.
    pub(in crate::cluster) fn candidates(
        &self,
        context: &PickContext<'_>,
        would_admit: impl Fn(&Endpoint) -> bool,
    ) -> Vec<(&Host, f64)> {
        for is_choosy in [true, false] {
            let able = |pool: &'_ Pool| -> Vec<usize> {
                let is_able = |host: &Host| {
                    (!is_choosy || pool.is_fit(host, context)) && would_admit(&host.endpoint)
                };
                let hosts = pool.hosts.iter().enumerate();
                hosts.filter(|(_, h)| is_able(h)).map(|(n, _)| n).collect()
            };
            let able: Vec<_> = self.pools.iter().map(able).collect();
            let mut found = Vec::new();
            for (n, part) in self.parts(|pool| !able[pool].is_empty()) {
                let hosts = able[n].iter().map(|host| &self.pools[n].hosts[*host]);
                let weights: u64 = hosts.clone().map(|h| h.share).sum();
                found.extend(hosts.map(|h| (h, part * h.share as f64 / weights as f64)));
            }
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// What comes to each pool that `has_hosts`, if a pool without leaves its part to the next, as a pick
    /// does.
    fn parts(&self, has_hosts: impl Fn(usize) -> bool) -> Vec<(usize, f64)> {
        let count = self.pools.len();
        let mut parts = vec![0.0; count];
        let mut from = 0;
        for (n, pool) in self.pools.iter().enumerate() {
            let part = (pool.bound - from) as f64 / 2_f64.powi(32);
            from = pool.bound;
            if let Some(taker) = (n..n + count).map(|n| n % count).find(|n| has_hosts(*n)) {
                parts[taker] += part;
            }
        }
        let parts = parts.into_iter().enumerate();
        parts.filter(|(n, _)| has_hosts(*n)).collect()
    }

    pub(in crate::cluster) fn is_panicking(&self) -> bool {
        self.pools.iter().any(|pool| pool.is_panicking)
    }
}

impl Pool {
    fn is_fit(&self, host: &Host, context: &PickContext<'_>) -> bool {
        (self.is_panicking || host.endpoint.is_usable())
            && !context.tried.contains(&host.endpoint.address)
    }

    fn pick<A>(
        &self,
        key: u64,
        rng: &Rng,
        now: Instant,
        admit: impl Fn(&Host) -> Option<A>,
    ) -> Option<(&Host, A)> {
        let mut last = 0;
        for nth in 0..DRAWS {
            last = self.picker.draw(&self.hosts, key, nth, rng, now);
            if let Some(admission) = admit(&self.hosts[last]) {
                return Some((&self.hosts[last], admission));
            }
        }
        let (before, from) = self.hosts.split_at(last);
        let mut rest = from.iter().chain(before);
        rest.find_map(|host| admit(host).map(|admission| (host, admission)))
    }
}

struct Builder<'a> {
    policy: &'a Policy,
    pools: Vec<Pool>,
    filled: f64,
    seed: u64,
    now: Instant,
}

impl Builder<'_> {
    /// The own zone first, then its region, then the rest, each as far as it is well.
    fn add_by_zone(&mut self, members: &[&Member], share: f64) {
        let settings = &self.policy.settings;
        let own = &self.policy.locality;
        let Some(zones) = settings.zone_aware.as_ref().filter(|zones| {
            *own != Locality::default() && members.len() >= zones.min_cluster_size as usize
        }) else {
            return self.add(members, share, false);
        };
        let preferring = zones.routing_enabled.fraction();
        let mut tiers = [Vec::new(), Vec::new(), Vec::new()];
        for member in members {
            tiers[distance(own, &member.locality)].push(*member);
        }
        let levels = tiers.each_ref().map(|tier| level(tier));
        // Panic is decided for the priority as a whole, never here.
        let shares = shares_of(&levels, settings.overprovisioning_factor);
        for (tier, of_tier) in tiers.iter().zip(shares) {
            self.add(tier, share * preferring * of_tier, false);
        }
        self.add(members, share * (1.0 - preferring), false);
    }

    fn add(&mut self, members: &[&Member], share: f64, is_panicking: bool) {
        let fit = members
            .iter()
            .filter(|m| is_panicking || m.endpoint.is_usable());
        let hosts = self.hosts(fit.copied());
        if hosts.is_empty() || share <= 0.0 {
            return;
        }
        self.filled += share;
        self.seed = mix(self.seed.wrapping_add(1));
        self.pools.push(Pool {
            picker: Picker::new(&self.policy.settings.load_balancer, &hosts, self.seed),
            hosts,
            bound: (self.filled * 2_f64.powi(32)) as u64,
            is_panicking,
        });
    }

    fn hosts<'m>(&self, members: impl Iterator<Item = &'m Member>) -> Box<[Host]> {
        let slow_start = self.policy.slow_start();
        let members: Vec<_> = members.collect();
        let factor = |m: &Member| {
            slow_start.map_or(1.0, |s| {
                slow_start::factor(s, m.endpoint.warm_for(self.now))
            })
        };
        let is_any_slow = slow_start.is_some() && members.iter().any(|m| factor(m) < 1.0);
        let share = |m: &Member| {
            if is_any_slow {
                ((f64::from(m.weight) * FINE * factor(m)).round() as u64).max(1)
            } else {
                u64::from(m.weight)
            }
        };
        members
            .iter()
            .map(|m| Host {
                endpoint: m.endpoint.clone(),
                share: share(m),
            })
            .collect()
    }

    /// Nothing is left over by rounding: the last pool takes the rest.
    fn finish(mut self) -> View {
        if let Some(last) = self.pools.last_mut() {
            last.bound = 1 << 32;
        }
        View {
            pools: self.pools.into(),
        }
    }
}

fn shares_of(levels: &[Level], overprovisioning: u32) -> Vec<f64> {
    let shares = shares(levels, overprovisioning, 0);
    shares.iter().map(|s| s.of_all).collect()
}

fn level(members: &[&Member]) -> Level {
    Level {
        usable: members.iter().filter(|m| m.endpoint.is_usable()).count(),
        total: members.len(),
    }
}

/// 0: same zone, 1: same region, 2: elsewhere.
fn distance(own: &Locality, other: &Locality) -> usize {
    if own.region != other.region {
        2
    } else {
        usize::from(own.zone != other.zone)
    }
}
