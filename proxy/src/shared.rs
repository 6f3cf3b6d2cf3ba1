//! What all threads of one proxy process share.

use std::{
    collections::HashSet,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

#[cfg(any(test, feature = "uncaptured"))]
use outrigger_config::Settings;

use crate::{
    address::{ClientAddr, ListenerAddr},
    cluster::{Clusters, Registry},
    configuration::Configuration,
    control::ControlState,
    failure::Failure,
    observe::{AccessLog, Metrics, RefusalLog, trace::Tracer},
    rate_limit::RateLimits,
    readiness::Readiness,
    reload::Reloads,
};

#[derive(Debug)]
pub struct Shared {
    pub configuration: Configuration,
    pub(crate) reloads: Reloads,
    /// Random for each process start: tells this run's answers and log lines from another's.
    pub instance: Box<str>,
    /// Where captured connections arrive: to be dialled by nobody.
    pub listeners: Vec<ListenerAddr>,
    pub registry: Registry,
    pub clusters: Arc<Clusters>,
    pub rate_limits: RateLimits,
    pub metrics: Metrics,
    pub refusal_log: RefusalLog,
    pub access_log: Option<AccessLog>,
    pub(crate) tracer: Tracer,
    /// Who holds the capture, and which connections are the gate's probes.
    pub control: Arc<ControlState>,
    pub readiness: Readiness,
    pub own: OwnConnections,
    pub connections: ConnectionLimit,
    /// Whether all that were captured have ended, so that nothing can be on its way to us.
    pub is_deserted: AtomicBool,
    pub started: Instant,
}

impl Shared {
    /// Counts a captured connection that is reset for `failure`, and says so.
    pub fn connection_refused(&self, ClientAddr(client): ClientAddr, failure: Failure) {
        self.metrics.connection_refused(failure);
        self.refusal_log.refused(client, failure);
    }
}

/// The proxy's own upstream connections, by both ends. One that comes back as a client is a loop. The
/// local end alone does not tell: the kernel gives one port to any number of connections, each to
/// another destination, so a client's may be that of one of ours.
#[derive(Debug, Default)]
pub struct OwnConnections(Mutex<HashSet<(SocketAddr, SocketAddr)>>);

impl OwnConnections {
    pub fn insert(&self, local: SocketAddr, peer: SocketAddr) {
        self.lock().insert((local, peer));
    }

    pub fn remove(&self, local: SocketAddr, peer: SocketAddr) {
        self.lock().remove(&(local, peer));
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Whether what `client` dialled `original` with is ours.
    pub fn contains(&self, client: SocketAddr, original: SocketAddr) -> bool {
        self.lock().contains(&(client, original))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<(SocketAddr, SocketAddr)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Captured connections at once, process-wide.
#[derive(Debug)]
pub struct ConnectionLimit {
    live: AtomicUsize,
    max: AtomicUsize,
    /// What the process can hold, whatever is asked for.
    possible: usize,
}

impl ConnectionLimit {
    /// At most what was `wanted`, and never more than is `possible`.
    pub fn new(wanted: Option<NonZeroUsize>, possible: usize) -> Self {
        let limit = Self {
            live: AtomicUsize::new(0),
            max: AtomicUsize::new(possible),
            possible,
        };
        limit.limit(wanted);
        limit
    }

    /// From here on; connections beyond a lower limit live on.
    pub fn limit(&self, wanted: Option<NonZeroUsize>) {
        let possible = self.possible;
        if let Some(wanted) = wanted.filter(|w| w.get() > possible) {
            tracing::warn!(
                "limits.max_connections is {wanted}, but the limit of open files (RLIMIT_NOFILE) carries {possible} connections: {possible} it is; raise LimitNOFILE= or `ulimit -n` for more"
            );
        }
        let max = wanted.map_or(possible, |w| w.get().min(possible));
        self.max.store(max, Ordering::Relaxed);
    }

    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Counts one more connection, to be released when it ends; false, and not counted, when the
    /// limit is reached.
    pub fn admit(&self) -> bool {
        let is_admitted = self.live.fetch_add(1, Ordering::Relaxed) < self.max();
        if !is_admitted {
            self.release();
        }
        is_admitted
    }

    pub fn release(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(any(test, feature = "uncaptured"))]
impl Shared {
    /// A process of `workers` workers that listens nowhere.
    pub(crate) fn uncaptured(workers: usize) -> Self {
        Self {
            configuration: Configuration::new(Settings::default()),
            reloads: Reloads::new().0,
            instance: "test".into(),
            listeners: Vec::new(),
            registry: Registry::new(workers),
            clusters: Arc::default(),
            rate_limits: RateLimits::new(Instant::now()),
            metrics: Metrics::new(workers),
            refusal_log: RefusalLog::default(),
            access_log: None,
            tracer: Tracer::new(workers),
            control: Arc::new(ControlState::uncaptured()),
            readiness: Readiness::default(),
            own: OwnConnections::default(),
            connections: ConnectionLimit::new(None, usize::MAX),
            is_deserted: AtomicBool::new(false),
            started: Instant::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_one_of_our_connections_has_to_another_destination_makes_no_loop() {
        let [local, here, elsewhere] = ["192.0.2.1:40000", "192.0.2.2:80", "192.0.2.3:80"]
            .map(|address| address.parse().expect("an address"));
        let own = OwnConnections::default();
        own.insert(local, here);
        own.insert(local, elsewhere);
        own.remove(local, elsewhere);
        assert!(own.contains(local, here));
        assert!(!own.contains(local, elsewhere));
        assert_eq!(own.count(), 1);
    }
}
