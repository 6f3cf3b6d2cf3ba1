//! The composition root: binds everything first, tells the real addresses, then serves.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use outrigger_config::{AccessLogTarget, Settings};
use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::watch,
};

use crate::{
    accept::{self, BindError},
    address::ListenerAddr,
    admin,
    cluster::Registry,
    observe::{AccessLog, Metrics},
    readiness::Readiness,
    shared::{ConnectionLimit, OwnConnections, Shared},
    signals::{Order, Signals},
    sys,
    worker::{self, Phase, Worker},
};

/// Descriptors kept for what is no captured connection: listeners, admin, logs, control.
const RESERVED_DESCRIPTORS: u64 = 128;

/// How long the end waits for the access log; a stuck pipe does not keep the process.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// A proxy whose sockets are bound and which does not serve yet.
pub struct Bound {
    shared: Arc<Shared>,
    listeners: Vec<Vec<StdListener>>,
    admin: Option<StdListener>,
    before_drain: Vec<Box<dyn FnOnce()>>,
}

/// Binds everything that `settings` ask for; `inherited` sockets take the place of `listen`. To be
/// called before any other thread is there.
///
/// # Errors
/// The first thing that could not be had.
pub fn bind(settings: Settings, inherited: Vec<OwnedFd>) -> Result<Bound, StartError> {
    let workers = settings.workers.map_or_else(default_workers, usize::from);
    sys::limit_malloc_arenas(workers + 1);
    let listeners = if inherited.is_empty() {
        accept::bind(&settings.listen, workers)
    } else {
        accept::inherited(inherited, workers)
    }
    .map_err(StartError::Listen)?;
    let admin = settings.admin.map(bind_admin).transpose()?;
    let instance = random_id()?;
    let access_log =
        AccessLog::open(&settings, workers, &instance).map_err(|source| StartError::AccessLog {
            path: match &settings.access_log.to {
                AccessLogTarget::File(path) => path.clone(),
                AccessLogTarget::Stdout | AccessLogTarget::Off => "stdout".into(),
            },
            source,
        })?;
    let max_connections = settings
        .limits
        .max_connections
        .map_or_else(connections_allowed, usize::from);
    let shared = Arc::new(Shared {
        settings,
        instance,
        listeners: listeners.addresses,
        registry: Registry::new(workers),
        metrics: Metrics::new(workers),
        access_log,
        readiness: Readiness::default(),
        own: OwnConnections::default(),
        connections: ConnectionLimit::new(max_connections),
        started: Instant::now(),
    });
    Ok(Bound {
        shared,
        listeners: listeners.per_worker,
        admin,
        before_drain: Vec::new(),
    })
}

impl Bound {
    /// The addresses really listened on.
    pub fn listeners(&self) -> impl Iterator<Item = SocketAddr> {
        self.shared.listeners.iter().map(|ListenerAddr(a)| *a)
    }

    /// The admin listener's real address.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|a| a.local_addr().ok())
    }

    /// Has `release` run at a graceful stop before anything is turned away: capture ends first.
    pub fn before_drain(&mut self, release: impl FnOnce() + 'static) {
        self.before_drain.push(Box::new(release));
    }

    /// Serves until SIGTERM or SIGINT and the drain that follows.
    ///
    /// # Errors
    /// When a thread or an event loop cannot be had, or every worker has ended by itself.
    pub fn serve(self) -> io::Result<()> {
        let addresses = (self.listed_listeners(), self.admin());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())?;
        runtime.block_on(async {
            // Before the workers, so that no signal ends a process that has begun to accept.
            let signals = Signals::listen()?;
            let (phase, _) = watch::channel(Phase::Serving);
            let workers = start_workers(&self.shared, self.listeners, &phase)?;
            if let Some(admin) = self.admin {
                let admin = TcpListener::from_std(admin)?;
                tokio::task::spawn_local(admin::serve(admin, self.shared.clone()));
            }
            tell_started(&self.shared, &addresses.0, addresses.1);
            let ended = control(&self.shared, phase, signals, self.before_drain).await;
            for worker in workers {
                let _ = worker.join();
            }
            if let Some(log) = &self.shared.access_log {
                log.close(LOG_PATIENCE);
            }
            ended
        })
    }

    fn listed_listeners(&self) -> String {
        let listeners: Vec<_> = self.listeners().map(|a| a.to_string()).collect();
        listeners.join(",")
    }
}

