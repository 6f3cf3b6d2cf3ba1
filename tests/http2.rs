//! HTTP/2 in the clear, by prior knowledge, gRPC's shapes included.

mod support;

use std::{future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, Request, Response};
use support::{SOON, SVC, SVC4, World, wait_until};
use tokio::net::{TcpListener, TcpStream};

const GRPC: u16 = 50051;

#[test]
fn curl_fetches_a_page_by_prior_knowledge_over_both_families() {
    let world = World::new();
    let nginx = world.nginx();
    let _proxy = world.captured();
    for svc in SVC {
        let host = SocketAddr::from((svc, 8080));
        let page = world.app.sh(&format!(
            "curl -sS --http2-prior-knowledge http://{host}/hello"
        ));
        assert_eq!(page, "hello\n");
    }
    wait_until(SOON, "both are logged", || nginx.requests().len() == 2);
    assert_eq!(nginx.requests()[0], "HTTP/2.0 GET /hello HTTP/2.0 200");
    world.until_counted("outrigger_requests_total", "protocol=\"http2\"", 2.0);
}

#[test]
fn thousands_of_requests_on_many_streams_all_succeed() {
    let world = World::new();
    let _nginx = world.nginx();
    let _proxy = world.captured();
    let report = world
        .app
        .sh("h2load -n 5000 -c 10 -m 50 http://198.51.100.2:8080/hello");
    assert!(
        report.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"),
        "{report}"
    );
}

#[test]
fn clients_that_come_and_go_share_one_upstream_connection() {
    let world = World::new();
    let nginx = world.nginx();
    // Long enough that no client is taken for a silent one, whose destination is dialled at once.
    let proxy = world.serve("workers: 1\ntimeouts: { quiet: 5s }");
    world.capture(&proxy);
    for _ in 0..20 {
        world
            .app
            .sh("curl -sS --http2-prior-knowledge http://198.51.100.2:8080/hello");
    }
    wait_until(SOON, "all are logged", || nginx.requests().len() == 20);
    assert_eq!(nginx.connections(), 1);
}

#[test]
fn a_big_upload_arrives_whole() {
    let world = World::new();
    let nginx = world.nginx();
    std::fs::create_dir(nginx.www().join("put")).unwrap();
    let _proxy = world.captured();
    let (sent, got) = (world.dir().join("sent"), nginx.www().join("put/got"));
    world.app.sh(&format!(
        "head -c 32M /dev/urandom > {sent} && curl -sS -f --http2-prior-knowledge -T {sent} http://198.51.100.2:8080/put/got && cmp {sent} {got}",
        sent = sent.display(),
        got = got.display()
    ));
}

#[test]
fn metadata_messages_and_trailers_of_a_call_arrive() {
    let world = World::new();
    let _server = serve_h2(&world, GRPC, unary);
    let _proxy = world.captured();
    for svc in SVC {
        in_runtime(async {
            let mut client = connect(&world, (svc, GRPC)).await;
            let (answer, mut stream) = client
                .send_request(call("/pkg.Service/Unary"), false)
                .unwrap();
            stream
                .send_data(Bytes::from_static(b"ping"), false)
                .unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-client-trailer", "yes".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.headers()["content-type"], "application/grpc");
            let (body, trailers) = read_all(answer.into_body()).await.unwrap();
            assert_eq!(body, b"ping");
            let trailers = trailers.expect("trailers");
            assert_eq!(trailers["grpc-status"], "0");
            assert_eq!(trailers["x-echoed"], "yes");
        });
    }
}

#[test]
fn an_answer_of_trailers_only_stays_one() {
    let world = World::new();
    let _server = serve_h2(&world, GRPC, async |_request, mut respond| {
        let answer = Response::builder()
            .header("grpc-status", "12")
            .body(())
            .unwrap();
        respond.send_response(answer, true)?;
        Ok(())
    });
    let _proxy = world.captured();
    in_runtime(async {
        let mut client = connect(&world, (SVC4, GRPC)).await;
        let (answer, _) = client
            .send_request(call("/pkg.Service/None"), true)
            .unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "12");
        assert!(answer.body().is_end_stream(), "ends with its head");
    });
}

#[test]
fn both_directions_of_a_stream_flow_at_once() {
    let world = World::new();
    let _server = serve_h2(&world, GRPC, async |request, mut respond| {
        let mut body = request.into_body();
        let mut back = respond.send_response(Response::new(()), false)?;
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            back.send_data(data, false)?;
        }
        back.send_data(Bytes::new(), true)?;
        Ok(())
    });
    let _proxy = world.captured();
    in_runtime(async {
        let mut client = connect(&world, (SVC4, GRPC)).await;
        let (answer, mut to) = client
            .send_request(call("/pkg.Service/Chat"), false)
            .unwrap();
        // The server's head comes before the client has said anything.
        let mut from = answer.await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            to.send_data(Bytes::from(word), false).unwrap();
            let heard = from.data().await.unwrap().unwrap();
            assert_eq!(heard, word);
            from.flow_control().release_capacity(heard.len()).unwrap();
        }
        to.send_data(Bytes::new(), true).unwrap();
        let end = from.data().await;
        assert!(end.is_none_or(|data| data.unwrap().is_empty()));
    });
}

