//! Which endpoint gets the next request: a file a policy, each over a fixed list of hosts.

mod least_request;
mod maglev;
pub(super) mod peak_ewma;
mod priority;
mod random;
mod ring_hash;
mod round_robin;
pub(super) mod slow_start;
pub(super) mod view;
mod weights;

use std::{sync::Arc, time::Instant};

use outrigger_config::{LoadBalancer, PeakEwma};

use self::{
    least_request::LeastRequest, maglev::Table, random::Random, ring_hash::Ring,
    round_robin::RoundRobin,
};
use super::{
    endpoint::Endpoint,
    rng::{Rng, mix},
};

/// An endpoint as a policy sees it.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) endpoint: Arc<Endpoint>,
    /// Its weight, slow start counted in; not 0.
    pub(super) share: u64,
}

/// A policy made ready for a list of hosts, which is not empty.
#[derive(Debug)]
enum Picker {
    RoundRobin(RoundRobin),
    LeastRequest(LeastRequest),
    PeakEwma(LeastRequest, PeakEwma),
    Random(Random),
    RingHash(Ring),
    Maglev(Table),
}

impl Picker {
    pub(super) fn new(settings: &LoadBalancer, hosts: &[Host], seed: u64) -> Self {
        let shares: Vec<_> = hosts.iter().map(|h| h.share).collect();
        match settings {
            LoadBalancer::RoundRobin => Self::RoundRobin(RoundRobin::new(&shares, seed)),
            LoadBalancer::LeastRequest(s) => {
                Self::LeastRequest(LeastRequest::new(&shares, s.choices.get()))
            }
            LoadBalancer::PeakEwma(s) => Self::PeakEwma(LeastRequest::new(&shares, 2), s.clone()),
            LoadBalancer::Random => Self::Random(Random::new(&shares)),
            LoadBalancer::RingHash(s) => Self::RingHash(Ring::new(s, hosts)),
            LoadBalancer::Maglev(s) => Self::Maglev(Table::new(s.table_size.get())),
        }
    }

    /// Whether it holds what only its first draw makes.
    pub(super) fn is_prepared(&self) -> bool {
        matches!(self, Self::Maglev(table) if table.is_filled())
    }

    /// Makes what the first draw would, so that no request waits for it.
    pub(super) fn prepare(&self, hosts: &[Host]) {
        if let Self::Maglev(table) = self {
            table.draw(hosts, 0, 0);
        }
    }

    /// The index of a host. `nth` counts the draws of one pick: those by key go on from the key's
    /// place, the others just draw again.
    pub(super) fn draw(
        &self,
        hosts: &[Host],
        key: u64,
        nth: usize,
        rng: &Rng,
        now: Instant,
    ) -> usize {
        match self {
            Self::RoundRobin(policy) => policy.draw(),
            Self::LeastRequest(policy) => policy.draw(hosts, rng),
            Self::PeakEwma(choices, settings) => {
                let cost = |host: &Host| {
                    let (endpoint, micros) = (&host.endpoint, host.endpoint.micros(now));
                    endpoint.latency.cost(settings, endpoint.active(), micros)
                };
                choices.least(hosts, rng, |a, b| {
                    // Weights count in the draw already; without load, shares are to follow them.
                    if a.endpoint.active() == 0 && b.endpoint.active() == 0 {
                        cost(b) < cost(a)
                    } else {
                        cost(b) * (a.share as f64) < cost(a) * b.share as f64
                    }
                })
            }
            Self::Random(policy) => policy.draw(rng),
            Self::RingHash(ring) => ring.draw(key, nth),
            Self::Maglev(table) => table.draw(hosts, mix(key), nth),
        }
    }
}

#[cfg(test)]
mod tests;
