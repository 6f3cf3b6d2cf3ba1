//! Reads the netlink sockets that the installer bound as root and handed over.

mod bypasses;
mod drift;
mod netlink;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use outrigger_config::control::{self as told, BypassReason, RulesTrouble, Watch};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::AbortHandle,
};

use crate::sys::readiness_of;
use bypasses::Bypasses;
use drift::Drift;

/// Two for each capture that may be held.
const MAX_WATCHES: usize = 16;
/// As large as the datagrams that the kernel makes of several messages.
const BUFFER: usize = 64 * 1024;
/// Datagrams in one go, before the other work of this thread has its turn.
const TURN: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Watches {
    seen: Arc<Mutex<Seen>>,
    readers: Mutex<Vec<Reader>>,
}

#[derive(Debug, Default)]
struct Seen {
    bypasses: Bypasses,
    drift: Drift,
}

/// What metrics tell of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchFigures {
    pub bypassed: Vec<(BypassReason, u64)>,
    pub overruns: u64,
    pub drifts: u64,
    pub shadows: u64,
}

/// Its end closes the socket.
#[derive(Debug)]
struct Reader {
    generation: u64,
    kind: Kind,
    task: AbortHandle,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bypasses,
    Changes,
}

impl Watches {
    /// To be called on the runtime.
    pub(super) fn begin(
        &self,
        generation: u64,
        watch: Watch,
        socket: OwnedFd,
    ) -> Result<(), String> {
        let mut readers = lock(&self.readers);
        if readers.len() >= MAX_WATCHES {
            return Err("too many watches are held already; run remove-rules first".into());
        }
        let socket = readiness_of(socket)
            .map_err(|error| format!("the socket cannot be watched: {error}"))?;
        let mut seen = lock(&self.seen);
        let kind = match watch {
            Watch::Bypasses { live_before } => {
                seen.bypasses.live_before = live_before;
                seen.bypasses.readers += 1;
                Kind::Bypasses
            }
            Watch::Changes { ahead, iptables } => {
                seen.drift.found(ahead, iptables, unix_now());
                seen.drift.readers += 1;
                Kind::Changes
            }
            Watch::Application => return Err("nothing can be read from such a socket".into()),
        };
        let task = tokio::spawn(read(socket, kind, self.seen.clone())).abort_handle();
        readers.push(Reader {
            generation,
            kind,
            task,
            seen: self.seen.clone(),
        });
        Ok(())
    }

    /// Ends what belongs to no capture that `is_held`.
    pub(super) fn keep(&self, is_held: impl Fn(u64) -> bool) {
        lock(&self.readers).retain(|reader| is_held(reader.generation));
    }

    pub(super) fn note_rules(&self, found: Option<(RulesTrouble, &str)>) {
        lock(&self.seen).drift.note_rules(found, unix_now());
    }

    pub(super) fn forget_rules(&self) {
        lock(&self.seen).drift.forget_rules();
    }

    pub(super) fn bypasses(&self) -> told::Bypasses {
        lock(&self.seen).bypasses.told()
    }

    pub(super) fn drift(&self) -> told::Drift {
        lock(&self.seen).drift.told()
    }

    pub(super) fn figures(&self) -> WatchFigures {
        let seen = lock(&self.seen);
        WatchFigures {
            bypassed: seen.bypasses.counts().collect(),
            overruns: seen.bypasses.overruns + seen.drift.overruns,
            drifts: seen.drift.count(),
            shadows: seen.drift.shadows() as u64,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
        let mut seen = lock(&self.seen);
        match self.kind {
            Kind::Bypasses => seen.bypasses.readers -= 1,
            Kind::Changes => seen.drift.readers -= 1,
        }
    }
}

async fn read(socket: AsyncFd<OwnedFd>, kind: Kind, seen: Arc<Mutex<Seen>>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        for _ in 0..TURN {
            let received = socket
                .async_io(Interest::READABLE, |socket| {
                    netlink::receive(socket.as_fd(), &mut buffer)
                })
                .await;
            match received {
                Ok(Some(length)) => take(&buffer[..length], kind, &seen),
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => overrun(kind, &seen),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, ?kind, "a watch has broken off");
                    return;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn take(datagram: &[u8], kind: Kind, seen: &Mutex<Seen>) {
    let mut seen = lock(seen);
    match kind {
        Kind::Bypasses => seen.bypasses.take(datagram, Instant::now(), unix_now()),
        Kind::Changes => seen.drift.take(datagram, unix_now()),
    }
}

fn overrun(kind: Kind, seen: &Mutex<Seen>) {
    let mut seen = lock(seen);
    match kind {
        Kind::Bypasses => seen.bypasses.overruns += 1,
        Kind::Changes => seen.drift.overruns += 1,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
