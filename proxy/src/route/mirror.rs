//! Which copies of a request are to be sent, and how many may be under way.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use super::Routed;
use crate::{
    cluster::Rng,
    dispatch::{Onward, Target},
    worker::Worker,
};

/// Copies that a worker has under way at most; the next ones are not made. A mirror that does not
/// keep up must cost no more than that: at 64 KiB each, 16 MiB.
const MAX_UNDER_WAY: usize = 256;

/// The longest that a copy may take, its answer included: Envoy's timeout of a route.
pub(crate) const TAKES: Duration = Duration::from_secs(15);

/// A copy that is to be made of one request.
#[derive(Debug)]
pub struct Copy {
    onward: Arc<Onward>,
    pub shadow_host: bool,
    pub max_body_bytes: usize,
}

/// A copy's place among those under way, until dropped.
#[derive(Debug)]
pub(crate) struct Place(Rc<Worker>);

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
}

impl Place {
    /// None while too many are under way.
    pub(crate) fn take(worker: &Rc<Worker>) -> Option<Self> {
        let under_way: &Cell<usize> = &worker.copies;
        (under_way.get() < MAX_UNDER_WAY).then(|| {
            under_way.set(under_way.get() + 1);
            Self(worker.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.copies.set(self.0.copies.get() - 1);
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
