//! All clusters of the process, and what keeps each up to date: a task for each cluster that changes
//! by itself, which discovers, checks, sweeps and publishes host sets.

use std::{
    collections::HashMap,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use outrigger_config::{Cluster as Settings, Endpoint, Locality};
use tokio::{sync::mpsc, task::AbortHandle};

use super::{
    Cluster, Rng,
    discovery::{Discovery, Sources},
    health::Checker,
};

/// How often weights are worked out anew while an endpoint starts slowly: steps of 1 % of the
/// default window.
const WARMING_STEP: Duration = Duration::from_millis(300);

/// After a source that could not even be begun with (no `resolv.conf`, no directory).
const RETRY: Duration = Duration::from_secs(5);

/// Every cluster by name, for whoever sends requests or answers on the admin listener.
#[derive(Debug, Default)]
pub struct Clusters(ArcSwap<Published>);

#[derive(Debug, Default)]
struct Published {
    present: ByName,
    /// No longer in the configuration, but in that of requests which began before.
    leaving: ByName,
    defaults: Option<Arc<Cluster>>,
}

type ByName = HashMap<Arc<str>, Arc<Cluster>, foldhash::fast::RandomState>;

impl Clusters {
    /// Also one that a configuration of a moment ago still names.
    pub fn find(&self, name: &str) -> Option<Arc<Cluster>> {
        let published = self.0.load();
        let found = published.present.get(name);
        found.or_else(|| published.leaving.get(name)).cloned()
    }

    /// The policy for destinations without a cluster, if there is any: ask it for the destination's
    /// own cluster ([`Cluster::at`]).
    pub fn defaults(&self) -> Option<Arc<Cluster>> {
        self.0.load().defaults.clone()
    }

    /// Clusters of a file that need no looking after.
    #[cfg(test)]
    pub(crate) fn fill(&self, text: &str) {
        let settings = outrigger_config::parse(text).expect("good settings");
        let now = Instant::now();
        let clusters = settings.clusters.into_iter().map(|settings| {
            let endpoints = settings.endpoints.clone();
            let cluster = Cluster::new(settings.into(), Locality::default(), 1, now);
            cluster.set_endpoints(&endpoints, false, now);
            cluster.discovery.succeeded(now);
            (cluster.name.clone(), cluster)
        });
        self.0.store(Arc::new(Published {
            present: clusters.collect(),
            ..Published::default()
        }));
    }

    /// All of them by name, `defaults` first.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let published = self.0.load();
        let mut all: Vec<_> = published.present.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.splice(..0, published.defaults.clone());
        all
    }
}

/// Starts, changes and ends clusters; lives on one thread, inside its runtime.
#[derive(Debug)]
pub struct Manager {
    clusters: Arc<Clusters>,
    running: HashMap<Arc<str>, Running>,
    leaving: ByName,
    defaults: Option<Running>,
    sources: Rc<Sources>,
    rng: Rng,
}

#[derive(Debug)]
struct Running {
    settings: Arc<Settings>,
    locality: Locality,
    cluster: Arc<Cluster>,
    /// None where nothing changes by itself.
    task: Option<AbortHandle>,
}

impl Manager {
    pub fn new(clusters: Arc<Clusters>, seed: u64) -> Self {
        Self {
            clusters,
            running: HashMap::new(),
            leaving: ByName::default(),
            defaults: None,
            sources: Rc::default(),
            rng: Rng::new(seed),
        }
    }

