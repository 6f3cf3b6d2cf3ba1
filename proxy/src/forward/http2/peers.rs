//! One client connection, and the peers that its streams go to: without routes there is one, its
//! destination.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::Notify;

use super::{sessions::Sessions, window::ReceiveWindow};
use crate::{connection::Connection, dispatch::Hop};

/// What the streams of one client connection share.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: Connection,
    /// The account for what the client sends.
    pub(super) window: Rc<ReceiveWindow>,
    offers_connect: Cell<bool>,
    exchanges: Cell<usize>,
    exchange_ended: Notify,
    /// Whether the client is gone, and its streams with it.
    is_over: Cell<bool>,
    over: Notify,
}

/// A client and its sessions, by peer.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) client: Rc<Client>,
    sessions: RefCell<Vec<Rc<Sessions>>>,
}

impl Peers {
    pub(super) fn new(connection: Connection) -> Rc<Self> {
        let budget = connection.worker.http2_pool.budget();
        Rc::new(Self {
            client: Rc::new(Client {
                window: Rc::new(ReceiveWindow::new(budget)),
                offers_connect: Cell::new(connection.destination.offers_extended_connect()),
                exchanges: Cell::new(0),
                exchange_ended: Notify::new(),
                is_over: Cell::new(false),
                over: Notify::new(),
                connection,
            }),
            sessions: RefCell::default(),
        })
    }

    /// The sessions with the peer that `hop` leads to.
    pub(super) fn sessions(&self, hop: &Hop) -> Rc<Sessions> {
        let mut all = self.sessions.borrow_mut();
        if let Some(sessions) = all.iter().find(|s| s.are_for(hop)) {
            return sessions.clone();
        }
        // Those with peers that no stream uses any more go back to the pool.
        all.retain(|s| Rc::strong_count(s) > 1);
        let sessions = Sessions::new(self.client.clone(), hop.again());
        all.push(sessions.clone());
        sessions
    }

    /// Counts a stream of the client until dropped.
    pub(super) fn begin_exchange(self: &Rc<Self>) -> RunningExchange {
        let exchanges = &self.client.exchanges;
        exchanges.set(exchanges.get() + 1);
        RunningExchange(self.clone())
    }
}

impl Client {
    /// It is gone: waits until its streams have noticed.
    pub(super) async fn end(&self) {
        while self.exchanges.get() > 0 {
            self.exchange_ended.notified().await;
        }
        self.is_over.set(true);
        self.over.notify_waiters();
    }

    /// Ready when the client and all of its streams are.
    pub(super) async fn gone(&self) {
        let told = self.over.notified();
        if !self.is_over.get() {
            told.await;
        }
    }

    /// Whether the destination is known to offer extended CONNECT.
    pub(super) fn offers_connect(&self) -> bool {
        self.offers_connect.get()
    }

    pub(super) fn note_connect_offered(&self) {
        self.connection.destination.note_extended_connect();
        self.offers_connect.set(true);
        self.window.wake();
    }
}

/// A stream of the client, until dropped.
#[derive(Debug)]
pub(super) struct RunningExchange(Rc<Peers>);

impl RunningExchange {
    pub(super) fn peers(&self) -> &Rc<Peers> {
        &self.0
    }
}

impl Drop for RunningExchange {
    fn drop(&mut self) {
        let client = &self.0.client;
        let left = client.exchanges.get() - 1;
        client.exchanges.set(left);
        if left == 0 {
            client.exchange_ended.notify_one();
        }
    }
}
