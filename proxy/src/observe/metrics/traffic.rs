//! What is counted for one destination, cluster or route.

use std::{collections::BTreeMap, sync::OnceLock};

use super::{
    cell::Cell,
    latency::{Latency, LatencyCells},
    native::{Native, NativeCells},
    outcome::{Outcome, OutcomeCells},
};
use crate::observe::{Protocol, Record};

/// Workers in one block.
const BLOCK: usize = 4;

/// A set of cells for each worker that has used it, summed when somebody looks.
#[derive(Debug, Default)]
pub struct Traffic {
    of_worker: [OnceLock<Box<Cells>>; BLOCK],
    /// Of the workers beyond.
    more: OnceLock<Box<Traffic>>,
}

impl Traffic {
    /// Counts a finished request or connection; to be called on `worker`'s own thread. `is_fine`:
    /// latencies are kept in fine buckets as well, from the first on.
    pub fn observe(&self, worker: usize, record: &Record<'_>, is_fine: bool) {
        match self.of_worker.get(worker) {
            Some(cells) => {
                let new = || Box::new(Cells::new(is_fine));
                cells.get_or_init(new).observe(record);
            }
            None => {
                let more = self.more.get_or_init(Box::default);
                more.observe(worker - BLOCK, record, is_fine);
            }
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let mut block = Some(self);
        while let Some(traffic) = block {
            for cells in traffic.of_worker.iter().filter_map(OnceLock::get) {
                totals.add(cells);
            }
            block = traffic.more.get().map(Box::as_ref);
        }
        totals
    }
}

/// One worker's cells: 256 bytes, so that 10,000 destinations used by 8 workers take 20 MiB. On
/// lines of their own; two, because the processor fetches them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cells {
    outcomes: OutcomeCells,
    latency: LatencyCells,
    native: Option<Box<NativeCells>>,
    bytes_received: Cell,
    bytes_sent: Cell,
    fresh: Cell,
    reused: Cell,
}

const _: () = assert!(size_of::<Cells>() <= 384);

impl Cells {
    fn new(is_fine: bool) -> Self {
        Self {
            native: is_fine.then(Box::default),
            ..Self::default()
        }
    }

    fn observe(&self, record: &Record<'_>) {
        self.outcomes.add(Outcome::of(record));
        self.bytes_received.add(record.bytes_received);
        self.bytes_sent.add(record.bytes_sent);
        if !matches!(record.protocol, Protocol::Http1 | Protocol::Http2) {
            return;
        }
        if record.upstream.is_some() {
            let cell = if record.upstream_reused {
                &self.reused
            } else {
                &self.fresh
            };
            cell.add(1);
        }
        if record.is_latency() {
            self.latency.observe(record.duration);
            if let Some(native) = &self.native {
                native.observe(record.duration);
            }
        }
    }
}

/// Sums over workers, and over destinations where several are told as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) outcomes: BTreeMap<Outcome, u64>,
    /// HTTP requests only.
    pub(crate) latency: Latency,
    /// The same in fine buckets, if these are kept.
    pub(crate) native: Option<Box<Native>>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// HTTP requests sent on a connection made for them.
    pub(crate) fresh: u64,
    /// HTTP requests sent on a connection that had served others.
    pub(crate) reused: u64,
}

impl Totals {
    pub(crate) fn merge(&mut self, other: &Self) {
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(*outcome).or_default() += count;
        }
        self.latency.merge(&other.latency);
        if let Some(native) = &other.native {
            self.native.get_or_insert_default().merge(native);
        }
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.fresh += other.fresh;
        self.reused += other.reused;
    }

    fn add(&mut self, cells: &Cells) {
        cells.outcomes.collect(&mut self.outcomes);
        if let Some(native) = &cells.native {
            self.native.get_or_insert_default().add(native);
        }
        self.latency.add(&cells.latency);
        self.bytes_received += cells.bytes_received.value();
        self.bytes_sent += cells.bytes_sent.value();
        self.fresh += cells.fresh.value();
        self.reused += cells.reused.value();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{failure::Failure, observe::record::tests::record};

    #[test]
    fn workers_count_apart_and_are_told_together() {
        let metrics = Traffic::default();
        let reused = Record {
            upstream_reused: true,
            bytes_sent: 7,
            ..record()
        };
        metrics.observe(0, &record(), false);
        metrics.observe(1, &reused, false);
        metrics.observe(1, &reused, false);
        let totals = metrics.totals();
        assert_eq!((totals.fresh, totals.reused), (1, 2));
        assert_eq!(totals.bytes_sent, record().bytes_sent + 14);
        assert_eq!(totals.outcomes.values().copied().collect::<Vec<_>>(), [3]);
        assert_eq!(totals.latency.count(), 3);
    }

    #[test]
    fn a_destination_that_no_worker_used_takes_no_cells() {
        let metrics = Traffic::default();
        metrics.observe(3, &record(), false);
        let used = metrics.of_worker.iter().filter(|c| c.get().is_some());
        assert_eq!(used.count(), 1);
        assert!(metrics.more.get().is_none());
    }

    #[test]
    fn there_can_be_any_number_of_workers() {
        let metrics = Traffic::default();
        for worker in [0, 3, 4, 63] {
            metrics.observe(worker, &record(), true);
        }
        let totals = metrics.totals();
        assert_eq!(totals.latency.count(), 4);
        assert_eq!(totals.native.map(|n| n.count()), Some(4));
    }

    #[test]
    fn the_hours_of_a_tunnel_are_no_latency() {
        let metrics = Traffic::default();
        let hours = Duration::from_secs(7200);
        for long in [
            Record {
                status: Some(101),
                duration: hours,
                ..record()
            },
            Record {
                protocol: Protocol::Opaque,
                status: None,
                duration: hours,
                ..record()
            },
        ] {
            metrics.observe(0, &long, false);
        }
        assert_eq!(metrics.totals().latency.count(), 0);
        assert_eq!(metrics.totals().outcomes.len(), 2);
    }

    #[test]
    fn merging_loses_nothing() {
        let (one, two) = (Traffic::default(), Traffic::default());
        one.observe(0, &record(), false);
        two.observe(0, &record(), false);
        two.observe(
            0,
            &Record {
                failure: Some(Failure::UpstreamClosed),
                status: Some(502),
                ..record()
            },
            false,
        );
        let mut merged = one.totals();
        merged.merge(&two.totals());
        assert_eq!(merged.outcomes.values().sum::<u64>(), 3);
        assert_eq!(merged.outcomes.len(), 2);
        assert_eq!(merged.latency.count(), 3);
        assert_eq!(merged.bytes_received, 3 * record().bytes_received);
    }
}