#[test]
fn a_servers_reset_code_reaches_the_client() {
    let world = World::new();
    let _server = serve_h2(&world, GRPC, async |_request, mut respond| {
        let mut stream = respond.send_response(Response::new(()), false)?;
        stream.send_reset(Reason::ENHANCE_YOUR_CALM);
        Ok(())
    });
    let _proxy = world.captured();
    in_runtime(async {
        let mut client = connect(&world, (SVC4, GRPC)).await;
        let (answer, _) = client
            .send_request(call("/pkg.Service/Reset"), true)
            .unwrap();
        let error = match answer.await {
            Err(error) => error,
            Ok(answer) => read_all(answer.into_body()).await.expect_err("it is reset"),
        };
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
    });
}

#[test]
fn a_clients_reset_reaches_the_server() {
    let world = World::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let _server = serve_h2(
        &world,
        GRPC,
        move |request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>| {
            let sender = sender.clone();
            async move {
                let _stream = respond.send_response(Response::new(()), false)?;
                let error = read_all(request.into_body())
                    .await
                    .expect_err("it is reset");
                let _ = sender.send(error.reason());
                Ok(())
            }
        },
    );
    let _proxy = world.captured();
    in_runtime(async {
        let mut client = connect(&world, (SVC4, GRPC)).await;
        let (answer, mut stream) = client
            .send_request(call("/pkg.Service/Cancel"), false)
            .unwrap();
        answer.await.unwrap();
        stream.send_reset(Reason::CANCEL);
        let reason = tokio::task::spawn_blocking(move || receiver.recv_timeout(SOON)).await;
        assert_eq!(
            reason.unwrap().expect("the server hears of it"),
            Some(Reason::CANCEL)
        );
    });
}

