//! The composition root: binds everything first, tells the real addresses, then serves.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use outrigger_config::{Admin, AdminAddress, Settings, control::socket_name};
use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::{Notify, watch},
};

use crate::{
    accept::{self, BindError, Listeners},
    address::ListenerAddr,
    admin::{AdminListener, Levels, Token},
    cluster::{Keeper, Registry},
    configuration::Configuration,
    control::{Control, Listening},
    fd_store,
    front::Front,
    live::Questions,
    observe::{
        Metrics, RefusalLog, Sinks, Unopened,
        trace::{self, Tracer},
    },
    rate_limit::RateLimits,
    readiness::Readiness,
    reload::{self, Reloads, Requests, Source},
    shared::{ConnectionLimit, OwnConnections, Shared},
    signals::{Order, Signals},
    supervised::{Inherited, Parting, Supervisor, Word},
    sys, watchdog,
    worker::{self, Phase, Worker},
};

/// Descriptors kept for what is no captured connection: listeners, admin, logs, control.
const RESERVED_DESCRIPTORS: u64 = 128;

/// What a start takes besides its workers: standard streams, logs, signals, admin, control, two
/// captures and their anchors. 17 were counted; the rest is for what comes and goes.
const DESCRIPTORS_AT_REST: u64 = 24;

/// An event loop (3), two listeners with their spares (4), a connection with a pipe each way (6),
/// rounded up.
const DESCRIPTORS_OF_A_WORKER: u64 = 16;

/// How long the end waits for the access log; a stuck pipe does not keep the process.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// How long the end waits for a collector to take the last spans.
const EXPORT_PATIENCE: Duration = Duration::from_secs(1);

/// A proxy whose sockets are bound and which does not serve yet.
pub struct Bound {
    shared: Arc<Shared>,
    listeners: Vec<Vec<StdListener>>,
    admin: Option<AdminListener>,
    control: Control,
    requests: Requests,
    source: Option<Source>,
    supervisor: Option<Supervisor>,
}

/// Binds everything that `settings` ask for; `inherited` sockets take the place of these. To be
/// called before any other thread is there.
///
/// # Errors
/// The first thing that could not be had.
pub fn bind(settings: Settings, inherited: Inherited) -> Result<Bound, StartError> {
    let workers = settings.workers.map_or_else(default_workers, usize::from);
    check_descriptor_limit(workers)?;
    // One for each worker, and for the threads of control, clusters and reloads: a worker does not
    // wait for these at a lock of the allocator's.
    sys::limit_malloc_arenas(workers + 3);
    if let Some(supervisor) = &inherited.supervisor {
        supervisor.await_turn().map_err(StartError::Supervisor)?;
    }
    let (mut control, listeners) = bind_as_one_instance(&settings, inherited.listeners, workers)?;
    if inherited.are_stored {
        let all: Vec<_> = listeners.per_worker.iter().flatten().collect();
        fd_store::put(fd_store::LISTENER, &fd_store::borrowed(&all));
    }
    let admin = match inherited.admin {
        Some(socket) => Some(take_admin(socket)?),
        None => settings.admin.as_ref().map(bind_admin).transpose()?,
    };
    let instance = random_id()?;
    let control_state = Listening::of(listeners.per_worker.iter().flatten())
        .and_then(|l| {
            control.state(
                l,
                instance.to_string(),
                workers,
                settings.capture.proxy_mark,
            )
        })
        .map_err(StartError::Control)?;
    for (table, socket) in inherited.anchors {
        if let Err(error) = control_state.keep_anchor(table, socket) {
            tracing::warn!("an anchor of the process before is given up: {error}");
        }
    }
    let connections = ConnectionLimit::new(settings.limits.max_connections, connections_allowed());
    let (reloads, requests) = Reloads::new();
    let shared = Arc::new(Shared {
        configuration: Configuration::new(settings),
        reloads,
        instance,
        listeners: listeners.addresses,
        registry: Registry::default(),
        clusters: Arc::default(),
        rate_limits: RateLimits::new(Instant::now()),
        metrics: Metrics::new(workers),
        refusal_log: RefusalLog::default(),
        log_sinks: Sinks::new(workers),
        questions: Questions::new(workers),
        admin_token: Token::default(),
        drain_asked: Notify::new(),
        levels: OnceLock::new(),
        tracer: Tracer::new(workers),
        control: control_state,
        readiness: Readiness::default(),
        own: OwnConnections::default(),
        connections,
        is_deserted: AtomicBool::new(false),
        started: Instant::now(),
    });
    if shared.configuration.settings().metrics.native_histograms {
        shared.metrics.keep_native_histograms();
    }
    let settings = shared.configuration.settings();
    shared.admin_token.load(settings.admin.as_ref());
    reload::open_logs(&shared, &shared.configuration.snapshot())
        .map_err(|Unopened { path, source }| StartError::AccessLog { path, source })?;
    Ok(Bound {
        shared,
        listeners: listeners.per_worker,
        admin,
        control,
        requests,
        source: None,
        supervisor: inherited.supervisor,
    })
}

