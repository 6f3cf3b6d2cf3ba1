//! Maglev's table (Eisenbud et al., "Maglev: a fast and reliable software network load balancer",
//! NSDI 2016, section 3.4), with Envoy's weights and hashes: each endpoint in turn takes the next
//! free entry of a permutation of its own.
//!
//! Shares are within 1 % of even; an endpoint that leaves moves its own keys and a few more.

use std::sync::OnceLock;

use xxhash_rust::xxh64::xxh64;

use super::Host;

/// Filled with the first draw: a cluster that nobody uses does not hold the 256 KiB of its entries.
#[derive(Debug)]
pub(super) struct Table {
    size: u32,
    entries: OnceLock<Box<[u32]>>,
}

struct Turn {
    offset: u64,
    skip: u64,
    next: u64,
    /// Weights that have come together so far; a turn is due when they reach the heaviest's.
    due: f64,
}

impl Table {
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            entries: OnceLock::new(),
        }
    }

    pub(super) fn is_filled(&self) -> bool {
        self.entries.get().is_some()
    }

    /// The endpoint at the `nth` entry from the key's; `hosts` are always the same.
    pub(super) fn draw(&self, hosts: &[Host], key: u64, nth: usize) -> usize {
        let entries = self.entries.get_or_init(|| fill(self.size, hosts));
        let size = entries.len();
        entries[((key % size as u64) as usize + nth) % size] as usize
    }
}

fn fill(size: u32, hosts: &[Host]) -> Box<[u32]> {
    let size = u64::from(size);
    let heaviest = hosts.iter().map(|h| h.share).max().unwrap_or(1) as f64;
    let mut turns: Vec<_> = hosts
        .iter()
        .map(|host| {
            let name = host.endpoint.address.to_string();
            Turn {
                offset: xxh64(name.as_bytes(), 0) % size,
                skip: xxh64(name.as_bytes(), 1) % (size - 1) + 1,
                next: 0,
                due: 0.0,
            }
        })
        .collect();
    let mut table = vec![u32::MAX; size as usize];
    let mut free = size;
    let mut round = 0.0;
    while free > 0 {
        round += 1.0;
        for (index, turn) in turns.iter_mut().enumerate() {
            if round * (hosts[index].share as f64) < turn.due {
                continue;
            }
            turn.due += heaviest;
            let entry = loop {
                let entry = (turn.offset + turn.skip * turn.next) % size;
                turn.next += 1;
                if table[entry as usize] == u32::MAX {
                    break entry;
                }
            };
            table[entry as usize] = index as u32;
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    table.into()
}
