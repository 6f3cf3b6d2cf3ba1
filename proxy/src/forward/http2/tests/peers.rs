//! The two sides of the proxy.

use std::{cell::Cell, future::Future, net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, client::SendRequest, server, server::SendResponse};
use http::{HeaderMap, Request, Response, StatusCode};
use outrigger_config::Settings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task,
};

use crate::{
    buffer::Buffer,
    cluster::Cluster,
    detect::{Detected, First},
    forward::http2::serve,
    testing,
    worker::Worker,
};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) fn worker() -> Rc<Worker> {
    testing::worker(Settings::default())
}

/// A connection through the proxy to `to`, as the application sees it.
pub(super) async fn connect(worker: &Rc<Worker>, to: SocketAddr) -> TcpStream {
    connect_after(worker, to, b"").await
}

/// The same, where detection has already read `bytes`.
pub(super) async fn connect_after(worker: &Rc<Worker>, to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let (accepted, connected) = testing::pair().await;
    // As the listener does, and every HTTP/2 client: else WINDOW_UPDATEs wait for acknowledgements.
    accepted.set_nodelay(true).expect("TCP_NODELAY");
    connected.set_nodelay(true).expect("TCP_NODELAY");
    let mut client_bytes = Buffer::default();
    client_bytes.extend(bytes);
    let first = First {
        detected: Detected::Http2,
        client_bytes,
        upstream_bytes: Buffer::default(),
        dialled: None,
        routed: None,
    };
    task::spawn_local(serve(testing::connection(worker, to), accepted, first));
    connected
}

/// An HTTP/2 client through the proxy.
pub(super) async fn client(worker: &Rc<Worker>, to: SocketAddr) -> SendRequest<Bytes> {
    client_with(worker, to, &client::Builder::new()).await
}

pub(super) async fn client_with(
    worker: &Rc<Worker>,
    to: SocketAddr,
    builder: &client::Builder,
) -> SendRequest<Bytes> {
    let stream = connect(worker, to).await;
    let (requests, connection) = builder.handshake(stream).await.expect("a handshake");
    task::spawn_local(connection);
    requests
}

/// A destination that serves each request with `handler`.
pub(super) struct Destination {
    pub(super) address: SocketAddr,
    /// Connections accepted so far.
    pub(super) connections: Rc<Cell<usize>>,
    /// Connections open now.
    pub(super) open: Rc<Cell<usize>>,
}

pub(super) async fn destination<H, F>(handler: H) -> Destination
where
    H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + 'static,
    F: Future<Output = ()> + 'static,
{
    destination_with(server::Builder::new(), handler).await
}

pub(super) async fn destination_with<H, F>(builder: server::Builder, handler: H) -> Destination
where
    H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + 'static,
    F: Future<Output = ()> + 'static,
{
    let (listener, address) = testing::listener().await;
    let connections = Rc::new(Cell::new(0));
    let open = Rc::new(Cell::new(0));
    let (counted, counted_open) = (connections.clone(), open.clone());
    task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("TCP_NODELAY");
            counted.set(counted.get() + 1);
            counted_open.set(counted_open.get() + 1);
            let (builder, handler, open) = (builder.clone(), handler.clone(), counted_open.clone());
            task::spawn_local(async move {
                if let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await {
                    while let Some(Ok((request, response))) = connection.accept().await {
                        task::spawn_local(handler(request, response));
                    }
                }
                open.set(open.get() - 1);
            });
        }
    });
    Destination {
        address,
        connections,
        open,
    }
}

pub(super) async fn ok(_request: Request<RecvStream>, mut response: SendResponse<Bytes>) {
    response
        .send_response(Response::new(()), true)
        .expect("sent");
}

pub(super) fn get(path: &str) -> Request<()> {
    Request::get(format!("http://service.test{path}"))
        .body(())
        .expect("a request")
}

pub(super) fn post(path: &str) -> Request<()> {
    Request::post(format!("http://service.test{path}"))
        .body(())
        .expect("a request")
}

/// Sends a request without a body and waits for the head of its response.
pub(super) async fn ask(
    client: &SendRequest<Bytes>,
    request: Request<()>,
) -> Result<Response<RecvStream>, h2::Error> {
    let mut client = client.clone().ready().await?;
    let (response, _) = client.send_request(request, true)?;
    response.await
}

/// Sends a request whose body follows.
pub(super) async fn start(
    client: &SendRequest<Bytes>,
    request: Request<()>,
) -> (client::ResponseFuture, SendStream<Bytes>) {
    let mut client = client.clone().ready().await.expect("ready");
    client.send_request(request, false).expect("sent")
}

/// Reads a body to its end, acknowledging all of it.
pub(super) async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

pub(super) async fn trailers(body: &mut RecvStream) -> Option<HeaderMap> {
    body.trailers().await.expect("no error")
}

/// Sends `size` bytes as fast as flow control lets it, then the end.
pub(super) async fn send_all(sink: &mut SendStream<Bytes>, size: usize) -> Result<(), h2::Error> {
    let mut left = size;
    while left > 0 {
        sink.reserve_capacity(left.min(64 * 1024));
        let capacity = std::future::poll_fn(|cx| sink.poll_capacity(cx)).await;
        let Some(capacity) = capacity.transpose()? else {
            return Ok(());
        };
        let size = capacity.min(left);
        sink.send_data(Bytes::from(vec![b'x'; size]), false)?;
        left -= size;
    }
    sink.send_data(Bytes::new(), true)
}

/// The type of failure that a response of the proxy's own tells.
pub(super) fn proxy_error<T>(response: &Response<T>) -> (StatusCode, String) {
    let header = response
        .headers()
        .get("proxy-status")
        .expect("Proxy-Status");
    let text = header.to_str().expect("text");
    let error = text
        .split("; ")
        .find_map(|p| p.strip_prefix("error="))
        .expect("an error type");
    (response.status(), error.to_owned())
}

/// Waits until `condition` holds; the test's deadline bounds it.
pub(super) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// One frame, as bytes.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;

/// `:status: 200`, from the static table.
pub(super) const STATUS_200: &[u8] = &[0x88];

/// A server or client that speaks frame by frame.
pub(super) struct RawPeer(pub(super) TcpStream);

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl RawPeer {
    /// The server's side: reads the preface and sends SETTINGS with `settings`.
    pub(super) async fn server(mut stream: TcpStream, settings: &[(u16, u32)]) -> Self {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await.expect("a preface");
        assert_eq!(preface, PREFACE);
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let mut peer = Self(stream);
        peer.send(SETTINGS, 0, 0, &payload).await;
        peer
    }

    pub(super) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let frame = frame(kind, flags, stream, payload);
        self.0.write_all(&frame).await.expect("sent");
    }

    /// The next frame; none at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; size];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind: head[3],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// The next frame of a kind; none at the end of the connection.
    pub(super) async fn next_of_or_end(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    pub(super) async fn next_of(&mut self, kind: u8) -> Frame {
        let frame = self.next_of_or_end(kind).await;
        frame.expect("a frame before the end")
    }
}

/// A worker whose cluster `service`, with more of its keys, has `endpoint`; all traffic goes there.
pub(super) fn clustered(endpoint: SocketAddr, more: &str) -> (Rc<Worker>, Arc<Cluster>) {
    let text = format!(
        "clusters: [{{ name: service, endpoints: [{{ address: '{endpoint}' }}], {more} }}]\n\
         routes: [{{ match: {{}}, cluster: service }}]\n"
    );
    let worker = testing::configured(&text);
    let cluster = worker.shared.clusters.find("service");
    (worker, cluster.expect("it is configured"))
}
