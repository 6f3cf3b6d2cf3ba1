//! The thread that keeps all clusters up to date. It is neither a worker nor the control thread:
//! ten thousand clusters take longer to arrange than a lease on the capture lasts between beats.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use outrigger_config::{Cluster as Settings, Locality, Snapshot};
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
};

use super::{Clusters, Manager};

/// How long clusters that left the configuration can be found by requests that began under it.
const LINGER: Duration = Duration::from_secs(60);

/// A handle to the thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
}

struct Order {
    wanted: Vec<Arc<Settings>>,
    defaults: Option<Arc<Settings>>,
    locality: Locality,
    done: oneshot::Sender<()>,
}

impl Keeper {
    /// # Errors
    /// When the thread or its event loop cannot be had.
    pub fn start(clusters: Arc<Clusters>, seed: u64) -> io::Result<Self> {
        let (orders, received) = mpsc::unbounded_channel();
        let (started, start) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("clusters".into())
            .spawn(move || {
                let runtime = Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default());
                match runtime {
                    Ok(runtime) => {
                        // Whoever started it may have gone; then there are no orders either.
                        let _ = started.send(Ok(()));
                        runtime.block_on(obey(received, Manager::new(clusters, seed)));
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            })?;
        start
            .recv()
            .map_err(|_| io::Error::other("the thread for clusters ended while it started"))??;
        Ok(Self { orders })
    }

    /// Makes the clusters those of `snapshot`; the future ends when they are published. Publish the
    /// snapshot after that, so that whoever sees it finds its clusters.
    pub fn apply(&self, snapshot: &Snapshot) -> impl Future<Output = ()> + use<> {
        let (done, applied) = oneshot::channel();
        let order = Order {
            wanted: snapshot.clusters.values().cloned().collect(),
            defaults: snapshot.defaults.clone(),
            locality: snapshot.settings.locality.clone(),
            done,
        };
        let sent = self.orders.send(order);
        async move {
            if sent.is_err() || applied.await.is_err() {
                tracing::error!(
                    "the thread for clusters has ended; this is a bug, and the log above has its place"
                );
            }
        }
    }
}

async fn obey(mut orders: mpsc::UnboundedReceiver<Order>, mut manager: Manager) {
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = tokio::time::sleep(LINGER) => {
                manager.forget_gone();
                continue;
            }
        };
        let Some(order) = order else { return };
        let defaults = order.defaults;
        manager.apply(&order.wanted, defaults, &order.locality, Instant::now());
        // Who asked may have given up waiting.
        let _ = order.done.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_can_be_found_and_what_is_gone_still_can_for_a_while() {
        let clusters = Arc::new(Clusters::default());
        let keeper = Keeper::start(clusters.clone(), 1).expect("a thread");
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let apply = |text: &str| {
            let settings = outrigger_config::parse(text).expect("good settings");
            runtime.block_on(keeper.apply(&Snapshot::compile(settings, None)));
        };
        apply("clusters: [{ name: a, endpoints: [{ address: '192.0.2.1:80' }] }]");
        assert_eq!(clusters.find("a").expect("a").endpoints().len(), 1);
        assert!(clusters.defaults().is_none());
        apply("defaults: { circuit_breaker: { max_requests: 1 } }");
        assert!(clusters.find("a").is_some(), "a request of before needs it");
        let defaults = clusters.defaults().expect("a policy");
        assert_eq!(clusters.all().len(), 1);
        assert_eq!(defaults.settings().circuit_breaker.max_requests, 1);
    }
}
