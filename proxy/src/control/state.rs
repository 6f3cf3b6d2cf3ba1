//! What the control socket shares with the workers and with the order of the end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use outrigger_config::{
    Scope,
    control::{Identity, RulesTrouble, Status, Tether, TetherKind, Watch, Window},
};
use tokio::{net::TcpStream, sync::Notify};

use super::{
    CanaryTargets,
    application::Applications,
    heartbeat::{Heartbeat, Held, Obstacle},
    lapses::{Lapse, Lapses},
    room::{Level, Room},
    tethers::{Tethers, is_netfilter_socket},
    watch::{WatchFigures, Watches},
};
use crate::pulse::Pulse;

/// For each step of the first round, on a host that is short of CPU; the installer waits 3 s for all.
const FIRST_ROUND: Duration = Duration::from_millis(800);

/// Its rules ask connection tracking, and keep it at work here.
const STAYS_CLOSED: &str = "; destinations in capture.fail_closed are refused meanwhile, and their table keeps connections tracked here: once none fits in, every new connection fails, until remove-rules ends that table too";

#[derive(Debug)]
pub struct ControlState {
    /// Asked by every worker for every connection.
    pub canary: CanaryTargets,
    /// Answered by every worker.
    pub pulse: Pulse,
    pub(super) heartbeat: Heartbeat,
    instance: String,
    listening: Listening,
    workers: usize,
    mark: Option<u32>,
    started: Instant,
    draining: AtomicBool,
    sessions: AtomicU64,
    tethers: Mutex<Tethers>,
    lapses: Mutex<Lapses>,
    /// What kept the latest beat from renewing the lease.
    obstacle: Mutex<Option<Told>>,
    captures_changed: Notify,
    watches: Watches,
    applications: Applications,
    /// Why this proxy has let go of the latest capture by itself.
    given_up: Mutex<Option<String>>,
    times_given_up: AtomicU64,
}

/// An obstacle, as it is told.
#[derive(Clone, Debug)]
struct Told {
    text: String,
    hung_worker: Option<usize>,
}

/// How well the capture has been kept up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CaptureFigures {
    /// Whether new connections are redirected now.
    pub is_active: bool,
    /// Unix time in seconds since which a capture is held.
    pub since: Option<u64>,
    /// How often the lease ran out, and for how long in all.
    pub lapses: u64,
    pub lapsed: Duration,
    /// How often a capture was let go because connection tracking was nearly full.
    pub given_up: u64,
}

/// The listening sockets, as the gate will look for them.
#[derive(Debug)]
pub struct Listening {
    addresses: Vec<SocketAddr>,
    inodes: Vec<u64>,
    highest: RawFd,
}

impl Listening {
    /// # Errors
    /// When a socket does not tell its address.
    pub fn of<'a>(sockets: impl IntoIterator<Item = &'a TcpListener>) -> io::Result<Self> {
        let mut listening = Self {
            addresses: Vec::new(),
            inodes: Vec::new(),
            highest: 0,
        };
        for socket in sockets {
            listening.addresses.push(socket.local_addr()?);
            listening.inodes.push(rustix::fs::fstat(socket)?.st_ino);
            listening.highest = listening.highest.max(socket.as_raw_fd());
        }
        listening.inodes.sort_unstable();
        listening.inodes.dedup();
        listening.addresses.sort_unstable();
        listening.addresses.dedup();
        Ok(listening)
    }
}

impl ControlState {
    pub(super) fn new(
        slots: Vec<OwnedFd>,
        listening: Listening,
        instance: String,
        workers: usize,
        mark: Option<u32>,
    ) -> io::Result<Self> {
        Ok(Self {
            canary: CanaryTargets::new(instance.clone()),
            pulse: Pulse::new(workers),
            heartbeat: Heartbeat::new(instance.clone(), mark),
            instance,
            tethers: Mutex::new(Tethers::new(slots, listening.highest)?),
            listening,
            workers,
            mark,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            lapses: Mutex::default(),
            obstacle: Mutex::default(),
            captures_changed: Notify::new(),
            watches: Watches::default(),
            applications: Applications::default(),
            given_up: Mutex::default(),
            times_given_up: AtomicU64::new(0),
        })
    }

    /// Tells a probe of [`is_probe`](super::is_probe) who answers.
    pub async fn answer_probe(&self, stream: TcpStream) {
        self.heartbeat.answer_probe(stream).await;
    }

    /// No capture is taken on from now on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends capture and keeps live connections translated: the first step of a graceful stop. Returns
    /// for how long rules may redirect nevertheless.
    pub fn release_capture(&self) -> Duration {
        let mut tethers = self.tethers();
        let lasting = tethers.outliving();
        tethers.release(None);
        self.keep_watches_of(&tethers);
        lasting
    }

    /// Lets go of everything, once the last connection has ended.
    pub fn release_all(&self) {
        self.tethers().release_all();
    }

