//! The sessions that carry one client connection's streams to one peer.
//!
//! A session carries the streams of one client at a time, and goes back to the worker's pool when the
//! last of them is over. HTTP/2 could carry the streams of many clients, but then they would share
//! what nobody can divide: the send window that the server grants per connection (one upload that a
//! server does not read would stand in the way of all), the compression tables, a GOAWAY, and the
//! backend that a layer-4 balancer chose for the connection. So there are as many connections to a
//! destination as there would be without the proxy, or fewer.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
};

use tokio::{sync::Notify, task};

use super::{peers::Client, pool::Idle, session::Session};
use crate::{dispatch::Hop, failure::Failure, upstream::Upstream};

/// What the streams to one peer share.
#[derive(Debug)]
pub(super) struct Sessions {
    client: Rc<Client>,
    /// How to get there.
    hop: Hop,
    idle: Rc<Idle>,
    sessions: RefCell<Vec<Rc<Session>>>,
    /// Sessions being made.
    dialling: Cell<usize>,
    /// Streams waiting for one.
    waiting: Cell<usize>,
    /// Told when there may be room, or an attempt has failed.
    changed: Rc<Notify>,
    failures: Cell<usize>,
    last_failure: Cell<Failure>,
}

/// A place for a stream on a session, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) session: Rc<Session>,
    /// Whether the session has carried streams before.
    pub(super) is_reused: bool,
    sessions: Rc<Sessions>,
}

impl Sessions {
    pub(super) fn new(client: Rc<Client>, hop: Hop) -> Rc<Self> {
        let pool = &client.connection.worker.http2_pool;
        Rc::new(Self {
            idle: pool.destination(hop.peer),
            sessions: RefCell::default(),
            dialling: Cell::new(0),
            waiting: Cell::new(0),
            changed: Rc::default(),
            failures: Cell::new(0),
            last_failure: Cell::new(Failure::Internal),
            hop,
            client,
        })
    }

    pub(super) fn are_for(&self, hop: &Hop) -> bool {
        self.hop.leads_as(hop)
    }

    /// A place on a session that has room now, other than `avoid`.
    pub(super) fn place(self: &Rc<Self>, avoid: Option<&Rc<Session>>) -> Option<Place> {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|s| {
            if s.is_over() && !s.has_served() {
                // It was taken only to be closed: as good as refused.
                self.note_failure(Failure::UpstreamClosed);
            }
            !s.is_over()
        });
        let is_avoided = |s: &Rc<Session>| avoid.is_some_and(|a| Rc::ptr_eq(a, s));
        let session = match sessions.iter().find(|s| s.has_room() && !is_avoided(s)) {
            Some(session) => session.clone(),
            None => {
                let session = self.idle.take(&self.changed)?;
                sessions.push(session.clone());
                if !session.has_room() {
                    return None;
                }
                session
            }
        };
        drop(sessions);
        self.learn(&session);
        Some(Place {
            is_reused: session.begin_stream(),
            session,
            sessions: self.clone(),
        })
    }

    /// A place, waiting for one or connecting as needed.
    ///
    /// # Errors
    /// Why no session could be had.
    pub(super) async fn wait_for_place(
        self: &Rc<Self>,
        avoid: Option<&Rc<Session>>,
    ) -> Result<Place, Failure> {
        let _waiting = Counted::new(&self.waiting);
        let failures = self.failures.get();
        loop {
            if let Some(place) = self.place(avoid) {
                return Ok(place);
            }
            if self.failures.get() != failures {
                return Err(self.last_failure.get());
            }
            if self.waiting.get() > self.expected_places() && !self.is_held_off() {
                self.connect(None);
            }
            self.changed.notified().await;
        }
    }

    /// Makes a session, of `upstream` if that is given.
    pub(super) fn connect(self: &Rc<Self>, upstream: Option<Upstream>) {
        self.dialling.set(self.dialling.get() + 1);
        let this = self.clone();
        task::spawn_local(async move {
            let mut making = pin!(this.make(upstream));
            let made = tokio::select! {
                made = &mut making => Some(made),
                // Then only copies of its requests are left to use it, if there are any.
                () = this.client.gone() => match this.waiting.get() {
                    0 => None,
                    _ => Some(making.await),
                },
            };
            this.dialling.set(this.dialling.get() - 1);
            match made {
                None => {}
                Some(Ok(session)) if this.waiting.get() == 0 => {
                    this.idle.put(&this.client.connection.worker, session);
                }
                Some(Ok(session)) => this.sessions.borrow_mut().push(session),
                Some(Err(failure)) => this.note_failure(failure),
            }
            this.changed.notify_waiters();
        });
    }

    /// Tells those who wait for a session why there is none.
    fn note_failure(&self, failure: Failure) {
        self.failures.set(self.failures.get() + 1);
        self.last_failure.set(failure);
    }

    /// Stops using a session for new streams.
    pub(super) fn retire(&self, session: &Rc<Session>) {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|s| !Rc::ptr_eq(s, session));
    }

    async fn make(&self, upstream: Option<Upstream>) -> Result<Rc<Session>, Failure> {
        let worker = &self.client.connection.worker;
        let upstream = match upstream {
            Some(upstream) => upstream,
            None => self.hop.dial(worker, None).await?,
        };
        Session::start(upstream, worker, self.changed.clone()).await
    }

    /// Places that will come without another connection. A session whose server has not said yet how
    /// many streams it allows will probably allow as many as the last one did.
    fn expected_places(&self) -> usize {
        let sessions = self.sessions.borrow();
        let new = sessions.iter().filter(|s| !s.has_settings()).count();
        (self.dialling.get() + new).saturating_mul(self.idle.usual_streams())
    }

    /// Whether the server wants no streams at all for now: more connections would not help.
    fn is_held_off(&self) -> bool {
        let sessions = self.sessions.borrow();
        sessions.iter().any(|s| s.max_streams() == 0)
    }

    fn stream_ended(&self, session: &Rc<Session>) {
        self.learn(session);
        if session.end_stream() == 0 {
            let mut sessions = self.sessions.borrow_mut();
            // One that was retired is not found, and ends here.
            if let Some(index) = sessions.iter().position(|s| Rc::ptr_eq(s, session)) {
                let session = sessions.swap_remove(index);
                self.idle.put(&self.client.connection.worker, session);
            }
        }
        if self.waiting.get() > 0 {
            self.changed.notify_one();
        }
    }

    /// Takes note of what a session's server has said.
    fn learn(&self, session: &Session) {
        if session.has_settings() {
            self.idle.note_streams(session.max_streams());
        }
        if session.newly_offers_connect() {
            self.client.note_connect_offered();
        }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        let pool = &self.client.connection.worker.http2_pool;
        pool.forget(self.hop.peer, &self.idle);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.stream_ended(&self.session);
    }
}

struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
