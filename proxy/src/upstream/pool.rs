//! A worker's idle HTTP/1 upstream connections, by destination.
//!
//! Safe reuse is the point: a connection is handed out only if nothing has arrived on it since it
//! went idle, and each remembers enough to prove later that a request it was given was not
//! consumed.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    task::{self, coop, yield_now},
};

use super::{Upstream, connect::connect_for};
use crate::{
    cluster::{Permit, Thresholds},
    failure::Failure,
    observe::IdleUpstream,
    sys,
    worker::Worker,
};

/// How often idle connections are looked through. A server that closed one holds its end half-open
/// for as long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Idle connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    /// The keys are chosen by clients, hence the standard hasher; a client's connection looks its
    /// destination up once and not once a request.
    destinations: RefCell<HashMap<SocketAddr, Rc<IdleConnections>>>,
    idle: Rc<Cell<usize>>,
    last_id: Cell<u64>,
    is_swept: Cell<bool>,
}

/// The idle connections to one destination, the last used at the back.
#[derive(Debug)]
pub struct IdleConnections {
    connections: RefCell<VecDeque<Idle>>,
    /// Of the whole pool.
    idle: Rc<Cell<usize>>,
}

#[derive(Debug)]
struct Idle {
    lease: Lease,
    until: Instant,
    _counted: IdleUpstream,
}

/// An upstream connection in use by one request.
#[derive(Debug)]
pub struct Lease {
    pub upstream: Upstream,
    /// Tells a client's own last connection from others.
    pub id: u64,
    /// Whether earlier requests went over it.
    pub is_reused: bool,
    /// Authenticated for one client, and for nobody else.
    pub is_pinned: bool,
    /// How long the server keeps it when idle.
    keeps_for: Option<Duration>,
    /// Bytes sent for earlier requests.
    written: u64,
    /// What the kernel counted as acknowledged before the first of them: the handshake.
    acked_at_first: u64,
}

impl Pool {
    /// The idle connections to `peer`, to be held by a client's connection.
    pub fn destination(&self, peer: SocketAddr) -> Rc<IdleConnections> {
        let mut destinations = self.destinations.borrow_mut();
        let destination = destinations.entry(peer).or_insert_with(|| {
            Rc::new(IdleConnections {
                connections: RefCell::default(),
                idle: self.idle.clone(),
            })
        });
        destination.clone()
    }

    /// An idle connection to `peer`, for whoever comes only once.
    pub fn check_out(&self, peer: SocketAddr, now: Instant) -> Option<Lease> {
        let idle = self.destinations.borrow().get(&peer).cloned();
        idle?.check_out(now)
    }

    /// Forgets a destination that has no idle connections and no other user than `idle`.
    pub fn forget(&self, peer: SocketAddr, idle: &Rc<IdleConnections>) {
        if idle.connections.borrow().is_empty() && Rc::strong_count(idle) == 2 {
            self.destinations.borrow_mut().remove(&peer);
        }
    }

    /// Takes a connection that was just dialled.
    pub fn lease(&self, upstream: Upstream) -> Lease {
        self.last_id.set(self.last_id.get() + 1);
        Lease {
            id: self.last_id.get(),
            is_reused: false,
            is_pinned: false,
            keeps_for: None,
            written: 0,
            acked_at_first: sys::tcp_bytes_acked(&upstream.stream).unwrap_or(0),
            upstream,
        }
    }

    /// Idle connections of this worker.
    pub fn idle_count(&self) -> usize {
        self.idle.get()
    }

    #[cfg(test)]
    pub(crate) fn destination_count(&self) -> usize {
        self.destinations.borrow().len()
    }

    /// Closes every idle connection and tells how many there were.
    pub fn clear(&self) -> usize {
        let count = self.idle_count();
        for destination in self.destinations.borrow().values() {
            destination.retain(|_| false);
        }
        count
    }

    /// Closes what is idle of the connections that a cluster counts.
    pub(crate) fn close_counted(&self, of: &Thresholds) {
        for destination in self.destinations.borrow().values() {
            destination.retain(|idle| {
                let permit = idle.lease.upstream.permit.as_ref();
                !permit.is_some_and(|p| p.is_of(of))
            });
        }
    }

    fn sweep(&self, now: Instant) {
        self.destinations.borrow_mut().retain(|_, destination| {
            destination.retain(|idle| {
                idle.until > now && idle.lease.is_quiet() && !idle.lease.is_wanted()
            });
            Rc::strong_count(destination) > 1 || !destination.connections.borrow().is_empty()
        });
    }
}

/// Dials `peer` within `limit`, or what the settings say, for `client` if somebody in particular waits
/// for it; when descriptors run out, idle connections make room.
///
/// # Errors
/// Why there is no connection; `ClientClosed` when the client is reset meanwhile.
pub async fn dial(
    worker: &Worker,
    peer: SocketAddr,
    limit: Option<Duration>,
    client: Option<&TcpStream>,
) -> Result<Upstream, Failure> {
    let shared = &worker.shared;
    match connect_for(shared, peer, limit, client).await {
        Err(Failure::OutOfResources) if worker.make_room() => {
            // What is behind an HTTP/2 session closes on a turn of its own.
            yield_now().await;
            connect_for(shared, peer, limit, client).await
        }
        dialled => dialled,
    }
}

