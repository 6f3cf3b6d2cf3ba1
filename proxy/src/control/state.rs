//! What the control socket shares with the workers and with the order of the end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use outrigger_config::control::{Identity, Tether};

use super::{CanaryTargets, tethers::Tethers};

#[derive(Debug)]
pub struct ControlState {
    /// Asked by every worker for every connection.
    pub canary: CanaryTargets,
    instance: String,
    listening: Listening,
    workers: usize,
    mark: Option<u32>,
    started: Instant,
    draining: AtomicBool,
    sessions: AtomicU64,
    tethers: Mutex<Tethers>,
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
            instance,
            tethers: Mutex::new(Tethers::new(slots, listening.highest)?),
            listening,
            workers,
            mark,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
        })
    }

    /// No capture is taken on from now on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends capture and keeps live connections translated: the first step of a graceful stop.
    pub fn release_capture(&self) {
        self.tethers().release(None);
    }

    /// Lets go of everything, once the last connection has ended.
    pub fn release_all(&self) {
        self.tethers().release_all();
    }

    /// Unix time in seconds since which capture is on.
    pub fn captured_since(&self) -> Option<u64> {
        self.tethers().captured_since()
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

    pub(super) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn end_session(&self, session: u64) {
        self.canary.end(session);
        self.tethers().end_session(session);
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
        tethers.hold(session, tether, descriptor)
    }

    pub(super) fn captured(&self, generation: u64) -> Result<(), String> {
        self.tethers().captured(generation)
    }

    pub(super) fn release(&self, generation: Option<u64>) {
        self.tethers().release(generation);
    }

    pub(super) fn drop_idle_anchors(&self, live_connections: usize) {
        self.tethers().drop_idle_anchors(live_connections);
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
