//! The power of two choices (Mitzenmacher, "The power of two choices in randomized load balancing",
//! IEEE TPDS 12(10), 2001): of a few drawn by weight, the one with the least load per weight.
//!
//! Envoy does so only where all weights are equal, and else schedules by
//! `weight / (active + 1)`, which needs a lock. Drawing by weight and comparing `active / weight` has
//! the same limits (shares by weight without load, load by weight under it) and needs none. A tie
//! goes to the first drawn, so that without load the shares are exactly the weights.

use super::{Host, weights::Weights};
use crate::cluster::rng::Rng;

#[derive(Debug)]
pub(super) struct LeastRequest {
    weights: Weights,
    choices: u32,
}

impl LeastRequest {
    pub(super) fn new(weights: &[u64], choices: u32) -> Self {
        Self {
            weights: Weights::new(weights),
            choices,
        }
    }

    pub(super) fn draw(&self, hosts: &[Host], rng: &Rng) -> usize {
        let load = |host: &Host| u64::from(host.endpoint.active());
        self.least(hosts, rng, |a, b| load(b) * a.share < load(a) * b.share)
    }

    /// The least of the choices, `is_less(a, b)` telling that b is to be preferred.
    pub(super) fn least(
        &self,
        hosts: &[Host],
        rng: &Rng,
        is_less: impl Fn(&Host, &Host) -> bool,
    ) -> usize {
        let mut least = self.weights.draw(rng);
        for _ in 1..self.choices {
            let other = self.weights.draw_other(least, rng);
            if other != least && is_less(&hosts[least], &hosts[other]) {
                least = other;
            }
        }
        least
    }
}
