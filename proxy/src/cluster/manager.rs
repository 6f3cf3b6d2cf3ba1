//! All clusters of the process, and what keeps each up to date: one task a cluster on the control
//! thread, which discovers, checks, sweeps and publishes host sets.

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use outrigger_config::{Cluster as Settings, Endpoint, Locality};
use tokio::{sync::mpsc, task::AbortHandle};

use super::{Cluster, Rng, discovery::Discovery, health::Checker};

/// How often weights are worked out anew while an endpoint starts slowly: steps of 1 % of the
/// default window.
const WARMING_STEP: Duration = Duration::from_millis(300);

/// After a source that could not even be begun with (no `resolv.conf`, no directory).
const RETRY: Duration = Duration::from_secs(5);

/// Every cluster by name, for whoever compiles routes or answers on the admin listener.
#[derive(Debug, Default)]
pub struct Clusters(ArcSwap<HashMap<Arc<str>, Arc<Cluster>>>);

impl Clusters {
    pub fn find(&self, name: &str) -> Option<Arc<Cluster>> {
        self.0.load().get(name).cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let mut all: Vec<_> = self.0.load().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// Starts, changes and ends clusters; lives on the control thread, inside its runtime.
#[derive(Debug)]
pub struct Manager {
    clusters: Arc<Clusters>,
    running: HashMap<Arc<str>, Running>,
    rng: Rng,
}

#[derive(Debug)]
struct Running {
    settings: Settings,
    locality: Locality,
    cluster: Arc<Cluster>,
    task: AbortHandle,
}

impl Manager {
    pub fn new(clusters: Arc<Clusters>, seed: u64) -> Self {
        Self {
            clusters,
            running: HashMap::new(),
            rng: Rng::new(seed),
        }
    }

    /// Makes the clusters those of `wanted`. One whose settings are the same goes on undisturbed;
    /// one whose settings changed keeps its endpoints' state and what is under way.
    pub fn apply<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = &'a Settings>,
        locality: &Locality,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.running);
        for settings in wanted {
            let running = match before.remove(settings.name.as_str()) {
                Some(same) if same.settings == *settings && same.locality == *locality => same,
                Some(changed) => {
                    changed.task.abort();
                    changed
                        .cluster
                        .update(settings.clone(), locality.clone(), now);
                    self.run(settings, locality, changed.cluster)
                }
                None => {
                    let (settings, seed) = (settings.clone(), self.rng.next());
                    let cluster = Cluster::new(settings.clone(), locality.clone(), seed, now);
                    // Known at once: a request that comes first must not find the cluster empty.
                    if settings.health_check.is_none() {
                        cluster.set_endpoints(&settings.endpoints, false, now);
                    }
                    self.run(&settings, locality, cluster)
                }
            };
            self.running.insert(running.cluster.name.clone(), running);
        }
        for gone in before.into_values() {
            gone.task.abort();
        }
        let published = self
            .running
            .values()
            .map(|r| (r.cluster.name.clone(), r.cluster.clone()));
        self.clusters.0.store(Arc::new(published.collect()));
    }

    fn run(&self, settings: &Settings, locality: &Locality, cluster: Arc<Cluster>) -> Running {
        let task = keep(cluster.clone(), settings.clone(), self.rng.next());
        Running {
            settings: settings.clone(),
            locality: locality.clone(),
            cluster,
            task: tokio::task::spawn_local(task).abort_handle(),
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

/// Keeps one cluster up to date for as long as it is there.
async fn keep(cluster: Arc<Cluster>, settings: Settings, seed: u64) {
    // A future of its own within this task: what else happens must not begin a lookup anew.
    let (found, mut lists) = mpsc::channel(1);
    let mut discovering = pin!(discover(&cluster, &settings, found));
    let mut checker = settings
        .health_check
        .clone()
        .map(|check| Checker::new(cluster.clone(), check, seed));
    let interval = settings.outlier_detection.as_ref().map(|o| o.interval.0);
    let mut next_sweep = interval.map(|i| Instant::now() + i);
    loop {
        let warming = cluster.is_warming(Instant::now()).then_some(WARMING_STEP);
        tokio::select! {
            () = &mut discovering => return,
            Some(endpoints) = lists.recv() => {
                let now = Instant::now();
                cluster.set_endpoints(&endpoints, checker.is_some(), now);
                if let Some(checker) = &mut checker {
                    checker.follow(now);
                }
            }
            () = cluster.outdated() => cluster.rebuild(Instant::now()),
            () = changed(&mut checker) => cluster.rebuild(Instant::now()),
            () = at(next_sweep) => {
                cluster.sweep(Instant::now());
                next_sweep = interval.map(|i| Instant::now() + i);
            }
            () = after(warming) => cluster.rebuild(Instant::now()),
        }
    }
}

/// Sends each new list for as long as there is somebody to take it.
async fn discover(cluster: &Cluster, settings: &Settings, found: mpsc::Sender<Vec<Endpoint>>) {
    let mut discovery = loop {
        match Discovery::of(settings) {
            Ok(discovery) => break discovery,
            Err(error) => {
                tracing::error!(cluster = &*cluster.name, %error, "no endpoints can be discovered; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    while found.send(discovery.next().await).await.is_ok() {}
}

async fn changed(checker: &mut Option<Checker>) {
    match checker {
        Some(checker) => checker.changed().await,
        None => std::future::pending().await,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