    pub fn figures(&self) -> CaptureFigures {
        let (since, has_leases) = {
            let tethers = self.tethers();
            (tethers.captured_since(), !tethers.leases(None).is_empty())
        };
        let now = Instant::now();
        let lapses = self.lapses();
        CaptureFigures {
            is_active: since.is_some() && (!has_leases || lapses.is_active(now)),
            since,
            lapses: lapses.count(now),
            lapsed: lapses.total(now),
            given_up: self.times_given_up.load(Ordering::Relaxed),
        }
    }

    pub(super) fn identity(&self) -> Identity {
        let tethers = self.tethers();
        Identity {
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            workers: self.workers,
            listeners: self.listening.addresses.clone(),
            listener_inodes: self.listening.inodes.clone(),
            mark: self.mark,
            uptime_secs: self.started.elapsed().as_secs(),
            draining: self.draining.load(Ordering::Relaxed),
            tethers: tethers.list(),
            captured_since: tethers.captured_since(),
        }
    }

    pub(super) fn status(&self) -> Status {
        let figures = self.figures();
        let obstacle = self.obstacle().clone();
        let obstacle = obstacle.filter(|_| figures.since.is_some());
        Status {
            proxy: self.identity(),
            is_captured: figures.is_active,
            lapses: figures.lapses,
            lapsed_secs: figures.lapsed.as_secs_f64(),
            windows: self.windows(),
            hung_worker: obstacle.as_ref().and_then(|told| told.hung_worker),
            obstacle: obstacle.map(|told| told.text),
            bypasses: self.watches.bypasses(),
            drift: self.watches.drift(),
            given_up: self.given_up().clone(),
        }
    }

    fn windows(&self) -> Vec<Window> {
        let (now, here) = (Instant::now(), SystemTime::now());
        let recent = self.lapses().recent(now);
        let window = |lapse: &Lapse| {
            let ago = now.saturating_duration_since(lapse.began);
            let at = here.checked_sub(ago)?.duration_since(UNIX_EPOCH).ok()?;
            Some(Window {
                at: at.as_secs(),
                secs: lapse.length.unwrap_or(ago).as_secs_f64(),
                is_open: lapse.length.is_none(),
            })
        };
        recent.iter().filter_map(window).collect()
    }

    pub(super) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn end_session(&self, session: u64) {
        self.canary.end(session);
        let mut tethers = self.tethers();
        tethers.end_session(session);
        self.keep_watches_of(&tethers);
    }

    pub(super) fn hold(
        &self,
        session: u64,
        tether: Tether,
        descriptor: OwnedFd,
    ) -> Result<(), String> {
        // Under the lock, so that a stop that has begun finds every tether or none comes after it.
        let mut tethers = self.tethers();
        if self.draining.load(Ordering::Relaxed) {
            return Err("this proxy is shutting down".into());
        }
        if tether.kind == TetherKind::Capture
            && let Some(room) = Room::look()
            && room.level() > Level::Ample
        {
            return Err(room.to_string());
        }
        tethers.hold(session, tether, descriptor)
    }

    /// Takes on an anchor of an earlier process, which keeps what is queued for it translated.
    ///
    /// # Errors
    /// When it is none.
    pub fn keep_anchor(&self, table: String, socket: OwnedFd) -> Result<(), String> {
        let generation = table.rsplit_once("_g").and_then(|(_, g)| g.parse().ok());
        let Some(generation) = generation else {
            return Err(format!("{table} is the name of no anchor"));
        };
        let tether = Tether {
            kind: TetherKind::Anchor,
            table,
            generation,
            fingerprint: String::new(),
            lease: None,
            outlives: false,
            scope: Scope::default(),
            cgroup_id: None,
        };
        let session = self.next_session();
        self.hold(session, tether, socket)
    }

    pub(super) fn watch(
        &self,
        generation: u64,
        watch: Watch,
        socket: OwnedFd,
    ) -> Result<(), String> {
        if !self.tethers().holds_capture(generation) {
            return Err(format!(
                "no capture of generation {generation} is held here"
            ));
        }
        if watch == Watch::Application {
            return self.applications.hold(generation, socket);
        }
        if !is_netfilter_socket(&socket) {
            return Err("the descriptor is not a netfilter netlink socket".into());
        }
        self.watches.begin(generation, watch, socket)
    }

    /// Sees whether the rules do with applications' connections as they do with this proxy's own. What
    /// keeps those from coming back is told already.
    pub(super) async fn dial_as_applications(&self) {
        for socket in self.applications.sockets() {
            if self.obstacle().is_some() {
                return;
            }
            let leases = self.tethers().leases(None);
            self.applications
                .dial(socket, &leases, &self.heartbeat, &self.pulse)
                .await;
            if self.obstacle().is_none() && self.tethers().captured_since().is_some() {
                self.note_rules(None);
            }
        }
    }

    /// Tells what speaks against the rules: the beat's `obstacle`, or what applications met.
    fn note_rules(&self, obstacle: Option<(RulesTrouble, &str)>) {
        let met = self.applications.trouble();
        let met = met.as_deref().map(|why| (RulesTrouble::Gone, why));
        self.watches.note_rules(obstacle.or(met));
    }

