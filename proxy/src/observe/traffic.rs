//! What goes where, as the control socket tells it: a page of the destinations at a time, so that no
//! answer is longer than a line may be and the heartbeat waits for none of them for long.

use std::{net::SocketAddr, sync::Arc};

use outrigger_config::control::{ConfigurationState, Counts, DestinationTraffic, Traffic};

use super::metrics::Totals;
use crate::{cluster::Destination, shared::Shared};

/// Destinations on one page. One takes some 400 bytes at most, a page three quarters of a line.
const PAGE: usize = 120;

/// The page that begins behind `after`.
pub(crate) fn traffic(shared: &Shared, after: Option<SocketAddr>) -> Traffic {
    let mut destinations = shared.registry.all();
    destinations.retain(|d| after.is_none_or(|after| d.address > after));
    let has_more = destinations.len() > PAGE;
    if has_more {
        destinations.select_nth_unstable_by_key(PAGE, |d| d.address);
        destinations.truncate(PAGE);
    }
    destinations.sort_unstable_by_key(|d| d.address);
    let configuration = shared.configuration.figures();
    Traffic {
        configuration: ConfigurationState {
            generation: configuration.generation,
            applied: configuration.applied,
            rejected: configuration.rejected,
            is_latest_good: configuration.is_latest_good,
        },
        live_connections: shared.connections.live(),
        max_connections: shared.connections.max(),
        latency_bounds: bounds(),
        destinations: destinations.iter().map(row).collect(),
        has_more,
        forgotten: counts(&shared.registry.forgotten()),
    }
}

fn row(destination: &Arc<Destination>) -> DestinationTraffic {
    // Beside the connections to it, only the registry and we hold it.
    let live = Arc::strong_count(destination).saturating_sub(2);
    DestinationTraffic {
        destination: destination.address,
        live: live as u64,
        counts: counts(&destination.metrics.totals()),
    }
}

fn counts(totals: &Totals) -> Counts {
    let mut counts = Counts {
        received_bytes: totals.bytes_received,
        sent_bytes: totals.bytes_sent,
        latency: totals.latency.buckets().map(|(_, count)| count).into(),
        latency_sum_seconds: totals.latency.sum_seconds(),
        ..Counts::default()
    };
    for (outcome, count) in &totals.outcomes {
        counts.requests += count;
        if outcome.is_failure() {
            counts.failures += count;
        } else if outcome.is_server_error() {
            counts.server_errors += count;
        }
    }
    counts
}

/// In milliseconds; the last bucket has none.
fn bounds() -> Vec<f64> {
    let buckets = Totals::default().latency.buckets();
    let bounds = buckets.iter().map(|(bound, _)| bound * 1e3);
    bounds.filter(|bound| bound.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use outrigger_config::control::MAX_LINE;

    use super::*;
    use crate::{
        failure::Failure,
        observe::{Record, test_record as record},
    };

    fn address(n: usize) -> SocketAddr {
        let part = |shift: usize| (n >> shift) as u16;
        let ip = [
            0x2001,
            0xdb8,
            0xffff,
            0xffff,
            0xffff,
            0xffff,
            part(16),
            part(0),
        ];
        (ip, 65_535).into()
    }

    #[test]
    fn pages_tell_every_destination_once_and_each_fits_into_a_line() {
        let shared = Shared::uncaptured(1);
        let now = Instant::now();
        let most = Record {
            bytes_sent: u64::MAX >> 8,
            bytes_received: u64::MAX >> 8,
            duration: Duration::from_millis(333),
            ..record()
        };
        let held: Vec<_> = (0..301)
            .map(|n| shared.registry.destination(address(n * 7), now))
            .collect();
        for destination in &held {
            for _ in 0..30 {
                destination.metrics.observe(0, &most);
            }
        }
        let mut told = Vec::new();
        let mut after = None;
        loop {
            let page = traffic(&shared, after);
            let line = serde_json::to_string(&page).expect("plain data");
            assert!(line.len() < MAX_LINE * 3 / 4, "{}", line.len());
            told.extend(page.destinations.iter().map(|d| (d.destination, d.live)));
            after = page.destinations.last().map(|d| d.destination);
            if !page.has_more {
                break;
            }
        }
        let wanted: Vec<_> = (0..301).map(|n| (address(n * 7), 1)).collect();
        assert_eq!(told, wanted);
    }

    #[test]
    fn failures_and_a_servers_errors_are_told_apart() {
        let shared = Shared::uncaptured(1);
        let destination = shared.registry.destination(address(1), Instant::now());
        let answered = |status, failure| Record {
            status: Some(status),
            failure,
            ..record()
        };
        for record in [
            answered(200, None),
            answered(404, None),
            answered(500, None),
            answered(502, Some(Failure::ConnectRefused)),
        ] {
            destination.metrics.observe(0, &record);
        }
        let page = traffic(&shared, None);
        let counts = &page.destinations[0].counts;
        let three = (counts.requests, counts.failures, counts.server_errors);
        assert_eq!(three, (4, 1, 1));
        assert_eq!(counts.latency.len(), page.latency_bounds.len() + 1);
        assert!((page.latency_bounds[0] - 0.5).abs() < 1e-9);
    }
}
