//! A draw by weight in constant time: the alias method (Walker 1977, in the form of Vose, "A linear
//! algorithm for generating random numbers with a given distribution", IEEE TSE 17(9), 1991).

use crate::cluster::rng::Rng;

#[derive(Debug)]
pub(super) enum Weights {
    Equal(usize),
    /// For each column: keep it if a 32-bit draw is below the first, else take the second.
    Alias(Box<[(u32, u32)]>),
}

impl Weights {
    pub(super) fn new(weights: &[u64]) -> Self {
        if weights.iter().all(|w| *w == weights[0]) {
            return Self::Equal(weights.len());
        }
        let total: u128 = weights.iter().map(|w| u128::from(*w)).sum();
        let count = weights.len() as u128;
        // In parts of `total`: a column that holds exactly its share has `total`.
        let mut held: Vec<u128> = weights.iter().map(|w| u128::from(*w) * count).collect();
        let (mut small, mut large): (Vec<_>, Vec<_>) =
            (0..weights.len()).partition(|i| held[*i] < total);
        let mut columns: Vec<_> = (0..weights.len()).map(|i| (u32::MAX, i as u32)).collect();
        while let (Some(low), Some(high)) = (small.pop(), large.pop()) {
            let keep = (held[low] << 32) / total;
            columns[low] = (u32::try_from(keep).unwrap_or(u32::MAX), high as u32);
            held[high] -= total - held[low];
            if held[high] < total {
                &mut small
            } else {
                &mut large
            }
            .push(high);
        }
        Self::Alias(columns.into())
    }

    pub(super) fn draw(&self, rng: &Rng) -> usize {
        match self {
            Self::Equal(count) => rng.below(*count),
            Self::Alias(columns) => {
                let column = rng.below(columns.len());
                let (keep, other) = columns[column];
                if rng.word() < keep {
                    column
                } else {
                    other as usize
                }
            }
        }
    }

    /// One that is not `first`, if there is one.
    pub(super) fn draw_other(&self, first: usize, rng: &Rng) -> usize {
        match self {
            Self::Equal(1) => first,
            Self::Equal(count) => {
                let other = rng.below(count - 1);
                other + usize::from(other >= first)
            }
            // A few tries: where one weight dwarfs all, there is hardly another worth comparing.
            Self::Alias(_) => (0..4)
                .map(|_| self.draw(rng))
                .find(|other| *other != first)
                .unwrap_or(first),
        }
    }
}
