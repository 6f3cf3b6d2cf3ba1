//! A ring of points, as in ketama: a key goes to the next point on the ring. Points are placed by
//! XXH64 of `address_number`, their count by weight, as in Envoy, so that both send a key to the same
//! endpoint.
//!
//! An endpoint that leaves moves its own keys only, over all the others.

use std::fmt::Write;

use outrigger_config::RingHash;
use xxhash_rust::xxh64::xxh64;

use super::Host;

#[derive(Debug)]
pub(super) struct Ring(Box<[(u64, u32)]>);

impl Ring {
    pub(super) fn new(settings: &RingHash, hosts: &[Host]) -> Self {
        let total: f64 = hosts.iter().map(|h| h.share as f64).sum();
        let least = hosts.iter().map(|h| h.share).min().unwrap_or(1) as f64 / total;
        let fewest = f64::from(settings.minimum_ring_size.get());
        // The lightest gets whole points, so that it gets its part exactly.
        let scale = ((least * fewest).ceil() / least).min(settings.maximum_ring_size.get().into());
        let mut points = Vec::with_capacity(scale.ceil() as usize + 1);
        let (mut target, mut name) = (0.0, String::new());
        for (index, host) in hosts.iter().enumerate() {
            target += scale * host.share as f64 / total;
            let mut number = 0;
            while (points.len() as f64) < target {
                name.clear();
                let _ = write!(name, "{}_{number}", host.endpoint.address);
                points.push((xxh64(name.as_bytes(), 0), index as u32));
                number += 1;
            }
        }
        points.sort_unstable();
        Self(points.into())
    }

    /// The endpoint at the `nth` point from the key's.
    pub(super) fn draw(&self, key: u64, nth: usize) -> usize {
        let first = self.0.partition_point(|(point, _)| *point < key);
        self.0[(first + nth) % self.0.len()].1 as usize
    }
}
