//! What is counted for one destination.

use std::{collections::BTreeMap, sync::OnceLock};

use super::{
    cell::Cell,
    latency::{Latency, LatencyCells},
    outcome::{Outcome, OutcomeCells},
};
use crate::observe::{Protocol, Record};

/// A switch of protocols is no answer that anyone waited for; what follows may last for hours.
const SWITCHING_PROTOCOLS: u16 = 101;

/// The figures of one destination: a set of cells for each worker that has used it, summed when
/// somebody looks.
#[derive(Debug)]
pub struct DestinationMetrics {
    of_worker: Box<[OnceLock<Box<Cells>>]>,
}

impl DestinationMetrics {
    pub fn new(workers: usize) -> Self {
        Self {
            of_worker: (0..workers).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Counts a finished request or connection; to be called on `worker`'s own thread.
    pub fn observe(&self, worker: usize, record: &Record<'_>) {
        self.of_worker[worker]
            .get_or_init(Box::default)
            .observe(record);
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for cells in self.of_worker.iter().filter_map(OnceLock::get) {
            totals.add(cells);
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
    bytes_received: Cell,
    bytes_sent: Cell,
    fresh: Cell,
    reused: Cell,
}

const _: () = assert!(size_of::<Cells>() <= 384);

impl Cells {
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
        if record.status != Some(SWITCHING_PROTOCOLS) {
            self.latency.observe(record.duration);
        }
    }
}

/// Sums over workers, and over destinations where several are told as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) outcomes: BTreeMap<Outcome, u64>,
    /// HTTP requests only.
    pub(crate) latency: Latency,
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
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.fresh += other.fresh;
        self.reused += other.reused;
    }

    fn add(&mut self, cells: &Cells) {
        cells.outcomes.collect(&mut self.outcomes);
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
        let metrics = DestinationMetrics::new(2);
        let reused = Record {
            upstream_reused: true,
            bytes_sent: 7,
            ..record()
        };
        metrics.observe(0, &record());
        metrics.observe(1, &reused);
        metrics.observe(1, &reused);
        let totals = metrics.totals();
        assert_eq!((totals.fresh, totals.reused), (1, 2));
        assert_eq!(totals.bytes_sent, record().bytes_sent + 14);
        assert_eq!(totals.outcomes.values().copied().collect::<Vec<_>>(), [3]);
        assert_eq!(totals.latency.count(), 3);
    }

    #[test]
    fn a_destination_that_no_worker_used_takes_no_cells() {
        let metrics = DestinationMetrics::new(64);
        metrics.observe(3, &record());
        let used = metrics.of_worker.iter().filter(|c| c.get().is_some());
        assert_eq!(used.count(), 1);
    }

    #[test]
    fn the_hours_of_a_tunnel_are_no_latency() {
        let metrics = DestinationMetrics::new(1);
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
            metrics.observe(0, &long);
        }
        assert_eq!(metrics.totals().latency.count(), 0);
        assert_eq!(metrics.totals().outcomes.len(), 2);
    }

    #[test]
    fn merging_loses_nothing() {
        let (one, two) = (DestinationMetrics::new(1), DestinationMetrics::new(1));
        one.observe(0, &record());
        two.observe(0, &record());
        two.observe(
            0,
            &Record {
                failure: Some(Failure::UpstreamClosed),
                status: Some(502),
                ..record()
            },
        );
        let mut merged = one.totals();
        merged.merge(&two.totals());
        assert_eq!(merged.outcomes.values().sum::<u64>(), 3);
        assert_eq!(merged.outcomes.len(), 2);
        assert_eq!(merged.latency.count(), 3);
        assert_eq!(merged.bytes_received, 3 * record().bytes_received);
    }
}
