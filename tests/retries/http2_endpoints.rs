//! HTTP/2 endpoints with one script, as [`crate::endpoints`]; and a client that makes calls.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::oneshot,
    task,
};

use crate::{endpoints::service, support::World};

/// What an endpoint does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    /// Echoes the body, with gRPC's trailers.
    Echoes,
    /// A status of HTTP.
    Status(u16),
    /// A status of gRPC, in a head that is all of the answer.
    Grpc(&'static str),
    /// The head of an answer, and nothing more.
    Begins,
    Resets(Reason),
    Hangs,
}

/// A request as an endpoint saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    script: Mutex<VecDeque<Does>>,
    seen: Mutex<Vec<Seen>>,
}

pub(crate) struct Http2Endpoints {
    shared: Arc<Shared>,
    _stop: Vec<oneshot::Sender<()>>,
}

impl Http2Endpoints {
    pub(crate) fn start(world: &World) -> Self {
        let shared = Arc::<Shared>::default();
        let stop = [9001, 9002].map(|port| serve(world, port, shared.clone()));
        Self {
            shared,
            _stop: stop.into(),
        }
    }

    /// From the next request on.
    pub(crate) fn will(&self, script: impl IntoIterator<Item = Does>) {
        self.shared.seen.lock().expect("no panic").clear();
        *self.shared.script.lock().expect("no panic") = script.into_iter().collect();
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }
}

/// On a thread of its own, until the sender goes.
fn serve(world: &World, port: u16, shared: Arc<Shared>) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel();
    let listener = world.svc.listen(port);
    listener.set_nonblocking(true).expect("a socket");
    thread::spawn(move || {
        run(async move {
            let listener = TcpListener::from_std(listener).expect("a runtime");
            let serving = async {
                while let Ok((stream, _)) = listener.accept().await {
                    task::spawn_local(connection(stream, shared.clone()));
                }
            };
            tokio::select! {
                () = serving => {}
                _ = stopped => {}
            }
        });
    });
    stop
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) -> Result<(), h2::Error> {
    let mut connection = server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let shared = shared.clone();
        task::spawn_local(async move { answer(request, respond, &shared).await });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    shared: &Shared,
) -> Result<(), h2::Error> {
    let (head, body) = request.into_parts();
    let does = shared.script.lock().expect("no panic").pop_front();
    // One that refuses has not looked at it.
    if let Some(Does::Resets(Reason::REFUSED_STREAM)) = does {
        respond.send_reset(Reason::REFUSED_STREAM);
        return Ok(());
    }
    let (body, _) = read_all(body).await?;
    shared.seen.lock().expect("no panic").push(Seen {
        headers: head.headers,
        body: body.clone(),
    });
    let grpc = Response::builder().header("content-type", "application/grpc");
    match does.unwrap_or(Does::Echoes) {
        Does::Echoes => {
            let head = grpc.body(()).expect("a head");
            let mut stream = respond.send_response(head, false)?;
            stream.send_data(body.into(), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", 0.into());
            stream.send_trailers(trailers)
        }
        Does::Status(status) => {
            let head = Response::builder().status(status).body(()).expect("a head");
            respond.send_response(head, true).map(drop)
        }
        Does::Grpc(status) => {
            let head = grpc.header("grpc-status", status).body(()).expect("a head");
            respond.send_response(head, true).map(drop)
        }
        Does::Begins => {
            let head = grpc.body(()).expect("a head");
            let mut stream = respond.send_response(head, false)?;
            stream.send_data(Bytes::from_static(b"half"), false)?;
            std::future::poll_fn(|cx| stream.poll_reset(cx))
                .await
                .map(drop)
        }
        Does::Resets(reason) => {
            respond.send_reset(reason);
            Ok(())
        }
        Does::Hangs => std::future::poll_fn(|cx| respond.poll_reset(cx))
            .await
            .map(drop),
    }
}

pub(crate) async fn read_all(
    mut body: RecvStream,
) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

/// A client's connection to the service.
pub(crate) struct Caller(client::SendRequest<Bytes>);

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    /// Of gRPC, wherever it stands.
    pub(crate) fn grpc_status(&self) -> Option<&str> {
        let trailers = self.trailers.as_ref().and_then(|t| t.get("grpc-status"));
        let status = trailers.or(self.headers.get("grpc-status"))?;
        status.to_str().ok()
    }
}

impl Caller {
    pub(crate) async fn connect(world: &World) -> Self {
        let stream = world.app.connect(service());
        stream.set_nonblocking(true).expect("a socket");
        let stream = TcpStream::from_std(stream).expect("a runtime");
        let (client, connection) = client::handshake(stream).await.expect("HTTP/2");
        task::spawn_local(connection);
        Self(client)
    }

    /// A POST of `body` with `headers`, as gRPC makes it.
    pub(crate) async fn call(
        &mut self,
        host: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, h2::Error> {
        let headers = [("content-type", "application/grpc"), ("te", "trailers")]
            .into_iter()
            .chain(headers.iter().copied());
        self.ask("POST", host, headers, body).await
    }

    pub(crate) async fn ask(
        &mut self,
        method: &str,
        host: &str,
        headers: impl IntoIterator<Item = (&str, &str)>,
        body: &[u8],
    ) -> Result<Answer, h2::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{host}/pkg.Service/Method"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("a request");
        std::future::poll_fn(|cx| self.0.poll_ready(cx)).await?;
        let (answer, mut stream) = self.0.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true)?;
        }
        let (head, body) = answer.await?.into_parts();
        let (body, trailers) = read_all(body).await?;
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            trailers,
        })
    }
}

/// Runs the client's part, which fails when it takes unduly long.
pub(crate) fn in_runtime(client: impl Future<Output = ()>) {
    run(async {
        let limit = Duration::from_secs(60);
        let ended = tokio::time::timeout(limit, client).await;
        ended.expect("the calls end in time");
    });
}

fn run(future: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    runtime.expect("a runtime").block_on(future);
}
