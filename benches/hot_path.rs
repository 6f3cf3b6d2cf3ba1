//! What a request costs inside the process: telling its protocol, reading heads, taking a pooled
//! connection, and one whole request over loopback. `make bench` runs it; compare runs, not
//! machines.

use std::{hint::black_box, net::SocketAddr, rc::Rc, time::Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use outrigger_config::{Limits, Settings};
use outrigger_proxy::{
    buffer::Buffer,
    detect::{Detected, First, classify::classify},
    forward::http1::{
        self,
        request::{self, RequestHead},
        response::{self, Response},
    },
    uncaptured,
    upstream::connect,
    worker::Worker,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions, LocalRuntime},
    task::spawn_local,
};

/// What a load generator sends.
const SMALL_REQUEST: &[u8] = b"GET /ok HTTP/1.1\r\nHost: 198.51.100.1\r\n\r\n";

/// What a browser or a service mesh's client sends.
const LARGE_REQUEST: &[u8] =
    b"GET /api/v1/accounts/42/statements?from=2026-01-01&to=2026-02-01 HTTP/1.1\r\n\
    Host: accounts.internal.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://accounts.internal.example/overview\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=1\r\n\
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
    X-Request-Id: 5c5bd0d8-93d4-4f8e-8e6d-3f7e2f0a7c11\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Connection: keep-alive\r\n\r\n";

const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n";

fn detection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("detection");
    for (name, bytes) in [
        ("http1", SMALL_REQUEST),
        ("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("opaque", b"\x00\x00\x00\x08\x04\xd2\x16\x2f"),
    ] {
        group.bench_function(name, |bencher| bencher.iter(|| classify(black_box(bytes))));
    }
    group.finish();
}

fn heads(criterion: &mut Criterion) {
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("head");
    for (name, bytes) in [
        ("small request", SMALL_REQUEST),
        ("large request", LARGE_REQUEST),
    ] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| request::parse(black_box(bytes), &limits));
        });
    }
    let request = whole_request(SMALL_REQUEST, &limits);
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    group.bench_function("response", |bencher| {
        bencher.iter(
            || match response::parse(black_box(RESPONSE), &request, &limits) {
                Response::Head(head) => head.len,
                other => panic!("{other:?}"),
            },
        );
    });
    group.finish();
}

fn whole_request(bytes: &[u8], limits: &Limits) -> RequestHead {
    request::parse(bytes, limits)
        .expect("a valid request")
        .expect("a whole one")
}

fn pool_checkout(criterion: &mut Criterion) {
    let runtime = runtime();
    let (worker, idle) = runtime.block_on(async {
        let address = answering_server().await;
        let worker = uncaptured::worker(Settings::default());
        let idle = worker.http1_pool.destination(address);
        for _ in 0..8 {
            let upstream = connect(&worker.shared, address)
                .await
                .expect("a connection");
            let lease = worker.http1_pool.lease(upstream);
            idle.check_in(&worker, lease, Instant::now());
        }
        (worker, idle)
    });
    criterion.bench_function("pool check-out and check-in", |bencher| {
        // Within the runtime, as a worker does it: checking in may start the sweep.
        runtime.block_on(async {
            bencher.iter(|| {
                let now = Instant::now();
                let lease = idle.check_out(now).expect("an idle connection");
                idle.check_in(&worker, lease, now);
            });
        });
    });
}

/// Client, relay and server share this thread, so that the figure is what all three take.
fn request(criterion: &mut Criterion) {
    let runtime = runtime();
    let (address, mut client) = runtime.block_on(async {
        let address = answering_server().await;
        let worker = uncaptured::worker(Settings::default());
        (address, relayed_client(worker, address).await)
    });
    // Spans of sampled ones fill their queue soon; then they are as good as sent.
    let mut traced = [0.0, 1.0].map(|ratio| {
        let text = format!("tracing: {{ endpoint: 'http://[::1]', sampling: {ratio} }}");
        let settings = outrigger_config::parse(&text).expect("good settings");
        let worker = uncaptured::worker(settings);
        let client = runtime.block_on(relayed_client(worker, address));
        (ratio, client)
    });
    let mut direct =
        runtime.block_on(async { TcpStream::connect(address).await.expect("a server") });
    let mut group = criterion.benchmark_group("request over loopback");
    group.bench_function("direct", |bencher| {
        bencher.iter(|| runtime.block_on(ask(&mut direct)));
    });
    group.bench_function("relayed", |bencher| {
        bencher.iter(|| runtime.block_on(ask(&mut client)));
    });
    for (ratio, client) in &mut traced {
        group.bench_function(format!("relayed, traced at {ratio}"), |bencher| {
            bencher.iter(|| runtime.block_on(ask(client)));
        });
    }
    group.finish();
}

fn runtime() -> LocalRuntime {
    Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .expect("an event loop")
}

/// Answers every read with one response.
async fn answering_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("a bound address");
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn_local(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                    if stream.write_all(RESPONSE).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A client whose connection is served by the relay, on its way to `original`.
async fn relayed_client(worker: Rc<Worker>, original: SocketAddr) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("a bound address");
    let client = TcpStream::connect(address).await.expect("a connection");
    let (accepted, _) = listener.accept().await.expect("a connection");
    let connection = uncaptured::connection(&worker, original);
    let first = First {
        detected: Detected::Http1,
        client_bytes: Buffer::default(),
        upstream_bytes: Buffer::default(),
        dialled: None,
        routed: None,
    };
    spawn_local(http1::serve(connection, accepted, first));
    client
}

async fn ask(stream: &mut TcpStream) {
    stream.write_all(SMALL_REQUEST).await.expect("written");
    let mut answer = [0; RESPONSE.len()];
    stream.read_exact(&mut answer).await.expect("an answer");
}

criterion_group!(benches, detection, heads, pool_checkout, request);
criterion_main!(benches);
