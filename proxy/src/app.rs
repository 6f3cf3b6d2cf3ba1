//! The composition root: binds everything first, tells the real addresses, then serves.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use outrigger_config::Settings;
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    accept::{self, BindError},
    address::ListenerAddr,
    cluster::Registry,
    observe::Metrics,
    shared::{ConnectionLimit, OwnConnections, Shared},
    worker::{self, Phase, Worker},
};

/// Descriptors kept for what is no captured connection: listeners, admin, logs, control.
const RESERVED_DESCRIPTORS: u64 = 64;

/// A proxy whose sockets are bound and which does not serve yet.
#[derive(Debug)]
pub struct Bound {
    shared: Arc<Shared>,
    listeners: Vec<Vec<StdListener>>,
}

/// Binds everything that `settings` ask for; `inherited` sockets take the place of `listen`.
///
/// # Errors
/// The first listener that could not be had.
pub fn bind(settings: Settings, inherited: Vec<OwnedFd>) -> Result<Bound, BindError> {
    let workers = settings.workers.map_or_else(default_workers, usize::from);
    let listeners = if inherited.is_empty() {
        accept::bind(&settings.listen, workers)?
    } else {
        accept::inherited(inherited, workers)?
    };
    let max_connections = settings
        .limits
        .max_connections
        .map_or_else(connections_allowed, usize::from);
    let shared = Arc::new(Shared {
        settings,
        listeners: listeners.addresses,
        registry: Registry::default(),
        metrics: Metrics::default(),
        own: OwnConnections::default(),
        connections: ConnectionLimit::new(max_connections),
        started: Instant::now(),
    });
    Ok(Bound {
        shared,
        listeners: listeners.per_worker,
    })
}

impl Bound {
    /// The addresses really listened on.
    pub fn listeners(&self) -> impl Iterator<Item = SocketAddr> {
        self.shared.listeners.iter().map(|ListenerAddr(a)| *a)
    }

    /// Serves until SIGTERM or SIGINT and the drain that follows.
    ///
    /// # Errors
    /// When a thread or an event loop cannot be had.
    pub fn serve(self) -> io::Result<()> {
        let drain_limit = self.shared.settings.timeouts.drain.0;
        let (phase, _) = watch::channel(Phase::Serving);
        let workers = self
            .listeners
            .into_iter()
            .enumerate()
            .map(|(id, listeners)| {
                spawn_worker(id, self.shared.clone(), listeners, phase.subscribe())
            })
            .collect::<io::Result<Vec<_>>>()?;
        Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(control_thread(phase, drain_limit))?;
        for worker in workers {
            let _ = worker.join();
        }
        Ok(())
    }
}

/// Everything that is not a worker's: signals, and the order of the end.
async fn control_thread(phase: watch::Sender<Phase>, drain_limit: Duration) -> io::Result<()> {
    let mut stop = StopSignals::new()?;
    stop.received().await;
    tracing::info!(deadline = ?drain_limit, "stopping: draining live connections");
    phase.send_replace(Phase::Draining);
    tokio::select! {
        () = phase.closed() => tracing::info!("drained"),
        () = tokio::time::sleep(drain_limit) => tracing::warn!("drain deadline passed; cutting what is left"),
        () = stop.received() => tracing::warn!("second signal; cutting what is left"),
    }
    phase.send_replace(Phase::Stopping);
    Ok(())
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn spawn_worker(
    id: usize,
    shared: Arc<Shared>,
    listeners: Vec<StdListener>,
    phase: watch::Receiver<Phase>,
) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name(format!("worker-{id}"))
        .spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    match listeners.into_iter().map(TcpListener::from_std).collect() {
                        Ok(listeners) => {
                            worker::run(Rc::new(Worker::new(id, shared)), listeners, phase).await
                        }
                        Err(error) => {
                            tracing::error!(%error, worker = id, "cannot watch the listeners")
                        }
                    }
                }),
                Err(error) => tracing::error!(%error, worker = id, "cannot make an event loop"),
            }
        })
}

/// The CPUs allowed to this process, a cgroup quota counted.
fn default_workers() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Two descriptors for each connection, within the process's limit.
fn connections_allowed() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let descriptors = limit
        .unwrap_or(1 << 20)
        .saturating_sub(RESERVED_DESCRIPTORS);
    usize::try_from(descriptors / 2)
        .unwrap_or(usize::MAX)
        .max(1)
}
