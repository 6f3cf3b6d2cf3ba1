//! Which copies of a request are to be sent, how many may be under way, and what becomes of them.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{task, time::timeout};

use super::Routed;
use crate::{
    cluster::Rng,
    dispatch::{Onward, Target},
    failure::Failure,
    worker::Worker,
};

/// Copies that a worker has under way at most; the next ones are not made. A mirror that does not
/// keep up must cost no more than that: at 64 KiB each, 16 MiB.
const MAX_UNDER_WAY: usize = 256;

/// The longest that a copy may take, its answer included: Envoy's timeout of a route.
const TAKES: Duration = Duration::from_secs(15);

/// A copy that is to be made of one request.
#[derive(Debug)]
pub struct Copy {
    onward: Arc<Onward>,
    pub shadow_host: bool,
    pub max_body_bytes: usize,
}

/// A copy's place among those under way, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    worker: Rc<Worker>,
    onward: Arc<Onward>,
}

impl Routed {
    /// The copies that `rng` draws for a request.
    pub fn copies(&self, rng: &Rng) -> Vec<Copy> {
        let Some(route) = &self.route else {
            return Vec::new();
        };
        let mirrors = route.decision.settings.mirror.iter().zip(&route.mirrors);
        let drawn = mirrors.filter(|(mirror, _)| mirror.percent.includes(rng.word()));
        let copies = drawn.filter_map(|(mirror, onward)| {
            Some(Copy {
                onward: onward.clone()?,
                shadow_host: mirror.shadow_host,
                max_body_bytes: mirror.max_body_bytes,
            })
        });
        copies.collect()
    }
}

impl Copy {
    pub(crate) fn target(&self, original: std::net::SocketAddr) -> Target {
        Target::Cluster(self.onward.at(original))
    }

    /// A place for the copy of a request whose body has `body` bytes; none if that is too long, or too
    /// many are under way.
    pub(crate) fn place(&self, worker: &Rc<Worker>, body: usize) -> Option<Place> {
        let under_way: &Cell<usize> = &worker.copies;
        if body > self.max_body_bytes || under_way.get() >= MAX_UNDER_WAY {
            self.dropped();
            return None;
        }
        under_way.set(under_way.get() + 1);
        Some(Place {
            worker: worker.clone(),
            onward: self.onward.clone(),
        })
    }

    /// Counts that it is not sent.
    pub(crate) fn dropped(&self) {
        let counts = &self.onward.cluster.counts;
        counts.copies_dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Place {
    /// Has the copy sent and its answer read by a task of its own.
    pub(crate) fn spawn(self, sending: impl Future<Output = Result<(), Failure>> + 'static) {
        task::spawn_local(async move {
            let counts = &self.onward.cluster.counts;
            let count = match timeout(TAKES, sending).await {
                Ok(Ok(())) => &counts.copies_answered,
                Ok(Err(_)) => &counts.copies_failed,
                Err(_) => &counts.copies_timed_out,
            };
            count.fetch_add(1, Ordering::Relaxed);
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.copies.set(self.worker.copies.get() - 1);
    }
}

/// The host of a copy: `-shadow` stands before the port (`api.internal-shadow:8080`).
pub(crate) fn shadow(host: &[u8]) -> Vec<u8> {
    let end = match host.iter().rposition(|b| *b == b':') {
        Some(at) if !host[at..].contains(&b']') => at,
        _ => host.len(),
    };
    [&host[..end], b"-shadow", &host[end..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_keeps_its_port() {
        for (host, wanted) in [
            ("a.test", "a.test-shadow"),
            ("a.test:8080", "a.test-shadow:8080"),
            ("[::1]", "[::1]-shadow"),
        ] {
            assert_eq!(shadow(host.as_bytes()), wanted.as_bytes());
        }
    }
}
