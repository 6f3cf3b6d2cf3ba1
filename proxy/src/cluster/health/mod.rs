//! Active health checks of a cluster's endpoints: one task a cluster, on the control thread.

mod probe;
mod progress;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use outrigger_config::HealthCheck;
use tokio::task::JoinSet;

use self::{
    probe::{Kept, probe},
    progress::Progress,
};
use super::{Cluster, Endpoint, Rng};

/// Checks of one cluster under way at once; those beyond come later than their interval.
const AT_ONCE: usize = 256;

/// When who is due, and what is known of everybody.
#[derive(Debug)]
pub(super) struct Checker {
    cluster: Arc<Cluster>,
    settings: Arc<HealthCheck>,
    rng: Rng,
    due: BinaryHeap<Reverse<(Instant, SocketAddr)>>,
    known: HashMap<SocketAddr, Checked>,
    under_way: JoinSet<(SocketAddr, Option<Kept>, bool)>,
}

#[derive(Debug)]
struct Checked {
    endpoint: Arc<Endpoint>,
    progress: Progress,
    kept: Option<Kept>,
}

impl Checker {
    pub(super) fn new(cluster: Arc<Cluster>, settings: HealthCheck, seed: u64) -> Self {
        Self {
            cluster,
            settings: Arc::new(settings),
            rng: Rng::new(seed),
            due: BinaryHeap::new(),
            known: HashMap::new(),
            under_way: JoinSet::new(),
        }
    }

    /// The cluster's endpoints may have changed: new ones are due at once.
    pub(super) fn follow(&mut self, now: Instant) {
        let mut left = std::mem::take(&mut self.known);
        for endpoint in self.cluster.endpoints() {
            let address = endpoint.address;
            match left.remove(&address) {
                Some(checked) if Arc::ptr_eq(&checked.endpoint, &endpoint) => {
                    self.known.insert(address, checked);
                }
                same_address => {
                    // Of one that left so long ago that it is another now, the check is due already.
                    if same_address.is_none() {
                        self.due.push(Reverse((now, address)));
                    }
                    let checked = Checked {
                        endpoint,
                        progress: Progress::default(),
                        kept: None,
                    };
                    self.known.insert(address, checked);
                }
            }
        }
    }

    /// Runs checks until one has changed an endpoint's health. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) {
        loop {
            let next = self.start_due(Instant::now());
            tokio::select! {
                Some(ended) = self.under_way.join_next() => {
                    if let Ok((address, kept, is_well)) = ended
                        && self.note(address, kept, is_well, Instant::now())
                    {
                        return;
                    }
                }
                () = until(next) => {}
            }
        }
    }

    /// Starts what is due; returns when the next is.
    fn start_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, address))) = self.due.peek().copied() {
            if at > now {
                return Some(at);
            }
            if self.under_way.len() >= AT_ONCE {
                return None;
            }
            self.due.pop();
            let Some(checked) = self.known.get_mut(&address) else {
                continue;
            };
            let mut kept = checked.kept.take();
            let (settings, name) = (self.settings.clone(), self.cluster.name.clone());
            self.under_way.spawn_local(async move {
                let port = settings.port.map_or(address.port(), |p| p.get());
                let asked = SocketAddr::new(address.ip(), port);
                let checking = probe(&settings, &name, asked, &mut kept);
                let is_well = match tokio::time::timeout(settings.timeout.0, checking).await {
                    Ok(Ok(())) => true,
                    Ok(Err(error)) => {
                        tracing::debug!(cluster = &*name, %address, %error, "health check failed");
                        false
                    }
                    Err(_) => {
                        tracing::debug!(cluster = &*name, %address, "health check timed out");
                        kept = None;
                        false
                    }
                };
                (address, kept, is_well)
            });
        }
        None
    }

    /// Whether an endpoint's health has changed.
    fn note(
        &mut self,
        address: SocketAddr,
        kept: Option<Kept>,
        is_well: bool,
        now: Instant,
    ) -> bool {
        let Some(checked) = self.known.get_mut(&address) else {
            return false;
        };
        checked.kept = kept;
        let jitter = self.settings.interval_jitter_percent.fraction() * self.rng.unit();
        let interval = self.settings.interval.0.mul_f64(1.0 + jitter);
        self.due.push(Reverse((now + interval, address)));
        let Some(verdict) = checked.progress.note(&self.settings, is_well) else {
            return false;
        };
        let changed = self.cluster.set_health(&checked.endpoint, verdict, now);
        if changed {
            tracing::info!(cluster = &*self.cluster.name, %address, healthy = verdict, "endpoint health changed");
        }
        changed
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