impl IdleConnections {
    /// The connection used last, of those still good.
    pub fn check_out(&self, now: Instant) -> Option<Lease> {
        loop {
            let idle = self.connections.borrow_mut().pop_back()?;
            self.idle.set(self.idle.get() - 1);
            if let Some(lease) = idle.reuse(now) {
                return Some(lease);
            }
        }
    }

    /// The connection `id`, if it is idle and still good.
    pub fn check_out_id(&self, id: u64, now: Instant) -> Option<Lease> {
        let mut connections = self.connections.borrow_mut();
        let at = connections.iter().rposition(|idle| idle.lease.id == id)?;
        let idle = connections.remove(at)?;
        self.idle.set(self.idle.get() - 1);
        idle.reuse(now)
    }

    /// Takes a connection back whose last answer has arrived whole; or closes it, if it is not
    /// worth keeping.
    pub fn check_in(&self, worker: &Rc<Worker>, lease: Lease, now: Instant) {
        let settings = worker.settings().pool;
        let keeps_for = match lease.keeps_for {
            // A second earlier than the server, so that a request does not race its close.
            Some(told) => told
                .saturating_sub(Duration::from_secs(1))
                .min(settings.max_idle.0),
            None => settings.idle.0,
        };
        let has_room = self.connections.borrow().len() < settings.max_idle_per_destination;
        if keeps_for.is_zero() || !has_room || worker.drain.has_started() || lease.is_wanted() {
            return;
        }
        let until = now + keeps_for;
        self.connections.borrow_mut().push_back(Idle {
            lease,
            until,
            _counted: worker.shared.metrics.idle_upstream(worker.id),
        });
        self.idle.set(self.idle.get() + 1);
        if !worker.http1_pool.is_swept.replace(true) {
            task::spawn_local(sweep(worker.clone()));
        }
    }

    fn retain(&self, keep: impl Fn(&Idle) -> bool) {
        let mut connections = self.connections.borrow_mut();
        let before = connections.len();
        connections.retain(keep);
        self.idle
            .set(self.idle.get() - (before - connections.len()));
        if connections.is_empty() {
            connections.shrink_to_fit();
        }
    }
}

impl Idle {
    fn reuse(self, now: Instant) -> Option<Lease> {
        (self.until > now && self.lease.is_quiet()).then_some(self.lease)
    }
}

impl Lease {
    /// Notes that a request of `written` bytes has been answered, and how long the server said that
    /// it keeps the connection.
    pub fn note_answered(&mut self, written: u64, keeps_for: Option<Duration>) {
        self.written += written;
        self.is_reused = true;
        self.keeps_for = keeps_for.or(self.keeps_for);
    }

    /// Whether somebody, perhaps of another worker, waits for its place among the connections of its
    /// cluster.
    fn is_wanted(&self) -> bool {
        let permit = self.upstream.permit.as_ref();
        permit.is_some_and(Permit::is_wanted)
    }

    /// Whether nothing, not even an end, has arrived since the last answer. Costs no system call:
    /// the event loop has been told of whatever arrived.
    pub fn is_quiet(&self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        // Outside of the task's budget: once that is spent, all looks quiet.
        let disturbed = poll_fn(|cx| poll_disturbed(cx, &self.upstream.stream));
        pin!(coop::unconstrained(disturbed))
            .poll(&mut nobody)
            .is_pending()
    }

    /// Whether the peer, whose orderly end was read, provably took nothing of the present request:
    /// it closed before our bytes reached it, and none of them was acknowledged. Asked after a
    /// reset, this proves nothing: bytes can be read before they are acknowledged.
    pub fn is_unconsumed(&self) -> bool {
        let stream = &self.upstream.stream;
        let was_closed_first = match SockRef::from(stream).take_error() {
            // EPIPE instead of ECONNRESET: the reset found the peer's FIN already here.
            Ok(error) => error.is_none_or(|e| e.raw_os_error() == Some(libc::EPIPE)),
            Err(_) => false,
        };
        was_closed_first
            && sys::tcp_bytes_acked(stream)
                .is_ok_and(|acked| acked <= self.acked_at_first + self.written)
    }
}

/// Waits for anything to arrive on a connection where nothing should: bytes, or an end.
pub fn poll_disturbed(cx: &mut Context<'_>, stream: &TcpStream) -> Poll<()> {
    while stream.poll_read_ready(cx).is_ready() {
        // Readiness may be left over from a read that exactly filled its buffer.
        let read = stream.try_read(&mut [0]);
        if !read.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
            return Poll::Ready(());
        }
    }
    Poll::Pending
}

/// Closes what is idle for too long or was closed by its server, for as long as any is idle.
async fn sweep(worker: Rc<Worker>) {
    let pool = &worker.http1_pool;
    while pool.idle_count() > 0 {
        tokio::select! {
            () = tokio::time::sleep(SWEEP_EVERY) => pool.sweep(Instant::now()),
            () = worker.drain.started() => {
                pool.clear();
            }
        }
    }
    pool.destinations
        .borrow_mut()
        .retain(|_, destination| Rc::strong_count(destination) > 1);
    pool.is_swept.set(false);
}

#[cfg(test)]
#[path = "pool/tests.rs"]
mod tests;
