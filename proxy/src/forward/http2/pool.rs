//! A worker's HTTP/2 connections to destinations that no client uses at the moment.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task};

use super::{session::Session, window::Budget};
use crate::{cluster::Thresholds, observe::IdleUpstream, worker::Worker};

/// Idle sessions of one worker, by destination.
#[derive(Debug, Default)]
pub struct Pool {
    destinations: RefCell<HashMap<SocketAddr, Rc<Idle>>>,
    budget: Rc<Budget>,
    is_swept: Cell<bool>,
}

/// What a worker keeps of one destination.
#[derive(Debug)]
pub(super) struct Idle {
    /// The most recently used one last.
    sessions: RefCell<Vec<Kept>>,
    /// Streams that a session of this destination allowed last.
    usual_streams: Cell<usize>,
}

#[derive(Debug)]
struct Kept {
    session: Rc<Session>,
    since: Instant,
    _counted: IdleUpstream,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            sessions: RefCell::default(),
            // What RFC 9113, section 6.5.2, recommends as the least.
            usual_streams: Cell::new(100),
        }
    }
}

impl Pool {
    pub(super) fn destination(&self, address: SocketAddr) -> Rc<Idle> {
        let mut destinations = self.destinations.borrow_mut();
        destinations.entry(address).or_default().clone()
    }

    /// Forgets a destination unless it has idle sessions or other users than `idle`.
    pub(super) fn forget(&self, address: SocketAddr, idle: &Rc<Idle>) {
        if idle.is_empty() && Rc::strong_count(idle) == 2 {
            self.destinations.borrow_mut().remove(&address);
        }
    }

    /// The growth left to the receive windows of all sessions and clients.
    pub(super) fn budget(&self) -> Rc<Budget> {
        self.budget.clone()
    }

    /// Drops every session that is closed or has been idle for longer than `limit`.
    fn sweep(&self, limit: Duration, now: Instant) {
        self.destinations.borrow_mut().retain(|_, idle| {
            idle.sessions.borrow_mut().retain(|kept| {
                !kept.session.is_over()
                    && !kept.session.is_wanted()
                    && now.saturating_duration_since(kept.since) < limit
            });
            !idle.is_empty() || Rc::strong_count(idle) > 1
        });
    }

    /// Closes every idle session and tells how many there were.
    pub fn clear(&self) -> usize {
        let destinations = self.destinations.borrow();
        let kept: Vec<_> = destinations
            .values()
            .map(|idle| idle.sessions.take())
            .collect();
        // What ends may look for its destination here.
        drop(destinations);
        kept.iter().map(Vec::len).sum()
    }

    /// Closes what is idle of the sessions that a cluster counts.
    pub(crate) fn close_counted(&self, of: &Thresholds) {
        for idle in self.destinations.borrow().values() {
            let mut sessions = idle.sessions.borrow_mut();
            sessions.retain(|kept| !kept.session.is_counted_by(of));
        }
    }

    fn is_idle(&self) -> bool {
        self.destinations.borrow().values().all(|d| d.is_empty())
    }
}

impl Idle {
    /// Takes the most recently used session that still lives.
    pub(super) fn take(&self, watcher: &Rc<Notify>) -> Option<Rc<Session>> {
        let mut sessions = self.sessions.borrow_mut();
        while let Some(Kept { session, .. }) = sessions.pop() {
            if !session.is_over() {
                session.set_watcher(watcher.clone());
                return Some(session);
            }
        }
        None
    }

    /// Keeps a session without streams for the next client.
    pub(super) fn put(&self, worker: &Rc<Worker>, session: Rc<Session>) {
        let mut sessions = self.sessions.borrow_mut();
        let settings = worker.settings().pool;
        if session.is_over()
            || worker.drain.has_started()
            || session.is_wanted()
            || sessions.len() >= settings.max_idle_per_destination
        {
            return;
        }
        sessions.push(Kept {
            session,
            since: Instant::now(),
            _counted: worker.shared.metrics.idle_upstream(worker.id),
        });
        if !worker.http2_pool.is_swept.replace(true) {
            task::spawn_local(sweep_until_empty(worker.clone()));
        }
    }

    pub(super) fn usual_streams(&self) -> usize {
        self.usual_streams.get()
    }

    pub(super) fn note_streams(&self, max: usize) {
        self.usual_streams.set(max.max(1));
    }

    fn is_empty(&self) -> bool {
        self.sessions.borrow().is_empty()
    }
}

/// One timer a worker, however many requests: a session idles for up to a quarter longer than it may.
async fn sweep_until_empty(worker: Rc<Worker>) {
    while !worker.http2_pool.is_idle() {
        let limit = worker.settings().pool.idle.0;
        tokio::time::sleep(limit / 4).await;
        worker.http2_pool.sweep(limit, Instant::now());
    }
    worker.http2_pool.is_swept.set(false);
}
