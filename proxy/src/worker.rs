//! One event loop: its listeners, its connections, and what they share without locks.

use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, RandomState},
    rc::Rc,
    sync::Arc,
};

use outrigger_config::Subject;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task,
};

use crate::{
    accept,
    buffer::BufferPool,
    cluster::Rng,
    configuration::{Pinned, View},
    connection,
    drain::Drain,
    forward::{http2, splice::PipePool},
    live::{self, LiveConnections},
    observe::{Captured, Record, trace::Ids},
    readiness::Accepting,
    route::Routed,
    shared::Shared,
    upstream,
};

/// What the connections of one worker share. Never leaves its thread.
#[derive(Debug)]
pub struct Worker {
    pub id: usize,
    pub shared: Arc<Shared>,
    pub buffers: BufferPool,
    pub pipes: PipePool,
    pub http1_pool: upstream::Pool,
    pub http2_pool: http2::Pool,
    pub drain: Drain,
    pub rng: Rng,
    pub connections: LiveConnections,
    pub(crate) trace_ids: Ids,
    /// Copies of requests under way.
    pub(crate) copies: Cell<usize>,
    view: RefCell<View>,
    live: Cell<usize>,
    idle: Notify,
}

/// What the control thread tells every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Leave new connections to another proxy on the same sockets, until one of the others is told.
    Yielding,
    /// Take what has already been redirected, then no more; finish what is under way.
    Draining,
    /// Cut what is left.
    Stopping,
}

impl Worker {
    pub fn new(id: usize, shared: Arc<Shared>) -> Self {
        Self {
            id,
            view: RefCell::new(View::of(&shared.configuration)),
            shared,
            buffers: BufferPool::default(),
            pipes: PipePool::default(),
            http1_pool: upstream::Pool::default(),
            http2_pool: http2::Pool::default(),
            drain: Drain::default(),
            rng: Rng::new(RandomState::new().hash_one(id)),
            connections: LiveConnections::default(),
            trace_ids: Ids::new(),
            copies: Cell::new(0),
            live: Cell::new(0),
            idle: Notify::new(),
        }
    }

    /// The settings in force now, to be kept for as long as the request or tunnel lasts.
    pub(crate) fn settings(&self) -> Pinned {
        self.view.borrow_mut().settings()
    }

    /// Whether any route is in force; without one nothing need be known of a request.
    pub(crate) fn has_routes(&self) -> bool {
        self.view.borrow_mut().in_force().has_routes()
    }

    /// The same, without `defaults`, which lead nowhere else.
    pub(crate) fn has_own_routes(&self) -> bool {
        self.view.borrow_mut().in_force().has_own_routes()
    }

    /// Whether some route asks for what stands in a ClientHello.
    pub(crate) fn asks_tls(&self) -> bool {
        self.view.borrow_mut().in_force().asks_tls()
    }

    /// Where the routes in force lead.
    pub(crate) fn route(&self, subject: &Subject<'_>) -> Routed {
        self.view.borrow_mut().in_force().route(subject, &self.rng)
    }

    /// Writes `record` to the access logs in force that want it.
    pub(crate) fn log(&self, record: &Record<'_>) {
        if let Some(logs) = self.view.borrow_mut().in_force().logs() {
            logs.write(self.id, record, &self.rng);
        }
    }

    /// What the access logs in force need of a request beyond its record.
    pub(crate) fn captured(&self) -> Option<Captured> {
        let mut view = self.view.borrow_mut();
        let wanted = view.in_force().logs()?.wanted()?;
        Some(Captured::new(wanted.clone()))
    }

    /// Closes what is idle, for descriptors; tells whether there was any.
    pub fn make_room(&self) -> bool {
        self.http1_pool.clear() + self.http2_pool.clear() > 0
    }
}

/// Runs a worker until its connections have drained or the deadline has cut them.
pub async fn run(
    worker: Rc<Worker>,
    listeners: Vec<TcpListener>,
    mut phase: watch::Receiver<Phase>,
) {
    let listeners: Vec<_> = listeners.into_iter().map(Rc::new).collect();
    worker
        .shared
        .metrics
        .runtime_of(worker.id, tokio::runtime::Handle::current().metrics());
    task::spawn_local(live::answer(worker.clone()));
    let mut accepting = Vec::new();
    loop {
        // An error means that the control thread is gone, and with it the reason to serve.
        let now = *phase.borrow_and_update();
        match now {
            Phase::Serving => {
                let is_accepting = Accepting::begin(&worker.shared);
                let accept =
                    |listener: &Rc<TcpListener>| accept_all(worker.clone(), listener.clone());
                accepting.extend(listeners.iter().map(|l| task::spawn_local(accept(l))));
                task::spawn_local(answer_pulse(worker.clone(), &accepting));
                let next = phase.wait_for(|p| *p != Phase::Serving).await;
                if next.is_ok_and(|next| *next == Phase::Yielding) {
                    // Between two connections: what has been accepted has a task of its own.
                    for task in accepting.drain(..) {
                        task.abort();
                        let _ = task.await;
                    }
                }
                drop(is_accepting);
            }
            Phase::Yielding if phase.changed().await.is_ok() => {}
            Phase::Yielding | Phase::Draining | Phase::Stopping => break,
        }
        if phase.has_changed().is_err() {
            break;
        }
    }
    drop(listeners);
    worker.drain.start();
    let drained = async {
        for listener in accepting {
            let _ = listener.await;
        }
        while worker.live.get() > 0 {
            worker.idle.notified().await;
        }
    };
    tokio::select! {
        () = drained => {}
        _ = phase.wait_for(|p| *p == Phase::Stopping) => {}
    }
}

/// For as long as every listener is accepted from.
fn answer_pulse(
    worker: Rc<Worker>,
    accepting: &[task::JoinHandle<()>],
) -> impl Future<Output = ()> + use<> {
    let accepting: Vec<_> = accepting
        .iter()
        .map(task::JoinHandle::abort_handle)
        .collect();
    async move {
        let is_accepting = || {
            // So that a worker without traffic, too, lets go of what is no longer in force.
            worker.view.borrow_mut().in_force();
            !accepting.iter().any(task::AbortHandle::is_finished)
        };
        let pulse = &worker.shared.control.pulse;
        pulse.answer(worker.id, is_accepting).await;
    }
}

/// Accepts until draining has begun and the queue is empty.
async fn accept_all(worker: Rc<Worker>, listener: Rc<TcpListener>) {
    let mut queue = accept::Queue::new(listener, worker.shared.clone(), {
        let worker = worker.clone();
        move || worker.make_room()
    });
    while let Some((stream, client)) = queue.next(&worker.drain).await {
        worker.shared.metrics.connection_accepted(worker.id);
        let Some(guard) = LiveConnection::begin(&worker) else {
            accept::refuse(&worker.shared, stream, client);
            continue;
        };
        task::spawn_local(connection::serve(worker.clone(), stream, client, guard));
    }
}

/// Counts a connection of this worker, and of the process, until dropped.
#[derive(Debug)]
pub struct LiveConnection {
    worker: Rc<Worker>,
}

impl LiveConnection {
    fn begin(worker: &Rc<Worker>) -> Option<Self> {
        worker.shared.connections.admit().then(|| {
            worker.live.set(worker.live.get() + 1);
            Self {
                worker: worker.clone(),
            }
        })
    }
}

impl Drop for LiveConnection {
    fn drop(&mut self) {
        self.worker.shared.connections.release();
        let live = self.worker.live.get() - 1;
        self.worker.live.set(live);
        if live == 0 {
            self.worker.idle.notify_one();
        }
    }
}
