//! Smooth weighted round robin without a lock: the schedule is made with the host set, and a pick
//! moves one cursor, which all workers share.
//!
//! In the schedule every host stands at even distances (earliest deadline first, as Envoy's
//! scheduler and nginx's smooth round robin do), so that a heavy host gets no bursts.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Slots of a schedule, at least; beyond, and beyond 16 a host, weights are rounded to a part of
/// them. 64 KiB.
const SLOTS: u64 = 16_384;

#[derive(Debug)]
pub(super) struct RoundRobin {
    cursor: AtomicUsize,
    hosts: usize,
    /// Empty where all weights are equal.
    schedule: Box<[u32]>,
}

impl RoundRobin {
    /// `start` is where the cursor begins: host sets are made often, and the first must not be
    /// preferred.
    pub(super) fn new(weights: &[u64], start: u64) -> Self {
        let schedule = if weights.iter().all(|w| *w == weights[0]) {
            Box::default()
        } else {
            schedule(weights)
        };
        Self {
            cursor: AtomicUsize::new(start as usize),
            hosts: weights.len(),
            schedule,
        }
    }

    pub(super) fn draw(&self) -> usize {
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
        match self.schedule.len() {
            0 => turn % self.hosts,
            slots => self.schedule[turn % slots] as usize,
        }
    }
}

fn schedule(weights: &[u64]) -> Box<[u32]> {
    let slots = slots(weights);
    let total: u64 = slots.iter().sum();
    // The deadline of a host's k-th slot is (2 k + 1) / (2 slots).
    let deadline = |k: u64, slots: u64| ((2 * k + 1) << 40) / (2 * slots);
    let mut due: BinaryHeap<_> = slots
        .iter()
        .enumerate()
        .map(|(host, slots)| Reverse((deadline(0, *slots), host, 0)))
        .collect();
    let next = |_| {
        let Reverse((_, host, k)) = due.pop()?;
        if k + 1 < slots[host] {
            due.push(Reverse((deadline(k + 1, slots[host]), host, k + 1)));
        }
        Some(host as u32)
    };
    (0..total).map_while(next).collect()
}

/// How many slots each host gets: its weight, divided by what all have in common and, if that is
/// still too many, rounded to at least one.
fn slots(weights: &[u64]) -> Vec<u64> {
    let common = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let total: u64 = weights.iter().map(|w| w / common).sum();
    let most = SLOTS.max(16 * weights.len() as u64);
    if total <= most {
        return weights.iter().map(|w| w / common).collect();
    }
    let scale = most as f64 / total as f64;
    weights
        .iter()
        .map(|w| (((w / common) as f64 * scale).round() as u64).max(1))
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heavy_host_gets_no_bursts() {
        let order = schedule(&[5, 1, 1]);
        assert_eq!(order.len(), 7);
        let light: Vec<_> = (0..7).filter(|i| order[*i] != 0).collect();
        assert!(light[1] - light[0] <= 2 && order[0] == 0, "{order:?}");
        let longest = order.chunk_by(|a, b| a == b).map(<[u32]>::len).max();
        assert!(longest <= Some(3), "{order:?}");
    }

    #[test]
    fn weights_are_exact_where_they_fit_and_nobody_gets_nothing_where_not() {
        assert_eq!(slots(&[200, 300]), [2, 3]);
        let slots = slots(&[1, 4_000_000_000]);
        assert_eq!(slots[0], 1);
        assert!(slots[1] <= SLOTS);
    }
}
