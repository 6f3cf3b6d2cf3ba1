//! The way of a captured connection, from accept to its end. Each step is a module of its own and
//! none calls the next:
//!
//! accept → original destination → detect → forward (per request: route, admit, balance, check out,
//! relay, record).
//!
//! A probe of the gate, or of our own heartbeat, ends after the original destination with an answer of its own.
//!
//! Failure edges: a connection that nobody redirected, or that is our own, is reset and counted;
//! after that every failure is told by the forwarder in the protocol that the client speaks.

use std::{rc::Rc, sync::Arc, time::Instant};

use outrigger_config::{HttpRequest, Subject};
use tokio::{io::Interest, net::TcpStream};

use crate::{
    accept,
    address::{ClientAddr, OriginalDst},
    cluster::Destination,
    control::is_probe,
    detect::{self, ClientHello, Detected},
    failure::Failure,
    forward,
    observe::{Record, trace::Trace},
    rate_limit::{self, Verdict},
    route::Routed,
    worker::{LiveConnection, Worker},
};

/// What every step knows of its connection.
#[derive(Debug)]
pub struct Connection {
    pub worker: Rc<Worker>,
    pub client: ClientAddr,
    pub original: OriginalDst,
    pub destination: Arc<Destination>,
    pub accepted: Instant,
}

impl Connection {
    /// Where it goes, with what is known of it.
    pub fn route(&self, hello: Option<&ClientHello>) -> Routed {
        if !self.worker.has_routes() {
            return Routed::default();
        }
        self.worker.route(&Subject {
            sni: hello.and_then(|hello| hello.server_name.as_deref()),
            alpn: hello.map_or(&[], |hello| &hello.alpn),
            ..Subject::at(self.original.0)
        })
    }

    /// Where a request of it goes; for when there are routes.
    pub fn route_request(&self, request: HttpRequest<'_>) -> Routed {
        self.worker.route(&Subject {
            request: Some(request),
            ..Subject::at(self.original.0)
        })
    }

    /// What the limits of its route and cluster say of the connection, or of a request of it; none if
    /// it has none.
    pub fn judge(&self, routed: &Routed, request: Option<HttpRequest<'_>>) -> Option<Verdict> {
        let lists = routed.rate_limits();
        if lists.iter().all(Option::is_none) {
            return None;
        }
        let subject = rate_limit::Subject {
            client: self.client.0.ip(),
            destination: self.original.0,
            cluster: routed.target.cluster(),
            request,
        };
        let worker = &self.worker;
        let limits = &worker.shared.rate_limits;
        Some(rate_limit::judge(limits, lists, &subject, &worker.rng))
    }

    /// Lets a connection of which no request is known pass when its limits do.
    ///
    /// # Errors
    /// That they do not; `ClientClosed` when `client` is reset meanwhile.
    pub async fn admit(&self, routed: &Routed, client: &TcpStream) -> Result<(), Failure> {
        let decided = match self.judge(routed, None) {
            None | Some(Verdict::Admitted(_)) => return Ok(()),
            Some(Verdict::Refused(refusal)) => return Err(refusal.failure),
            Some(Verdict::Undecided(undecided)) => tokio::select! {
                decided = Box::pin(undecided.decide()) => decided,
                _ = client.ready(Interest::ERROR) => return Err(Failure::ClientClosed),
            },
        };
        decided.map(drop).map_err(|refusal| refusal.failure)
    }

    /// Exports the trace of what was recorded so, if it is to be exported.
    pub(crate) fn trace<'h>(
        &self,
        trace: &Trace,
        record: &Record<'_>,
        headers: impl FnOnce(&mut dyn FnMut(&'h [u8], &'h [u8])),
    ) {
        let worker = &self.worker;
        trace.finish(&worker.shared.tracer, worker.id, record, headers);
    }

    /// Tells metrics and the access log of a finished request or connection.
    pub fn record(&self, record: &Record<'_>) {
        self.destination.metrics.observe(self.worker.id, record);
        self.destination.exemplars.note(record);
        if let Some(log) = &self.worker.shared.access_log {
            log.write(self.worker.id, record);
        }
    }
}

/// Serves one accepted connection to its end.
pub async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    client: ClientAddr,
    _live: LiveConnection,
) {
    let accepted = Instant::now();
    let original = match accept::original_destination(&worker.shared, &stream, client) {
        Ok(original) => original,
        Err(failure) => return refuse(&worker, stream, client, failure),
    };
    let control = &worker.shared.control;
    if control.canary.is_expected(original.0) {
        return control.canary.answer(stream, original.0, worker.id).await;
    }
    let is_probe = |listener| is_probe(original.0, listener);
    if stream.local_addr().is_ok_and(is_probe) {
        return control.answer_probe(stream).await;
    }
    let destination = worker.shared.registry.destination(original.0, accepted);
    let connection = Connection {
        worker,
        client,
        original,
        destination,
        accepted,
    };
    let first = match detect::first_bytes(&connection, &stream).await {
        Ok(first) => first,
        Err(failure) => return forward::opaque::fail(connection, stream, failure),
    };
    // Each forwarder's state is large and lives in an allocation of its own, so that a connection
    // costs only what its protocol needs.
    match first.detected {
        Detected::Http1 => Box::pin(forward::http1::serve(connection, stream, first)).await,
        Detected::Http2 => Box::pin(forward::http2::serve(connection, stream, first)).await,
        Detected::Tls(_) | Detected::Opaque => {
            Box::pin(forward::opaque::serve(connection, stream, first)).await;
        }
    }
}

fn refuse(worker: &Worker, stream: TcpStream, client: ClientAddr, failure: Failure) {
    worker.shared.connection_refused(client, failure);
    accept::reset(stream);
}