    pub fn watch_figures(&self) -> WatchFigures {
        self.watches.figures()
    }

    /// Lets go of what needs connection tracking while there is room left for everybody else's
    /// connections; to be called several times a second.
    pub(super) fn leave_room(&self, look: impl FnOnce() -> Option<Room>) {
        let mut tethers = self.tethers();
        if tethers.is_empty() {
            return;
        }
        let Some(room) = look() else { return };
        let level = room.level();
        if level >= Level::NearlyFull && tethers.has_capture() {
            let is_closed = tethers.has_closed();
            tethers.release(None);
            self.keep_watches_of(&tethers);
            self.times_given_up.fetch_add(1, Ordering::Relaxed);
            let mut reason = room.to_string();
            if is_closed {
                reason += STAYS_CLOSED;
            }
            tracing::error!(
                entries = room.entries,
                most = room.most,
                "capture is given up, new connections go direct until install-rules is run again: {reason}"
            );
            *self.given_up() = Some(reason);
        }
        if level == Level::Full && tethers.has_anchor() {
            tethers.release_all();
            tracing::error!("live captured connections are given up too: {room}");
        }
    }

    /// Counts a capture as in force once its first beat has been seen to work.
    pub(super) async fn captured(&self, generation: u64) -> Result<(), String> {
        let leases = self.tethers().leases(Some(generation));
        let began = match leases.iter().map(Held::length).min() {
            Some(shortest) => {
                let round = self.heartbeat.round(&self.pulse, &leases, FIRST_ROUND);
                let began = round.await.map_err(|obstacle| obstacle.to_string())?;
                Some((began, shortest))
            }
            None => None,
        };
        self.tethers().captured(generation)?;
        *self.given_up() = None;
        if let Some((began, shortest)) = began {
            self.lapses().renewed(began, shortest);
        }
        self.captures_changed.notify_one();
        Ok(())
    }

    pub(super) fn leases(&self) -> Vec<Held> {
        let leases = self.tethers().leases(None);
        if leases.is_empty() {
            self.lapses().end(Instant::now());
        }
        leases
    }

    pub(super) async fn captures_changed(&self) {
        self.captures_changed.notified().await;
    }

    /// Keeps and tells what a round of beats came to.
    pub(super) fn note(&self, lease: Duration, round: Result<Instant, Obstacle>) {
        let told = round.as_ref().err().map(|obstacle| Told {
            text: obstacle.to_string(),
            hung_worker: match obstacle {
                Obstacle::SilentWorker(worker) => Some(*worker),
                _ => None,
            },
        });
        let (is_captured, owned) = {
            let tethers = self.tethers();
            (tethers.captured_since().is_some(), tethers.own_the_rules())
        };
        if is_captured {
            let trouble = round.as_ref().err().and_then(|of| of.trouble(owned));
            let text = told.as_ref().map(|told| told.text.as_str());
            self.note_rules(trouble.zip(text));
        }
        *self.obstacle() = told;
        let mut lapses = self.lapses();
        match round {
            Ok(began) => {
                if let Some(window) = lapses.renewed(began, lease) {
                    let seconds = window.as_secs_f64();
                    tracing::warn!(
                        "capture is on again; for {seconds:.1} s new connections went direct"
                    );
                }
            }
            // Meanwhile let go of on purpose.
            Err(_) if self.tethers().captured_since().is_none() => {}
            Err(obstacle) => {
                if lapses.has_lapsed(Instant::now()) {
                    tracing::error!("capture has lapsed, new connections go direct: {obstacle}");
                } else {
                    tracing::debug!("no beat: {obstacle}");
                }
            }
        }
    }

    pub(super) fn release(&self, generation: Option<u64>) {
        let mut tethers = self.tethers();
        tethers.release(generation);
        self.keep_watches_of(&tethers);
    }

    fn keep_watches_of(&self, tethers: &Tethers) {
        self.watches
            .keep(|generation| tethers.holds_capture(generation));
        self.applications
            .keep(|generation| tethers.holds_capture(generation));
        if !tethers.has_capture() {
            self.watches.forget_rules();
        }
    }

    pub(super) fn drop_idle_anchors(&self, live_connections: usize) {
        self.tethers().drop_idle_anchors(live_connections);
    }

    fn given_up(&self) -> MutexGuard<'_, Option<String>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn obstacle(&self) -> MutexGuard<'_, Option<Told>> {
        self.obstacle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lapses(&self) -> MutexGuard<'_, Lapses> {
        self.lapses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tethers(&self) -> MutexGuard<'_, Tethers> {
        self.tethers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(any(test, feature = "uncaptured"))]
impl ControlState {
    /// The state of a control socket that nobody listens on.
    pub(crate) fn uncaptured() -> Self {
        let listening = Listening::of([]).expect("no socket to fail");
        Self::new(Vec::new(), listening, "test".into(), 1, None).expect("a descriptor")
    }
}