#[test]
fn a_stream_refused_by_the_server_is_sent_again() {
    let world = World::new();
    let refused = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = refused.clone();
    let _server = serve_h2(
        &world,
        GRPC,
        move |request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>| {
            let is_first = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            async move {
                if is_first {
                    // REFUSED_STREAM: the server has done nothing, so even a POST may be repeated.
                    respond.send_reset(Reason::REFUSED_STREAM);
                    return Ok(());
                }
                unary(request, respond).await
            }
        },
    );
    let _proxy = world.captured();
    in_runtime(async {
        let mut client = connect(&world, (SVC4, GRPC)).await;
        let (answer, _) = client
            .send_request(call("/pkg.Service/Refused"), true)
            .unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    });
    assert_eq!(refused.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[test]
fn a_server_that_says_goaway_after_each_stream_costs_no_request() {
    let world = World::new();
    let _server = serve_h2_once(&world, GRPC);
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    in_runtime(async {
        let mut client = connect(&world, (SVC4, GRPC)).await;
        for n in 0..20 {
            client = client.ready().await.unwrap();
            let (answer, _) = client
                .send_request(call("/pkg.Service/Once"), true)
                .unwrap();
            let answer = answer
                .await
                .unwrap_or_else(|error| panic!("request {n}: {error}"));
            assert_eq!(answer.status(), 200, "request {n}");
            read_all(answer.into_body()).await.unwrap();
        }
    });
}

#[test]
fn a_client_that_reads_nothing_starves_no_other() {
    let world = World::new();
    let _server = serve_h2(&world, GRPC, async |request, mut respond| {
        let length: usize = request.uri().path()[1..]
            .parse()
            .expect("a path that is a length");
        let stream = respond.send_response(Response::new(()), false)?;
        send_zeroes(stream, length).await
    });
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    in_runtime(async {
        let mut stalled = connect(&world, (SVC4, GRPC)).await;
        let mut unread = Vec::new();
        for _ in 0..8 {
            stalled = stalled.ready().await.unwrap();
            let (answer, _) = stalled.send_request(call("/16000000"), true).unwrap();
            unread.push(answer.await.unwrap().into_body());
        }
        let mut other = connect(&world, (SVC4, GRPC)).await;
        for _ in 0..20 {
            other = other.ready().await.unwrap();
            let (answer, _) = other.send_request(call("/300000"), true).unwrap();
            let (body, _) = read_all(answer.await.unwrap().into_body()).await.unwrap();
            assert_eq!(body.len(), 300_000);
        }
        drop(unread);
    });
}

#[test]
fn more_streams_than_one_upstream_connection_takes_get_another() {
    let world = World::new();
    let (sender, receiver) = tokio::sync::watch::channel(false);
    let _server = serve_h2_with(
        &world,
        GRPC,
        server::Builder::new().max_concurrent_streams(2),
        move |_request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>| {
            let mut release = receiver.clone();
            async move {
                let mut stream = respond.send_response(Response::new(()), false)?;
                let _ = release.wait_for(|open| *open).await;
                stream.send_data(Bytes::new(), true)?;
                Ok(())
            }
        },
    );
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    in_runtime(async {
        let mut client = connect(&world, (SVC4, GRPC)).await;
        let mut bodies = Vec::new();
        for _ in 0..6 {
            client = client.ready().await.unwrap();
            let (answer, _) = client.send_request(call("/held"), true).unwrap();
            // Each of the six is answered while the others are still open.
            bodies.push(answer.await.unwrap().into_body());
        }
        sender.send_replace(true);
        for body in bodies {
            read_all(body).await.unwrap();
        }
    });
}

#[test]
fn a_refused_upstream_is_a_502_that_says_so() {
    let world = World::new();
    let _proxy = world.captured();
    in_runtime(async {
        let mut client = connect(&world, (SVC4, 81)).await;
        let plain = Request::get("http://svc.test/").body(()).unwrap();
        let (answer, _) = client.send_request(plain, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 502);
        let status = answer.headers()["proxy-status"].to_str().unwrap();
        assert!(status.contains("error=connection_refused"), "{status}");
        // A gRPC client looks for its own status, and is told UNAVAILABLE there.
        client = client.ready().await.unwrap();
        let (answer, _) = client.send_request(call("/"), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["grpc-status"], "14");
    });
}

type Outcome = Result<(), h2::Error>;

/// A call as gRPC makes it.
fn call(path: &str) -> Request<()> {
    Request::post(format!("http://svc.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

async fn unary(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) -> Outcome {
    let (body, client_trailers) = read_all(request.into_body()).await?;
    let answer = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let mut stream = respond.send_response(answer, false)?;
    stream.send_data(body.into(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    if let Some(value) = client_trailers.and_then(|mut t| t.remove("x-client-trailer")) {
        trailers.insert("x-echoed", value);
    }
    stream.send_trailers(trailers)
}

async fn read_all(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

async fn send_zeroes(mut stream: h2::SendStream<Bytes>, length: usize) -> Outcome {
    let mut left = length;
    while left > 0 {
        stream.reserve_capacity(left.min(64 * 1024));
        let Some(granted) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return Ok(());
        };
        let count = granted?.min(left);
        left -= count;
        stream.send_data(vec![0; count].into(), left == 0)?;
    }
    Ok(())
}

async fn connect(world: &World, to: impl Into<SocketAddr>) -> client::SendRequest<Bytes> {
    let stream = world.app.connect(to);
    stream.set_nonblocking(true).unwrap();
    let stream = TcpStream::from_std(stream).unwrap();
    let (client, connection) = client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(connection);
    client
}

/// Runs the client's part, which fails when it takes unduly long.
fn in_runtime(client: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap();
    let limit = Duration::from_secs(30);
    runtime
        .block_on(async { tokio::time::timeout(limit, client).await })
        .expect("the calls end in time");
}

/// An HTTP/2 server on a thread; it ends with its guard.
struct Server {
    _stop: tokio::sync::oneshot::Sender<()>,
}

fn serve_h2<F>(
    world: &World,
    port: u16,
    handle: impl Fn(Request<RecvStream>, server::SendResponse<Bytes>) -> F + Send + 'static,
) -> Server
where
    F: Future<Output = Outcome> + 'static,
{
    serve_h2_with(world, port, &server::Builder::new(), handle)
}

fn serve_h2_with<F>(
    world: &World,
    port: u16,
    settings: &server::Builder,
    handle: impl Fn(Request<RecvStream>, server::SendResponse<Bytes>) -> F + Send + 'static,
) -> Server
where
    F: Future<Output = Outcome> + 'static,
{
    let settings = settings.clone();
    serve_connections(
        world,
        port,
        move |stream, handle| {
            let settings = settings.clone();
            async move {
                let mut connection = settings.handshake(stream).await?;
                while let Some(request) = connection.accept().await {
                    let (request, respond) = request?;
                    tokio::task::spawn_local(handle(request, respond));
                }
                Ok(())
            }
        },
        handle,
    )
}

/// Takes one stream a connection, then says GOAWAY.
fn serve_h2_once(world: &World, port: u16) -> Server {
    serve_connections(
        world,
        port,
        async |stream, handle| {
            let mut connection = server::handshake(stream).await?;
            if let Some(request) = connection.accept().await {
                let (request, respond) = request?;
                connection.graceful_shutdown();
                tokio::task::spawn_local(handle(request, respond));
            }
            while let Some(request) = connection.accept().await {
                let (_, mut respond) = request?;
                respond.send_reset(Reason::REFUSED_STREAM);
            }
            Ok(())
        },
        unary,
    )
}

fn serve_connections<H, C>(
    world: &World,
    port: u16,
    serve: impl Fn(TcpStream, std::rc::Rc<H>) -> C + Send + 'static,
    handle: H,
) -> Server
where
    H: Send + 'static,
    C: Future<Output = Outcome> + 'static,
{
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = world.svc.listen(port);
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let handle = std::rc::Rc::new(handle);
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        tokio::task::spawn_local(serve(stream, handle.clone()));
                    }
                    _ = &mut stopped => return,
                }
            }
        });
    });
    Server { _stop: stop }
}
