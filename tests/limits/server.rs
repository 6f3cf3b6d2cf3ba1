//! A rate limit service for tests: HTTP/2 and gRPC by the h2 crate, its messages read field by field.

use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use http::{HeaderMap, Response};

/// Codes of `RateLimitResponse`, as Envoy's definitions encode them.
pub(crate) const OK: &str = "0801";

/// Over 500 a minute for 17 s more; with a header each way and a body.
pub(crate) const OVER: &str = "0802120d0802120508f4031002220208111a0e0a05782d776879120571756f746122\
                               0b0a05782d7261771a0261622a0a736c6f7720646f776e0a";

/// The same without anything to add, and without saying until when.
pub(crate) const OVER_NOW: &str = "080212020802";

/// Passes, with a header for the request (`x-one: r`) and one for the response (`x-why: quota`).
pub(crate) const OK_WITH_HEADERS: &str =
    "08011a0e0a05782d776879120571756f746122 0a0a05782d6f6e65120172";

/// One question: its domain, and the entries of each descriptor as `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) domain: String,
    pub(crate) descriptors: Vec<Vec<String>>,
}

type Answer = dyn Fn(&Asked) -> Option<&'static str> + Send + Sync;

/// Ends with the process; its listener is the test's namespace's.
pub(crate) struct Server {
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Answers each question with what `answer` says, in hex; never, where that is nothing.
    pub(crate) fn start(
        listener: TcpListener,
        answer: impl Fn(&Asked) -> Option<&'static str> + Send + Sync + 'static,
    ) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer): (_, Arc<Answer>) = (asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("an event loop");
            runtime.block_on(serve(listener, log, answer));
        });
        Self { asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

async fn serve(listener: TcpListener, log: Arc<Mutex<Vec<Asked>>>, answer: Arc<Answer>) {
    listener.set_nonblocking(true).expect("a socket");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let (log, answer) = (log.clone(), answer.clone());
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let (log, answer) = (log.clone(), answer.clone());
                tokio::spawn(async move {
                    assert_eq!(
                        request.uri().path(),
                        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
                    );
                    let mut body = request.into_body();
                    let mut frame = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                        frame.extend_from_slice(&data);
                    }
                    let asked = read(&frame[5..]);
                    log.lock().expect("no panic").push(asked.clone());
                    reply(respond, answer(&asked)).await;
                });
            }
        });
    }
}

async fn reply(mut respond: h2::server::SendResponse<Bytes>, answer: Option<&str>) {
    let Some(hex) = answer else {
        return std::future::pending().await;
    };
    let message = bytes(hex);
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let mut head = Response::new(());
    let kind = "application/grpc".parse().expect("a value");
    head.headers_mut().insert("content-type", kind);
    let Ok(mut sent) = respond.send_response(head, false) else {
        return;
    };
    let _ = sent.send_data(frame.into(), false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    let _ = sent.send_trailers(trailers);
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16);
    digits
        .chunks(2)
        .map(|pair| byte(pair).expect("hex"))
        .collect()
}

/// `RateLimitRequest { domain = 1, descriptors = 2 { entries = 1 { key = 1, value = 2 } } }`.
fn read(message: &[u8]) -> Asked {
    let mut asked = Asked {
        domain: String::new(),
        descriptors: Vec::new(),
    };
    for (number, value) in fields(message) {
        match number {
            1 => asked.domain = text(value),
            2 => {
                let entries = fields(value).into_iter().filter(|(number, _)| *number == 1);
                let entry = |entry: &[u8]| {
                    let parts = fields(entry).into_iter().map(|(_, part)| text(part));
                    parts.collect::<Vec<_>>().join("=")
                };
                asked
                    .descriptors
                    .push(entries.map(|(_, e)| entry(e)).collect());
            }
            _ => {}
        }
    }
    asked
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The fields of a message that have a length; short ones, as tests send.
fn fields(mut message: &[u8]) -> Vec<(u8, &[u8])> {
    let mut fields = Vec::new();
    while let [tag, length, rest @ ..] = message {
        assert!(length & 0x80 == 0, "longer than a test sends");
        if tag & 7 == 0 {
            message = rest;
            continue;
        }
        assert_eq!(tag & 7, 2, "a field with a length");
        let (value, after) = rest.split_at(usize::from(*length));
        fields.push((tag >> 3, value));
        message = after;
    }
    fields
}
