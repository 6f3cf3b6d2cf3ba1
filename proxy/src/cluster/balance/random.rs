//! Random, by weight.

use super::weights::Weights;
use crate::cluster::rng::Rng;

#[derive(Debug)]
pub(super) struct Random(Weights);

impl Random {
    pub(super) fn new(weights: &[u64]) -> Self {
        Self(Weights::new(weights))
    }

    pub(super) fn draw(&self, rng: &Rng) -> usize {
        self.0.draw(rng)
    }
}