/// Everything that is not a worker's: signals, and the order of the end.
async fn control(
    shared: &Shared,
    phase: watch::Sender<Phase>,
    mut signals: Signals,
    before_drain: Vec<Box<dyn FnOnce()>>,
) -> io::Result<()> {
    tokio::select! {
        () = stop_ordered(&mut signals, shared) => {}
        () = phase.closed() => return Err(io::Error::other("every worker has ended; see the log above")),
    }
    let deadline = shared.settings.timeouts.drain;
    tracing::info!(%deadline, live = shared.connections.live(), "stopping: draining live connections");
    notify(NotifyState::Stopping);
    shared.readiness.start_draining();
    for release in before_drain {
        release();
    }
    phase.send_replace(Phase::Draining);
    tokio::select! {
        () = phase.closed() => tracing::info!("drained"),
        () = tokio::time::sleep(deadline.0) => {
            tracing::warn!(live = shared.connections.live(), "drain deadline passed; cutting what is left");
        }
        () = stop_ordered(&mut signals, shared) => {
            tracing::warn!(live = shared.connections.live(), "second signal; cutting what is left");
        }
    }
    phase.send_replace(Phase::Stopping);
    Ok(())
}

/// Follows every order but the one to stop, which it returns on.
async fn stop_ordered(signals: &mut Signals, shared: &Shared) {
    loop {
        match signals.next().await {
            Order::Stop => return,
            Order::ReopenLogs => match &shared.access_log {
                Some(log) => log.reopen(),
                None => tracing::info!("SIGUSR1: no access log to reopen"),
            },
            Order::None(why) => tracing::info!("{why}"),
        }
    }
}

/// Starts every worker and waits until it has its event loop and watches its listeners.
fn start_workers(
    shared: &Arc<Shared>,
    listeners: Vec<Vec<StdListener>>,
    phase: &watch::Sender<Phase>,
) -> io::Result<Vec<thread::JoinHandle<()>>> {
    let (report, reports) = mpsc::channel();
    let mut workers = Vec::with_capacity(listeners.len());
    for (id, listeners) in listeners.into_iter().enumerate() {
        let (shared, phase, report) = (shared.clone(), phase.subscribe(), report.clone());
        let worker = thread::Builder::new()
            .name(format!("worker-{id}"))
            .spawn(move || run_worker(id, shared, listeners, phase, &report))?;
        workers.push(worker);
    }
    drop(report);
    for _ in &workers {
        reports
            .recv()
            .map_err(|_| io::Error::other("a worker ended while it started"))??;
    }
    Ok(workers)
}

fn run_worker(
    id: usize,
    shared: Arc<Shared>,
    listeners: Vec<StdListener>,
    phase: watch::Receiver<Phase>,
    report: &mpsc::Sender<io::Result<()>>,
) {
    // Nobody listens to reports any more once another worker has failed; then this one ends too.
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => return report.send(Err(error)).unwrap_or_default(),
    };
    runtime.block_on(async {
        let listeners: io::Result<Vec<_>> =
            listeners.into_iter().map(TcpListener::from_std).collect();
        match listeners {
            Ok(listeners) => {
                if report.send(Ok(())).is_ok() {
                    worker::run(Rc::new(Worker::new(id, shared)), listeners, phase).await;
                }
            }
            Err(error) => report.send(Err(error)).unwrap_or_default(),
        }
    });
}

fn tell_started(shared: &Shared, listeners: &str, admin: Option<SocketAddr>) {
    tracing::info!(
        listeners,
        admin = %admin.map_or_else(|| "off".into(), |a| a.to_string()),
        workers = shared.metrics.workers(),
        uid = rustix::process::geteuid().as_raw(),
        version = env!("CARGO_PKG_VERSION"),
        instance = %shared.instance,
        max_connections = shared.connections.max(),
        "serving"
    );
    notify(NotifyState::Ready);
}

/// Tells the service manager, if there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager (NOTIFY_SOCKET)");
    }
}

fn bind_admin(address: SocketAddr) -> Result<StdListener, StartError> {
    let bind = || {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source| StartError::Admin { address, source })
}

fn random_id() -> Result<Box<str>, StartError> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| StartError::Random(error.into()))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)).into())
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

/// Why the proxy could not start.
#[derive(Debug)]
pub enum StartError {
    Listen(BindError),
    Admin {
        address: SocketAddr,
        source: io::Error,
    },
    AccessLog {
        path: PathBuf,
        source: io::Error,
    },
    Random(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => error.fmt(f),
            Self::Admin { address, source } if source.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on the admin address {address}: another process listens there; find it with `ss -ltnp 'sport = :{}'`, stop it, or choose another with --admin (`off` for none)",
                address.port()
            ),
            Self::Admin { address, source } => write!(
                f,
                "cannot listen on the admin address {address}: {source}; choose another with --admin (`off` for none)"
            ),
            Self::AccessLog { path, source } => write!(
                f,
                "cannot open the access log {}: {source}; it must be writable by the proxy's user (uid {}), or set access_log.to to `stdout` or `off`",
                path.display(),
                rustix::process::geteuid().as_raw()
            ),
            Self::Random(source) => write!(f, "no random numbers from the kernel: {source}"),
        }
    }
}

impl std::error::Error for StartError {}
