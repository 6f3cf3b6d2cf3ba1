//! A collector of the test's own: OTLP over gRPC and over HTTP, read by the official types. It does
//! what it is told: take spans, refuse them, be busy, or say nothing at all.

use std::{
    future::pending,
    io,
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use h2::{RecvStream, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

use crate::support::{SOON, World, wait_for};

/// Where the proxies send.
pub(crate) const GRPC: &str = "http://198.51.100.2:4317";
pub(crate) const HTTP: &str = "http://198.51.100.2:4318";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Takes,
    /// A gRPC status, or one of HTTP.
    Answers(u16),
    /// Takes all but so many.
    Rejects(i64),
    /// Too busy now, over HTTP: in so many seconds.
    Later(u64),
    SaysNothing,
}

/// One span, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) resource: Vec<KeyValue>,
    pub(crate) span: Span,
}

/// Stops when dropped, and its connections with it.
pub(crate) struct Collector {
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct State {
    mood: Mutex<Mood>,
    received: Mutex<Vec<Received>>,
    /// Of each export.
    headers: Mutex<Vec<HeaderMap>>,
}

impl Collector {
    /// Of OTLP over gRPC, at [`GRPC`].
    pub(crate) fn grpc(world: &World) -> Self {
        Self::grpc_at(world, 4317)
    }

    pub(crate) fn grpc_at(world: &World, port: u16) -> Self {
        Self::start(world.svc.listen(port), serve_grpc)
    }

    /// Of OTLP over HTTP, at [`HTTP`].
    pub(crate) fn http(world: &World) -> Self {
        Self::start(world.svc.listen(4318), serve_http)
    }

    fn start<F>(listener: TcpListener, serve: fn(TcpStream, Arc<State>) -> F) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let state = Arc::new(State {
            mood: Mutex::new(Mood::Takes),
            received: Mutex::default(),
            headers: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let of_thread = state.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(tokio::runtime::LocalOptions::default())
                .expect("an event loop");
            runtime.block_on(async {
                listener.set_nonblocking(true).expect("a socket");
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                let accepting = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::task::spawn_local(serve(stream, of_thread.clone()));
                    }
                };
                tokio::select! {
                    () = accepting => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            state,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn be(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// The headers of the exports so far.
    pub(crate) fn headers(&self) -> Vec<HeaderMap> {
        self.state.headers.lock().unwrap().clone()
    }

    /// The spans, once there are as many.
    #[track_caller]
    pub(crate) fn spans(&self, count: usize) -> Vec<Span> {
        let spans = wait_for(SOON, &format!("{count} spans"), || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        });
        let spans: Vec<_> = spans.into_iter().map(|received| received.span).collect();
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// The server and the client span of one request, and that they fit together.
    #[track_caller]
    pub(crate) fn pair(&self) -> (Span, Span) {
        let spans = self.spans(2);
        let of = |kind| {
            let found = spans.iter().find(|span| span.kind == kind as i32);
            found
                .unwrap_or_else(|| panic!("{kind:?} in {spans:#?}"))
                .clone()
        };
        let (server, client) = (of(SpanKind::Server), of(SpanKind::Client));
        assert_eq!(server.trace_id, client.trace_id);
        assert_eq!(server.span_id, client.parent_span_id);
        (server, client)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn mood(&self) -> Mood {
        *self.mood.lock().unwrap()
    }

    /// Reads an export, and makes the answer.
    fn take(&self, headers: &HeaderMap, message: &[u8]) -> Bytes {
        let request = ExportTraceServiceRequest::decode(message).expect("OTLP");
        self.headers.lock().unwrap().push(headers.clone());
        let mut received = self.received.lock().unwrap();
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            for scope in resource.scope_spans {
                received.extend(scope.spans.into_iter().map(|span| Received {
                    resource: attributes.clone(),
                    span,
                }));
            }
        }
        let rejected = match self.mood() {
            Mood::Rejects(rejected_spans) => Some(ExportTracePartialSuccess {
                rejected_spans,
                error_message: "not today".into(),
            }),
            _ => None,
        };
        let answer = ExportTraceServiceResponse {
            partial_success: rejected,
        };
        answer.encode_to_vec().into()
    }
}

async fn serve_grpc(stream: TcpStream, state: Arc<State>) {
    let Ok(mut connection) = server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, answer))) = connection.accept().await {
        tokio::task::spawn_local(answer_grpc(request, answer, state.clone()));
    }
}

async fn answer_grpc(
    request: Request<RecvStream>,
    mut answer: server::SendResponse<Bytes>,
    state: Arc<State>,
) {
    let (head, mut body) = request.into_parts();
    assert_eq!(
        head.uri.path(),
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    );
    assert_eq!(head.headers["te"], "trailers");
    let mut frame = Vec::new();
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        frame.extend_from_slice(&chunk);
    }
    let status = |status: u16| {
        let value = HeaderValue::from(status);
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), value)])
    };
    let head_of = |more: HeaderMap| {
        let mut head = Response::new(());
        *head.headers_mut() = more;
        let kind = HeaderValue::from_static("application/grpc");
        head.headers_mut().insert("content-type", kind);
        head
    };
    match state.mood() {
        Mood::SaysNothing | Mood::Later(_) => pending().await,
        Mood::Answers(code) => {
            let _ = answer.send_response(head_of(status(code)), true);
        }
        Mood::Takes | Mood::Rejects(_) => {
            let (prefix, message) = frame.split_at(5);
            assert_eq!(prefix[0], 0, "not compressed");
            assert_eq!(prefix[1..], (message.len() as u32).to_be_bytes());
            let message = state.take(&head.headers, message);
            let mut frame = vec![0];
            frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
            frame.extend_from_slice(&message);
            if let Ok(mut stream) = answer.send_response(head_of(HeaderMap::new()), false) {
                let _ = stream.send_data(frame.into(), false);
                let _ = stream.send_trailers(status(0));
            }
        }
    }
}

async fn serve_http(mut stream: TcpStream, state: Arc<State>) {
    // A client that is gone is none of the collector's business.
    while let Ok(()) = answer_http(&mut stream, &state).await {}
}

async fn answer_http(stream: &mut TcpStream, state: &State) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).expect("ASCII");
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("POST /v1/traces HTTP/1.1"));
    let headers: HeaderMap = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| {
            (
                name.parse().expect("a name"),
                value.parse().expect("a value"),
            )
        })
        .collect();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let length = headers["content-length"].to_str().expect("digits");
    let mut message = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut message).await?;
    let mut more = String::new();
    let (status, body) = match state.mood() {
        Mood::SaysNothing => pending().await,
        Mood::Later(seconds) => {
            more = format!("Retry-After: {seconds}\r\n");
            (503, Bytes::new())
        }
        Mood::Answers(status) => (status, Bytes::new()),
        Mood::Takes | Mood::Rejects(_) => (200, state.take(&headers, &message)),
    };
    let head = format!(
        "HTTP/1.1 {status} x\r\n{more}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await
}

/// An attribute's value as text.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let found = attribute(&span.attributes, key);
        assert_eq!(found.as_deref(), Some(*value), "{key} of {span:#?}");
    }
}

pub(crate) fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
