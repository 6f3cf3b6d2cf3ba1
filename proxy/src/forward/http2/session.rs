//! One HTTP/2 connection to a destination.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{Connection, ResponseFuture, SendRequest},
};
use http::Request;
use tokio::{sync::Notify, task};

use super::{settings, window::ReceiveWindow, wire::Wire};
use crate::{
    cluster::{Permit, Thresholds},
    failure::Failure,
    upstream::Upstream,
    worker::Worker,
};

/// A session as those see it who open streams on it. It ends when the last of them has let go of it
/// and its streams are over.
pub(super) struct Session {
    requests: RefCell<SendRequest<Bytes>>,
    state: Rc<State>,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    streams: Cell<usize>,
    has_served: Cell<bool>,
    was_asked_for_connect: Cell<bool>,
    /// Its place among the connections of the cluster that it was made for.
    permit: Option<Permit>,
}

/// What the task that polls the connection tells. It cannot hold the [`Session`] itself: h2 ends a
/// connection when nobody is left who could send requests.
struct State {
    window: Rc<ReceiveWindow>,
    /// Streams that the server allows; one, until it has said.
    max_streams: Cell<usize>,
    has_settings: Cell<bool>,
    is_over: Cell<bool>,
    /// To be told of a change of any of these.
    watcher: RefCell<Rc<Notify>>,
}

/// Why a request was not sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The session takes no more streams: it is closed or about to be.
    SessionOver,
    /// h2 would send such a request to nobody.
    Invalid(h2::Error),
}

impl Session {
    /// Speaks HTTP/2 on `upstream` from now on.
    ///
    /// # Errors
    /// When the connection breaks at once.
    pub(super) async fn start(
        mut upstream: Upstream,
        worker: &Rc<Worker>,
        watcher: Rc<Notify>,
    ) -> Result<Rc<Self>, Failure> {
        let (peer, local) = (upstream.peer, upstream.local());
        let permit = upstream.permit.take();
        let wire = Wire::upstream(upstream, worker);
        let (requests, connection) = settings::client(&worker.settings().limits)
            .handshake(wire.clone())
            .await
            .map_err(|_| Failure::UpstreamClosed)?;
        let state = Rc::new(State {
            window: Rc::new(ReceiveWindow::new(worker.http2_pool.budget())),
            max_streams: Cell::new(settings::STREAMS_BEFORE_SETTINGS),
            has_settings: Cell::new(false),
            is_over: Cell::new(false),
            watcher: RefCell::new(watcher),
        });
        task::spawn_local(run(connection, wire, state.clone()));
        Ok(Rc::new(Self {
            requests: RefCell::new(requests),
            state,
            peer,
            local,
            streams: Cell::new(0),
            has_served: Cell::new(false),
            was_asked_for_connect: Cell::new(false),
            permit,
        }))
    }

    /// Whom to tell of changes from now on.
    pub(super) fn set_watcher(&self, watcher: Rc<Notify>) {
        *self.state.watcher.borrow_mut() = watcher;
    }

    /// Whether these thresholds count it.
    pub(super) fn is_counted_by(&self, thresholds: &Thresholds) -> bool {
        self.permit.as_ref().is_some_and(|p| p.is_of(thresholds))
    }

    /// Whether somebody waits for its place among the connections of its cluster.
    pub(super) fn is_wanted(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_wanted)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state.is_over.get()
    }

    pub(super) fn has_settings(&self) -> bool {
        self.state.has_settings.get()
    }

    pub(super) fn max_streams(&self) -> usize {
        self.state.max_streams.get()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    pub(super) fn has_room(&self) -> bool {
        self.streams() < self.max_streams()
    }

    pub(super) fn has_served(&self) -> bool {
        self.has_served.get()
    }

    /// Counts a stream that is about to be opened; true if the session has served before.
    pub(super) fn begin_stream(&self) -> bool {
        self.streams.set(self.streams.get() + 1);
        self.has_served.replace(true)
    }

    /// Uncounts one; returns how many are left.
    pub(super) fn end_stream(&self) -> usize {
        self.streams.set(self.streams.get() - 1);
        self.streams.get()
    }

    /// The account for what is received.
    pub(super) fn window(&self) -> &Rc<ReceiveWindow> {
        &self.state.window
    }

    /// Whether the server offers extended CONNECT; true at most once, as soon as that is known.
    pub(super) fn newly_offers_connect(&self) -> bool {
        self.has_settings()
            && !self.was_asked_for_connect.replace(true)
            && self
                .requests
                .borrow()
                .is_extended_connect_protocol_enabled()
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`Unsent`]: nothing of the request has left.
    pub(super) fn send(
        &self,
        request: Request<()>,
        is_end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Unsent> {
        let mut requests = self.requests.borrow_mut();
        let sent = match requests.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => requests.send_request(request, is_end),
            Poll::Ready(Err(_)) => return Err(Unsent::SessionOver),
            // The last stream has not left yet; a handle of its own does not wait for it.
            Poll::Pending => requests.clone().send_request(request, is_end),
        };
        sent.map_err(Unsent::Invalid)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

/// Polls a connection until it ends.
async fn run(connection: Connection<Wire, Bytes>, wire: Wire, state: Rc<State>) {
    let mut connection = pin!(connection);
    let ended = poll_fn(|cx| {
        wire.begin_turn();
        if let Some(size) = state.window.adjust(cx) {
            connection.set_target_window_size(size);
        }
        let ended = connection.as_mut().poll(cx);
        wire.poll_send(cx);
        let max_streams = connection.max_concurrent_send_streams();
        if (max_streams, wire.has_read()) != (state.max_streams.get(), state.has_settings.get()) {
            state.max_streams.set(max_streams);
            state.has_settings.set(wire.has_read());
            state.tell();
        }
        ended
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP/2 connection to a destination ended");
    }
    state.is_over.set(true);
    state.tell();
}

impl State {
    fn tell(&self) {
        self.watcher.borrow().notify_waiters();
    }
}
