//! For tests and benches: what a connection needs, without any redirect.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use outrigger_config::Settings;

use crate::{
    address::{ClientAddr, OriginalDst},
    configuration::Configuration,
    connection::Connection,
    shared::Shared,
    worker::Worker,
};

/// What a process shares, with `settings`, listening nowhere.
pub fn shared(settings: Settings) -> Arc<Shared> {
    let shared = Shared::uncaptured(1);
    shared.tracer.follow(settings.tracing.as_ref());
    Arc::new(Shared {
        configuration: Configuration::new(settings),
        ..shared
    })
}

/// The only worker of a process of its own.
pub fn worker(settings: Settings) -> Rc<Worker> {
    Rc::new(Worker::new(0, shared(settings)))
}

/// A connection as if captured on its way to `original`.
pub fn connection(worker: &Rc<Worker>, original: SocketAddr) -> Connection {
    let accepted = Instant::now();
    Connection {
        worker: worker.clone(),
        client: ClientAddr(SocketAddr::from(([127, 0, 0, 1], 1))),
        original: OriginalDst(original),
        destination: worker.shared.registry.destination(original, accepted),
        accepted,
    }
}
