//! Serving the admin listener, within bounds.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::task::{self, AbortHandle};
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};

use super::{
    body::Body,
    listener::{Accepting, From, Stream},
    routes::{answer, plain},
    turns::Turns,
};
use crate::shared::Shared;

/// Connections at once. One more ends the oldest: someone who holds them all open must not keep an
/// orchestrator's probe out, for that would have the process restarted.
const MAX_CONNECTIONS: usize = 64;

/// Requests under way at once, over all connections; further ones get 503.
const MAX_REQUESTS: usize = 16;

/// For one request head to arrive, and for the next to begin.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// For a whole connection: longer than any scrape may take (Prometheus gives up after 10 s unless
/// told otherwise), so that one that has stalled goes away.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes of a request head.
const MAX_HEAD: usize = 16 * 1024;

/// Serves until dropped.
pub(crate) async fn serve(listener: Accepting, shared: Arc<Shared>) {
    let service = service(shared);
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                }
                let connection = task::spawn_local(serve_connection(stream, from, service.clone()));
                connections.push_back(connection.abort_handle());
            }
            Err(error) => survive(&error).await,
        }
    }
}

type Service = BoxCloneService<(From, Request<Incoming>), Response<Body>, BoxError>;

/// The layers around [`answer`]: whatever they turn away is an answer too.
fn service(shared: Arc<Shared>) -> Service {
    let turns = Turns::new();
    let paced = turns.clone();
    let answers = service_fn(move |(from, request): (From, Request<Incoming>)| {
        let (shared, turns) = (shared.clone(), paced.clone());
        async move {
            let response = answer(&shared, from, &request).await;
            Ok::<_, Infallible>(response.map(|body| turns.pace(body)))
        }
    });
    let service = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(MAX_REQUESTS)
        .service(answers);
    let service = ServiceBuilder::new()
        .then(|result: Result<Response<Body>, BoxError>| async move {
            Ok::<_, BoxError>(result.unwrap_or_else(|error| {
                plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("{error}; try again later\n"),
                )
            }))
        })
        .service(service);
    let service: Service = BoxCloneService::new(service);
    // Who waits for a turn is not under way: a crowd of scrapers has no probe turned away.
    BoxCloneService::new(service_fn(move |request: (From, Request<Incoming>)| {
        let (service, turns) = (service.clone(), turns.clone());
        async move {
            turns.next().await;
            service.oneshot(request).await
        }
    }))
}

async fn serve_connection(stream: Box<dyn Stream>, from: From, service: Service) {
    let service = service_fn(move |request| service.clone().oneshot((from, request)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection failed"),
        Err(_) => tracing::debug!("admin connection lasted too long; closed"),
    }
}

async fn survive(error: &io::Error) {
    tracing::warn!(%error, "admin listener cannot accept");
    // Most likely descriptors have run out, which does not pass at once.
    tokio::time::sleep(Duration::from_millis(100)).await;
}