impl Bound {
    /// Follows `source`, which the settings have come from.
    #[must_use]
    pub fn reloading(mut self, source: Option<Source>) -> Self {
        self.source = source;
        self
    }

    /// The addresses really listened on.
    pub fn listeners(&self) -> impl Iterator<Item = SocketAddr> {
        self.shared.listeners.iter().map(|ListenerAddr(a)| *a)
    }

    /// The admin listener's real address.
    pub fn admin(&self) -> Option<AdminAddress> {
        self.admin.as_ref().and_then(AdminListener::address)
    }

    /// Lets the admin listener change what this program logs of itself.
    #[must_use]
    pub fn logging(self, levels: Box<dyn Levels>) -> Self {
        let _ = self.shared.levels.set(levels);
        self
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
            let seed = RandomState::new().hash_one(0);
            let clusters = Keeper::start(self.shared.clusters.clone(), seed)?;
            let snapshot = self.shared.configuration.snapshot();
            // What reading the file has taken is not held beside what comes of it.
            sys::return_free_memory();
            reload::take_over(&self.shared, &clusters, snapshot).await?;
            let (phase, _) = watch::channel(Phase::Serving);
            let exporting = tokio::task::spawn_local(trace::export(self.shared.clone()));
            let workers = start_workers(&self.shared, self.listeners, &phase)?;
            let front = Front::open(self.shared.clone(), self.admin, self.control)?;
            tokio::task::spawn_local(reload::run(
                self.source,
                self.shared.clone(),
                self.requests,
                clusters,
            ));
            tell_started(&self.shared, &addresses.0, addresses.1);
            tokio::task::spawn_local(watchdog::feed(self.shared.clone()));
            let ended = obey(&self.shared, phase, signals, self.supervisor, front).await;
            for worker in workers {
                let _ = worker.join();
            }
            self.shared.control.release_all();
            self.shared.tracer.close();
            // A collector that hangs does not keep the process.
            let _ = tokio::time::timeout(EXPORT_PATIENCE, exporting).await;
            self.shared.log_sinks.close(LOG_PATIENCE);
            ended
        })
    }

    fn listed_listeners(&self) -> String {
        let listeners: Vec<_> = self.listeners().map(|a| a.to_string()).collect();
        listeners.join(",")
    }
}

/// Everything that is not a worker's: signals, and the order of the end.
async fn obey(
    shared: &Shared,
    phase: watch::Sender<Phase>,
    mut signals: Signals,
    supervisor: Option<Supervisor>,
    mut front: Front,
) -> io::Result<()> {
    tokio::select! {
        () = stop_ordered(&mut signals, shared) => {}
        gone = supervisor_gone(supervisor, &mut front, &phase) => {
            match gone? {
                Parting::Gone => tracing::warn!("the supervisor is gone; capture ends, and so does this proxy"),
                Parting::Deserted => shared.is_deserted.store(true, Ordering::Relaxed),
            }
        }
        () = phase.closed() => return Err(io::Error::other("every worker has ended; see the log above")),
    }
    let deadline = shared.configuration.settings().timeouts.drain;
    tracing::info!(%deadline, live = shared.connections.live(), "stopping: draining live connections");
    notify(NotifyState::Stopping);
    shared.readiness.start_draining();
    // Capture ends before anything is turned away; from here on new connections go direct.
    shared.control.start_draining();
    let lasting = shared.control.release_capture();
    let drained = async {
        tokio::time::sleep(lasting).await;
        phase.send_replace(Phase::Draining);
        phase.closed().await;
    };
    tokio::select! {
        () = drained => tracing::info!("drained"),
        () = tokio::time::sleep(lasting + deadline.0) => {
            tracing::warn!(live = shared.connections.live(), "drain deadline passed; cutting what is left");
        }
        () = stop_ordered(&mut signals, shared) => {
            tracing::warn!(live = shared.connections.live(), "second signal; cutting what is left");
        }
    }
    phase.send_replace(Phase::Stopping);
    Ok(())
}

/// Does what the supervisor says, until it needs this proxy no more; never returns where there is none.
async fn supervisor_gone(
    supervisor: Option<Supervisor>,
    front: &mut Front,
    phase: &watch::Sender<Phase>,
) -> io::Result<Parting> {
    let Some(supervisor) = supervisor else {
        return std::future::pending().await;
    };
    let mut link = supervisor.serve().await?;
    loop {
        match link.next().await {
            None => return Ok(Parting::Gone),
            Some(Word::Desert) => return Ok(Parting::Deserted),
            Some(Word::Yield) => front.give_way(phase).await,
            Some(Word::Resume) => front.resume(phase).await?,
            Some(Word::Release) => front.release(),
        }
        link.done().await;
    }
}

