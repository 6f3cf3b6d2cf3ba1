//! The connections of one worker, for whoever wants to see them. Each is noted in cells of its worker's
//! own; the admin listener asks the worker for a copy, so that nothing is shared while nobody looks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use foldhash::fast::FixedState;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    address::{ClientAddr, OriginalDst},
    observe::{Protocol, Record},
    worker::Worker,
};

/// Questions that may wait at one worker.
const QUEUE: usize = 4;

/// One worker's connections by their numbers, which are its own to give: no client can choose them.
#[derive(Debug, Default)]
pub struct LiveConnections {
    given: Cell<u64>,
    entries: RefCell<HashMap<u64, Rc<Entry>, FixedState>>,
}

/// What is noted of one connection.
#[derive(Debug)]
pub struct Entry {
    pub number: u64,
    client: SocketAddr,
    original: SocketAddr,
    accepted: Instant,
    protocol: Cell<Option<Protocol>>,
    upstream: Cell<Option<SocketAddr>>,
    requests: Cell<u64>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Entry {
    pub fn detected(&self, protocol: Protocol) {
        self.protocol.set(Some(protocol));
    }

    /// A request of it, or all of it, has ended.
    pub fn ended(&self, record: &Record<'_>) {
        self.upstream.set(record.upstream);
        self.requests.set(self.requests.get() + 1);
        self.received
            .set(self.received.get() + record.bytes_received);
        self.sent.set(self.sent.get() + record.bytes_sent);
    }

    fn report(&self, worker: usize, now: Instant) -> ConnectionReport {
        ConnectionReport {
            connection: self.number,
            worker,
            client: self.client,
            destination: self.original,
            protocol: self.protocol.get().map(Protocol::label),
            last_upstream: self.upstream.get(),
            requests: self.requests.get(),
            bytes_received: self.received.get(),
            bytes_sent: self.sent.get(),
            age_seconds: now.saturating_duration_since(self.accepted).as_secs_f64(),
        }
    }
}

/// A connection is listed for as long as this lives.
#[derive(Debug)]
pub struct Listed {
    worker: Rc<Worker>,
    pub entry: Rc<Entry>,
}

impl Listed {
    pub fn begin(
        worker: &Rc<Worker>,
        ClientAddr(client): ClientAddr,
        OriginalDst(original): OriginalDst,
        accepted: Instant,
    ) -> Self {
        let connections = &worker.connections;
        let given = connections.given.get();
        connections.given.set(given + 1);
        let workers = worker.shared.metrics.workers() as u64;
        let entry = Rc::new(Entry {
            // Unique among all workers.
            number: given * workers + worker.id as u64 + 1,
            client,
            original,
            accepted,
            protocol: Cell::new(None),
            upstream: Cell::new(None),
            requests: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
        });
        let mut entries = connections.entries.borrow_mut();
        entries.insert(entry.number, entry.clone());
        Self {
            worker: worker.clone(),
            entry,
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut entries = self.worker.connections.entries.borrow_mut();
        entries.remove(&self.entry.number);
    }
}

/// One connection as the admin listener tells it.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConnectionReport {
    connection: u64,
    worker: usize,
    client: SocketAddr,
    destination: SocketAddr,
    /// None until its first bytes have told.
    protocol: Option<&'static str>,
    /// Of the request that ended last.
    last_upstream: Option<SocketAddr>,
    /// That have ended, and what follows with their bytes.
    requests: u64,
    bytes_received: u64,
    bytes_sent: u64,
    age_seconds: f64,
}

/// What one worker said.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) total: usize,
    pub(crate) shown: Vec<ConnectionReport>,
}

#[derive(Debug)]
struct Question {
    limit: usize,
    answer: oneshot::Sender<Listing>,
}

/// Where workers are asked for their connections.
#[derive(Debug)]
pub struct Questions(Box<[Desk]>);

#[derive(Debug)]
struct Desk {
    ask: mpsc::Sender<Question>,
    asked: Mutex<Option<mpsc::Receiver<Question>>>,
}

impl Questions {
    pub fn new(workers: usize) -> Self {
        let desk = |_| {
            let (ask, asked) = mpsc::channel(QUEUE);
            Desk {
                ask,
                asked: Mutex::new(Some(asked)),
            }
        };
        Self((0..workers).map(desk).collect())
    }

    /// What each worker says within `patience`, of at most `limit` connections each; none for one that
    /// hangs or has ended.
    pub(crate) async fn ask(&self, limit: usize, patience: Duration) -> Vec<Option<Listing>> {
        let until = tokio::time::Instant::now() + patience;
        let mut answers = Vec::new();
        for desk in &self.0 {
            let (answer, answered) = oneshot::channel();
            let asked = desk.ask.try_send(Question { limit, answer });
            answers.push(asked.is_ok().then_some(answered));
        }
        let mut listings = Vec::new();
        for answered in answers {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            listings.push(match answered {
                Some(answered) => timeout(left, answered).await.ok().and_then(Result::ok),
                None => None,
            });
        }
        listings
    }
}

/// Answers for `worker`, on its own event loop, for as long as the process lives.
pub(crate) async fn answer(worker: Rc<Worker>) {
    let desk = &worker.shared.questions.0[worker.id];
    let asked = desk
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(mut asked) = asked else { return };
    while let Some(Question { limit, answer }) = asked.recv().await {
        let now = Instant::now();
        let entries = worker.connections.entries.borrow();
        let shown = entries.values().take(limit);
        let listing = Listing {
            total: entries.len(),
            shown: shown.map(|entry| entry.report(worker.id, now)).collect(),
        };
        // Whoever asked may have gone.
        let _ = answer.send(listing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{connection, run, worker};

    #[test]
    fn a_connection_is_listed_while_it_lives_with_what_it_has_done() {
        let worker = worker(outrigger_config::Settings::default());
        run(async {
            tokio::task::spawn_local(answer(worker.clone()));
            let original = SocketAddr::from(([192, 0, 2, 1], 80));
            let one = connection(&worker, original);
            let two = connection(&worker, original);
            assert_ne!(one.listed.entry.number, two.listed.entry.number);
            one.listed.entry.detected(Protocol::Http1);
            one.record(&crate::observe::test_record());
            let ask = |limit| worker.shared.questions.ask(limit, Duration::from_secs(20));
            let listing = ask(10).await.remove(0).expect("it answers");
            assert_eq!((listing.total, listing.shown.len()), (2, 2));
            let shown = listing.shown.iter().find(|c| c.requests == 1).expect("one");
            assert_eq!(shown.protocol, Some("http1"));
            assert_eq!((shown.bytes_received, shown.bytes_sent), (100, 200));
            drop(one);
            assert_eq!(ask(0).await.remove(0).expect("it answers").total, 1);
        });
    }
}
