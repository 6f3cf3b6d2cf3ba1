//! The thread that speaks to rate limit services: no worker dials, and none waits for a slow service.
//! To each endpoint of a service's cluster there is one HTTP/2 connection, on which all questions are
//! asked at once. The cluster chooses the endpoint, and is told how it went.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot, watch},
    task,
    time::{timeout, timeout_at},
};

use crate::{
    cluster::{Cluster, Outcome, PickContext, Rng},
    failure::Failure,
    grpc,
    shared::Shared,
    upstream,
};

const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// What of an answer is read.
const MAX_ANSWER: usize = 64 * 1024;

/// Questions in a row that a connection left without an answer, before another is made: its peer may
/// be gone without a word.
const MAX_UNANSWERED: u32 = 5;

/// A connection that nobody used for so long is closed.
const IDLE: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Ask {
    pub(super) cluster: Arc<Cluster>,
    /// An encoded request.
    pub(super) message: Bytes,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<Bytes, Unanswered>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    Failed,
    TooLate,
}

/// Starts the thread; it ends when `shared` does. Where it cannot be had, nothing is answered.
pub(super) fn start(shared: &Arc<Shared>) -> mpsc::UnboundedSender<Ask> {
    let (asks, received) = mpsc::unbounded_channel();
    let shared = Arc::downgrade(shared);
    let started = thread::Builder::new()
        .name("rate-limits".into())
        .spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(obey(shared, received)),
                Err(error) => tracing::error!(%error, "no event loop for rate limit services"),
            }
        });
    if let Err(error) = started {
        tracing::error!(%error, "no thread for rate limit services; none is asked");
    }
    asks
}

async fn obey(shared: Weak<Shared>, mut asks: mpsc::UnboundedReceiver<Ask>) {
    let client = Rc::new(Client {
        shared,
        rng: Rng::new(RandomState::new().hash_one(0)),
        connections: RefCell::default(),
    });
    while let Some(ask) = asks.recv().await {
        task::spawn_local(client.clone().answer(ask));
    }
}

struct Client {
    shared: Weak<Shared>,
    rng: Rng,
    connections: RefCell<HashMap<(Arc<str>, SocketAddr), Rc<Connection>>>,
}

/// A connection, or the dial that is to make it.
struct Connection {
    sender: watch::Receiver<Dial>,
    unanswered: Cell<u32>,
    used: Cell<Instant>,
}

#[derive(Clone)]
enum Dial {
    UnderWay,
    Connected(grpc::Sender),
    Failed,
}

impl Client {
    async fn answer(self: Rc<Self>, ask: Ask) {
        let answer = self.ask(&ask).await;
        // Whoever asked may have gone.
        let _ = ask.answer.send(answer);
    }

    async fn ask(&self, ask: &Ask) -> Result<Bytes, Unanswered> {
        let picked = ask
            .cluster
            .pick(&PickContext::default(), &self.rng, Instant::now())
            .map_err(|error| {
                tracing::debug!(cluster = %ask.cluster.name, %error, "no endpoint for the rate limit service");
                Unanswered::Failed
            })?;
        let address = picked.endpoint.address;
        let connection = self.connection(&ask.cluster, address);
        let asked = async {
            let mut sender = connection.sender().await.ok_or("no connection")?;
            // Not every name is one that a URI can have.
            let name = &*ask.cluster.name;
            let authority = name.parse().unwrap_or_else(|_| grpc::authority(address));
            grpc::call(&mut sender, authority, PATH, &ask.message, MAX_ANSWER).await
        };
        let answered = timeout_at(ask.deadline.into(), asked).await;
        let outcome = match &answered {
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(_)) | Err(_) => Outcome::LocalOriginFailure,
        };
        picked.report(outcome, Instant::now());
        match answered {
            Ok(Ok(message)) => {
                connection.unanswered.set(0);
                Ok(message)
            }
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "the rate limit service failed");
                Err(Unanswered::Failed)
            }
            Err(_) => {
                connection.unanswered.set(connection.unanswered.get() + 1);
                Err(Unanswered::TooLate)
            }
        }
    }

    /// The connection to an endpoint, made if there is none that is of use.
    fn connection(&self, cluster: &Arc<Cluster>, address: SocketAddr) -> Rc<Connection> {
        let now = Instant::now();
        let key = (cluster.name.clone(), address);
        let mut connections = self.connections.borrow_mut();
        if let Some(known) = connections.get(&key).filter(|known| known.is_of_use()) {
            known.used.set(now);
            return known.clone();
        }
        connections.retain(|_, c| c.is_of_use() && now.duration_since(c.used.get()) < IDLE);
        let (tell, sender) = watch::channel(Dial::UnderWay);
        let connection = Rc::new(Connection {
            sender,
            unanswered: Cell::new(0),
            used: Cell::new(now),
        });
        connections.insert(key, connection.clone());
        let dial = dial(self.shared.clone(), cluster.clone(), address);
        // A task of its own: it takes longer than who asked first may wait.
        task::spawn_local(async move {
            let dialled = dial.await.inspect_err(|failure| {
                tracing::debug!(%address, failure = failure.label(), "the rate limit service cannot be reached");
            });
            tell.send_replace(dialled.map_or(Dial::Failed, Dial::Connected));
        });
        connection
    }
}

impl Connection {
    fn is_of_use(&self) -> bool {
        let is_open = match &*self.sender.borrow() {
            Dial::UnderWay => true,
            Dial::Connected(sender) => !sender.is_closed(),
            Dial::Failed => false,
        };
        // While it is dialled, that takes as long as it may.
        let is_dialled = matches!(&*self.sender.borrow(), Dial::UnderWay);
        is_open && (is_dialled || self.unanswered.get() < MAX_UNANSWERED)
    }

    async fn sender(&self) -> Option<grpc::Sender> {
        let mut sender = self.sender.clone();
        let dialled = sender.wait_for(|dial| !matches!(dial, Dial::UnderWay));
        match &*dialled.await.ok()? {
            Dial::Connected(sender) => Some(sender.clone()),
            Dial::UnderWay | Dial::Failed => None,
        }
    }
}

async fn dial(
    shared: Weak<Shared>,
    cluster: Arc<Cluster>,
    address: SocketAddr,
) -> Result<grpc::Sender, Failure> {
    let shared = shared.upgrade().ok_or(Failure::Drained)?;
    if shared.is_own_listener(address) {
        return Err(Failure::Loop);
    }
    let permit = cluster.thresholds().try_connection();
    let permit = permit.ok_or(Failure::Overflow)?;
    let limit = cluster.settings().connect_timeout.0;
    let connecting = async {
        let mut upstream = upstream::connect(&shared, address).await?;
        upstream.permit = Some(permit);
        grpc::handshake(upstream)
            .await
            .map_err(|_| Failure::UpstreamProtocol)
    };
    let connected = timeout(limit, connecting).await;
    connected.unwrap_or(Err(Failure::ConnectTimeout))
}
