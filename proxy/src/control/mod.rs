//! The control socket: tells who this proxy is, answers the gate's probes, and holds what binds
//! capture to the life of this process.
//!
//! An abstract UNIX socket named by the listen port. Binding it is also the lock that keeps two
//! instances off one port, so it comes before the listeners.

mod application;
mod canary;
mod heartbeat;
mod lapses;
mod lines;
mod room;
mod session;
mod state;
mod tethers;
mod watch;

use std::{
    fs::File,
    future::Future,
    io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener as StdUnixListener},
    },
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use outrigger_config::control::{Reply, Request, socket_name};
use rustix::net::{SendFlags, send};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time,
};

use crate::failure::Failure;
use room::Room;
use session::Session;

pub use canary::CanaryTargets;
pub use heartbeat::is_probe;
pub use state::{CaptureFigures, ControlState, Listening};
pub(crate) use tethers::is_netfilter_socket;
pub use watch::WatchFigures;

/// Control connections at once: an install, a removal and a few that only look.
const MAX_SESSIONS: usize = 16;
/// Descriptors kept low for anchors: the one in force, its successor, and two of installs that
/// were broken off and whose connections have not ended yet.
const ANCHOR_SLOTS: usize = 4;
/// How often an anchor without a capture is looked at.
const ANCHOR_CHECK: Duration = Duration::from_secs(1);

/// How often connection tracking is looked at: a burst of 30,000 connections a second takes longer to
/// fill a twentieth of the usual table of 262,144.
const ROOM_CHECK: Duration = Duration::from_millis(200);

/// What the control socket needs from the rest of the process.
pub struct Hooks {
    /// Dials as the data plane dials, with the same socket options; the connection is closed at
    /// once.
    pub dial: Dial,
    /// Captured connections that still live.
    pub live_connections: Box<dyn Fn() -> usize + Send + Sync>,
    /// What the data plane tells of itself; none: it does not tell that.
    pub tell: Tell,
}

pub type Tell = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

pub type Dial = Box<dyn Fn(SocketAddr) -> Dialling + Send + Sync>;
pub type Dialling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// The bound control socket, not served yet.
#[derive(Debug)]
pub struct Control {
    listener: StdUnixListener,
    slots: Vec<OwnedFd>,
}

impl Control {
    /// Takes the name of `port`, and reserves the low descriptors that anchors will move to. To be
    /// called before the listeners are bound, so that theirs are higher.
    ///
    /// # Errors
    /// `AddrInUse` when another instance lives in this network namespace.
    pub fn bind(port: u16) -> io::Result<Self> {
        let name = UnixAddr::from_abstract_name(socket_name(port))?;
        let listener = StdUnixListener::bind_addr(&name)?;
        listener.set_nonblocking(true)?;
        let slots = (0..ANCHOR_SLOTS)
            .map(|_| Ok(File::open("/dev/null")?.into()))
            .collect::<io::Result<_>>()?;
        Ok(Self { listener, slots })
    }

    /// Takes the name again after it had been left to a successor.
    ///
    /// # Errors
    /// `AddrInUse` while that one lives.
    pub fn bind_again(port: u16) -> io::Result<Self> {
        let name = UnixAddr::from_abstract_name(socket_name(port))?;
        let listener = StdUnixListener::bind_addr(&name)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            slots: Vec::new(),
        })
    }

    /// What the workers and the signal handling share with the control socket.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn state(
        &mut self,
        listening: Listening,
        instance: String,
        workers: usize,
        mark: Option<u32>,
    ) -> io::Result<Arc<ControlState>> {
        let slots = std::mem::take(&mut self.slots);
        ControlState::new(slots, listening, instance, workers, mark).map(Arc::new)
    }

    /// Serves, and keeps the capture's lease renewed, until dropped.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub async fn run(self, state: Arc<ControlState>, hooks: Hooks) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener)?;
        let hooks = Arc::new(hooks);
        let room = Arc::new(Semaphore::new(MAX_SESSIONS));
        let mut check = time::interval(ANCHOR_CHECK);
        check.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut look = time::interval(ROOM_CHECK);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut beating = pin!(heartbeat::run(state.clone()));
        let mut dialling = pin!(application::run(state.clone()));
        loop {
            let stream = tokio::select! {
                never = &mut beating => match never {},
                never = &mut dialling => match never {},
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "control socket: accept failed");
                        // Out of descriptors, as a rule; others must free some first.
                        time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                _ = look.tick() => {
                    state.leave_room(Room::look);
                    continue;
                }
                _ = check.tick() => {
                    state.drop_idle_anchors((hooks.live_connections)());
                    continue;
                }
            };
            let Ok(place) = room.clone().try_acquire_owned() else {
                turn_away(&stream, "too many control connections at once; try again");
                continue;
            };
            if let Err(reason) = admit(&stream) {
                turn_away(&stream, &reason);
                continue;
            }
            let session = Session::new(stream, state.clone(), hooks.clone());
            tokio::spawn(async move {
                session.run().await;
                drop(place);
            });
        }
    }
}

/// Only root and the proxy's own user may speak; whoever stands for all unmapped users may not.
fn admit(stream: &UnixStream) -> Result<(), String> {
    const UNMAPPED: u32 = 65534;
    let peer = stream
        .peer_cred()
        .map_err(|error| format!("your user cannot be told: {error}"))?
        .uid();
    let own = rustix::process::geteuid().as_raw();
    if peer != UNMAPPED && (peer == 0 || peer == own) {
        return Ok(());
    }
    tracing::warn!(uid = peer, "control socket: a stranger was turned away");
    Err(format!(
        "you are user {peer}; only root and user {own} may control this proxy"
    ))
}

/// One short line fits into the fresh socket's buffer, so nothing is awaited for a stranger. Sent
/// past the runtime, which takes a fresh socket for unwritable until its first event.
fn turn_away(stream: &UnixStream, reason: &str) {
    if let Ok(mut line) = serde_json::to_vec(&Reply::Refused(reason.into())) {
        line.push(b'\n');
        let _ = send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

#[cfg(test)]
mod tests;