    /// Makes the clusters those of `wanted`, and `defaults` the policy of destinations without one.
    /// A cluster whose settings are the same goes on undisturbed; one whose settings changed keeps
    /// its endpoints' state and what is under way; one that is gone can be found until
    /// [`Self::forget_gone`].
    pub fn apply(
        &mut self,
        wanted: &[Arc<Settings>],
        defaults: Option<Arc<Settings>>,
        locality: &Locality,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.running);
        for settings in wanted {
            let running = before.remove(settings.name.as_str());
            let running = self.next(running, settings, locality, now);
            self.running.insert(running.cluster.name.clone(), running);
        }
        self.leaving = before
            .into_values()
            .map(|gone| (gone.cluster.name.clone(), gone.cluster.clone()))
            .collect();
        let before = self.defaults.take();
        self.defaults = defaults.map(|settings| self.next(before, &settings, locality, now));
        self.publish();
    }

    /// Lets go of the clusters that are no longer in the configuration.
    pub fn forget_gone(&mut self) {
        if !self.leaving.is_empty() {
            self.leaving.clear();
            self.publish();
        }
    }

    fn next(
        &self,
        before: Option<Running>,
        settings: &Arc<Settings>,
        locality: &Locality,
        now: Instant,
    ) -> Running {
        let cluster = match before {
            Some(same)
                if same.locality == *locality
                    && (Arc::ptr_eq(&same.settings, settings) || same.settings == *settings) =>
            {
                return same;
            }
            Some(changed) => {
                let cluster = changed.cluster.clone();
                cluster.update(settings.clone(), locality.clone(), now);
                cluster
            }
            None => self.returning(settings, locality, now),
        };
        // Known at once: a request that comes first must not find the cluster empty.
        if settings.dns.is_none() && settings.file.is_none() {
            cluster.set_endpoints(&settings.endpoints, settings.health_check.is_some(), now);
        }
        let task = changes_by_itself(settings).then(|| {
            let (sources, seed) = (self.sources.clone(), self.rng.next());
            let keep = keep(cluster.clone(), settings.clone(), sources, seed);
            tokio::task::spawn_local(keep).abort_handle()
        });
        Running {
            settings: settings.clone(),
            locality: locality.clone(),
            cluster,
            task,
        }
    }

    /// The same cluster as before, if it has not been gone for long.
    fn returning(
        &self,
        settings: &Arc<Settings>,
        locality: &Locality,
        now: Instant,
    ) -> Arc<Cluster> {
        let gone = self.leaving.get(settings.name.as_str());
        // One for original destinations is built in another way.
        let is_alike = |c: &&Arc<Cluster>| {
            c.settings().original_destination.is_some() == settings.original_destination.is_some()
        };
        match gone.filter(is_alike) {
            Some(cluster) => {
                cluster.update(settings.clone(), locality.clone(), now);
                cluster.clone()
            }
            None => Cluster::new(settings.clone(), locality.clone(), self.rng.next(), now),
        }
    }

    fn publish(&self) {
        let present = self.running.values().map(|r| &r.cluster);
        self.clusters.0.store(Arc::new(Published {
            present: present.map(|c| (c.name.clone(), c.clone())).collect(),
            leaving: self.leaving.clone(),
            defaults: self.defaults.as_ref().map(|r| r.cluster.clone()),
        }));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn changes_by_itself(settings: &Settings) -> bool {
    settings.dns.is_some()
        || settings.file.is_some()
        || settings.health_check.is_some()
        || settings.outlier_detection.is_some()
        || settings.slow_start.is_some()
}

/// Keeps one cluster up to date for as long as it is there.
async fn keep(cluster: Arc<Cluster>, settings: Arc<Settings>, sources: Rc<Sources>, seed: u64) {
    // A future of its own within this task: what else happens must not begin a lookup anew.
    let (found, mut lists) = mpsc::channel(1);
    let mut discovering = pin!(discover(&cluster, &settings, &sources, found));
    let mut checker = settings.health_check.clone().map(|check| {
        let mut checker = Box::new(Checker::new(cluster.clone(), check, seed));
        checker.follow(Instant::now());
        checker
    });
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

/// Sends each new list for as long as there is somebody to take it; without a source there is none.
async fn discover(
    cluster: &Cluster,
    settings: &Settings,
    sources: &Sources,
    found: mpsc::Sender<Vec<Endpoint>>,
) {
    let mut discovery = loop {
        match Discovery::of(settings, sources, &cluster.discovery) {
            Ok(Some(discovery)) => break discovery,
            Ok(None) => return std::future::pending().await,
            Err(error) => {
                cluster.discovery.failed(&error);
                tracing::error!(cluster = &*cluster.name, %error, "no endpoints can be discovered; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    while found.send(discovery.next().await).await.is_ok() {}
}

async fn changed(checker: &mut Option<Box<Checker>>) {
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