/// Follows every order but the one to stop, which it returns on.
async fn stop_ordered(signals: &mut Signals, shared: &Shared) {
    loop {
        let order = tokio::select! {
            order = signals.next() => order,
            () = shared.drain_asked.notified() => Order::Stop,
        };
        match order {
            Order::Stop => return,
            Order::ReopenLogs => {
                if shared.log_sinks.reopen() == 0 {
                    tracing::info!("SIGUSR1: no access log to reopen");
                }
            }
            Order::Reload => shared.reloads.ask(),
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

fn tell_started(shared: &Shared, listeners: &str, admin: Option<AdminAddress>) {
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
pub(crate) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager (NOTIFY_SOCKET)");
    }
}

/// The control socket's name is the lock that keeps two instances off one port: without it both
/// would join one reuseport group and share the traffic. So it comes before the listeners, except
/// where these alone know the port.
fn bind_as_one_instance(
    settings: &Settings,
    inherited: Vec<OwnedFd>,
    workers: usize,
) -> Result<(Control, Listeners), StartError> {
    let lock = |port| Control::bind(port).map_err(|source| StartError::Instance { port, source });
    if inherited.is_empty() && settings.port() != 0 {
        let control = lock(settings.port())?;
        let listeners = accept::bind(&settings.listen, workers).map_err(StartError::Listen)?;
        return Ok((control, listeners));
    }
    let listeners = if inherited.is_empty() {
        accept::bind(&settings.listen, workers)
    } else {
        accept::inherited(inherited, workers)
    }
    .map_err(StartError::Listen)?;
    let port = listeners.addresses.first().map_or(0, |a| a.0.port());
    Ok((lock(port)?, listeners))
}

fn bind_admin(admin: &Admin) -> Result<AdminListener, StartError> {
    AdminListener::bind(admin).map_err(|source| StartError::Admin {
        address: admin.listen.clone(),
        source,
    })
}

fn take_admin(socket: OwnedFd) -> Result<AdminListener, StartError> {
    AdminListener::adopt(socket).map_err(|source| {
        StartError::Listen(BindError::Inherited {
            index: 0,
            reason: format!("as the admin listener: {source}"),
        })
    })
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

/// Without this, what runs out of descriptors first decides how the start fails, and that may be a
/// library that panics.
fn check_descriptor_limit(workers: usize) -> Result<(), StartError> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let least = DESCRIPTORS_AT_REST + workers as u64 * DESCRIPTORS_OF_A_WORKER;
    match limit {
        Some(limit) if limit < least => Err(StartError::DescriptorLimit {
            limit,
            least,
            workers,
        }),
        _ => Ok(()),
    }
}

/// Two descriptors for each connection, within the process's limit: beyond that a connection would
/// hang in the queue instead of being refused.
fn connections_allowed() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.unwrap_or(1 << 20);
    let descriptors = limit - RESERVED_DESCRIPTORS.min(limit / 2);
    usize::try_from(descriptors / 2)
        .unwrap_or(usize::MAX)
        .max(1)
}

/// Why the proxy could not start.
#[derive(Debug)]
pub enum StartError {
    /// Too few descriptors to begin with.
    DescriptorLimit {
        limit: u64,
        least: u64,
        workers: usize,
    },
    Listen(BindError),
    Admin {
        address: AdminAddress,
        source: io::Error,
    },
    AccessLog {
        path: PathBuf,
        source: io::Error,
    },
    Random(io::Error),
    /// The control socket's name is taken, or cannot be had.
    Instance {
        port: u16,
        source: io::Error,
    },
    Control(io::Error),
    /// The supervisor has gone, or has no use for this proxy.
    Supervisor(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DescriptorLimit {
                limit,
                least,
                workers,
            } => write!(
                f,
                "the limit of open files (RLIMIT_NOFILE) is {limit}, and {workers} workers with their first connections take {least}: raise LimitNOFILE= or `ulimit -n`, or ask for fewer --workers"
            ),
            Self::Listen(error) => error.fmt(f),
            Self::Admin { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                let how = match address {
                    AdminAddress::Tcp(address) => format!("ss -ltnp 'sport = :{}'", address.port()),
                    AdminAddress::Unix(path) => format!("ss -lxp src {}", path.display()),
                };
                write!(
                    f,
                    "cannot listen on the admin address {address}: another process listens there; find it with `{how}`, stop it, or choose another with --admin (`off` for none)"
                )
            }
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
            Self::Instance { port, source } if source.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "another instance runs on port {port} in this network namespace (it holds the control socket @{}); find it with `ss -xlp | grep outrigger`, stop it, or choose another port with --listen",
                socket_name(*port)
            ),
            Self::Instance { port, source } => {
                write!(
                    f,
                    "cannot bind the control socket @{}: {source}",
                    socket_name(*port)
                )
            }
            Self::Control(source) => write!(f, "cannot prepare the control socket: {source}"),
            Self::Supervisor(source) => {
                write!(f, "the supervisor does not want this proxy: {source}")
            }
            Self::Random(source) => write!(f, "no random numbers from the kernel: {source}"),
        }
    }
}

impl std::error::Error for StartError {}
