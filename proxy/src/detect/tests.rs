//! Detection of scripted clients, with scripted or missing destinations.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use outrigger_config::{Settings, Snapshot, Span};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinHandle, spawn_local},
};

use super::*;
use crate::{
    accept,
    testing::{black_hole, closed_port, connection, listener, pair, run, worker},
    worker::Worker,
};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Long enough to be surely not over while a test on a busy machine does its part.
const NEVER: Span = Span::from_secs(3600);

fn with_quiet(quiet: Span) -> Rc<Worker> {
    let mut settings = Settings::default();
    settings.timeouts.quiet = quiet;
    worker(settings)
}

/// A detection under way on a connection to `destination`; the application's end of it.
async fn detecting(
    worker: &Rc<Worker>,
    destination: SocketAddr,
) -> (TcpStream, JoinHandle<Result<First, Failure>>) {
    let (client, app) = pair().await;
    let connection = connection(worker, destination);
    let task = spawn_local(async move { first_bytes(&connection, &client).await });
    (app, task)
}

fn speaks_first(worker: &Worker, destination: SocketAddr) -> bool {
    let now = std::time::Instant::now();
    worker
        .shared
        .registry
        .destination(destination, now)
        .speaks_first(now)
}

#[test]
fn a_request_is_told_at_once_and_nothing_is_dialled() {
    run(async {
        let worker = with_quiet(NEVER);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        app.write_all(REQUEST).await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Http1);
        assert_eq!(first.client_bytes.filled(), REQUEST);
        assert!(first.dialled.is_none());
    });
}

#[test]
fn a_request_line_longer_than_a_buffer_is_http() {
    run(async {
        let worker = with_quiet(NEVER);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        let request = format!("GET /{} HTTP/1.1\r\n", "a".repeat(40_000));
        app.write_all(request.as_bytes()).await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Http1);
        assert_eq!(first.client_bytes.filled(), request.as_bytes());
    });
}

#[test]
fn a_request_line_without_end_is_opaque_once_it_exceeds_the_header_limit() {
    run(async {
        let worker = with_quiet(NEVER);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        let limit = worker.settings().limits.max_header_bytes;
        let endless = vec![b'a'; 2 * limit];
        app.write_all(b"GET /").await.unwrap();
        let send = app.write_all(&endless);
        let (first, _) = tokio::join!(task, send);
        let first = first.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Opaque);
        assert!(first.client_bytes.len() <= limit);
    });
}

#[test]
fn a_client_hello_is_told_with_its_server_name() {
    run(async {
        let worker = with_quiet(NEVER);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        app.write_all(&client_hello("shop.example")).await.unwrap();
        let hello = ClientHello {
            server_name: Some("shop.example".into()),
            ..ClientHello::default()
        };
        assert_eq!(task.await.unwrap().unwrap().detected, Detected::Tls(hello));
    });
}

#[test]
fn half_a_client_hello_is_not_waited_for() {
    run(async {
        let worker = with_quiet(NEVER);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        app.write_all(&client_hello("shop.example")[..40])
            .await
            .unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Tls(ClientHello::default()));
        assert_eq!(first.client_bytes.len(), 40);
    });
}

#[test]
fn bytes_that_stop_half_way_are_opaque_and_carried_on() {
    run(async {
        for (prefix, least) in [("GET", Duration::from_millis(1)), ("GET /", PATIENCE)] {
            let worker = with_quiet(Span::from_millis(1));
            let (mut app, task) = detecting(&worker, closed_port().await).await;
            let begun = Instant::now();
            app.write_all(prefix.as_bytes()).await.unwrap();
            let first = task.await.unwrap().unwrap();
            assert_eq!(first.detected, Detected::Opaque);
            assert_eq!(first.client_bytes.filled(), prefix.as_bytes());
            assert!(begun.elapsed() >= least, "{prefix}");
        }
    });
}

#[test]
fn bytes_that_end_half_way_are_opaque_and_carried_on() {
    run(async {
        let worker = with_quiet(NEVER);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        app.write_all(b"GET /").await.unwrap();
        app.shutdown().await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Opaque);
        assert_eq!(first.client_bytes.filled(), b"GET /");
    });
}

#[test]
fn a_client_that_closes_its_half_without_a_word_is_still_served() {
    run(async {
        let worker = with_quiet(NEVER);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        app.shutdown().await.unwrap();
        assert_eq!(task.await.unwrap().unwrap().detected, Detected::Opaque);
    });
}

#[test]
fn a_client_that_resets_is_gone() {
    run(async {
        let worker = with_quiet(NEVER);
        let (app, task) = detecting(&worker, closed_port().await).await;
        accept::reset(app);
        assert_eq!(task.await.unwrap().unwrap_err(), Failure::ClientClosed);
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_and_remembered() {
    run(async {
        let (listener, destination) = listener().await;
        let worker = with_quiet(Span::from_millis(1));
        let (_app, task) = detecting(&worker, destination).await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"220 ready\r\n").await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Opaque);
        assert_eq!(first.upstream_bytes.filled(), b"220 ready\r\n");
        assert!(first.dialled.is_some());
        assert!(speaks_first(&worker, destination));
    });
}

#[test]
fn a_destination_that_spoke_first_is_dialled_at_once() {
    run(async {
        let (listener, destination) = listener().await;
        let worker = with_quiet(NEVER);
        expect_server_first(&worker, destination);
        let (_app, task) = detecting(&worker, destination).await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"220 ready\r\n").await.unwrap();
        assert_eq!(task.await.unwrap().unwrap().detected, Detected::Opaque);
    });
}

#[test]
fn the_memory_of_who_speaks_first_is_a_hint_and_no_verdict() {
    run(async {
        let (_listener, destination) = listener().await;
        let worker = with_quiet(NEVER);
        expect_server_first(&worker, destination);
        let (mut app, task) = detecting(&worker, destination).await;
        app.write_all(REQUEST).await.unwrap();
        assert_eq!(task.await.unwrap().unwrap().detected, Detected::Http1);
        assert!(!speaks_first(&worker, destination));
    });
}

#[test]
fn a_late_request_takes_the_connection_that_was_dialled_meanwhile() {
    run(async {
        let (listener, destination) = listener().await;
        let worker = with_quiet(Span::from_millis(1));
        let (mut app, task) = detecting(&worker, destination).await;
        let (server, _) = listener.accept().await.unwrap();
        // It counts as dialled once the worker knows its address.
        let local = server.peer_addr().unwrap();
        while !worker.shared.own.contains(local, destination) {
            tokio::task::yield_now().await;
        }
        app.write_all(REQUEST).await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Http1);
        assert_eq!(
            first.dialled.unwrap().upstream.stream.local_addr().unwrap(),
            local
        );
    });
}

#[test]
fn a_server_that_closes_without_a_word_is_heard_too_and_not_remembered() {
    run(async {
        let (listener, destination) = listener().await;
        let worker = with_quiet(Span::from_millis(1));
        let (_app, task) = detecting(&worker, destination).await;
        drop(listener.accept().await.unwrap());
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Opaque);
        assert!(first.dialled.is_some());
        assert!(!speaks_first(&worker, destination));
    });
}

#[test]
fn a_silent_client_learns_of_a_refusal() {
    run(async {
        let worker = with_quiet(Span::from_millis(1));
        let (_app, task) = detecting(&worker, closed_port().await).await;
        assert_eq!(task.await.unwrap().unwrap_err(), Failure::ConnectRefused);
    });
}

#[test]
fn a_request_to_a_destination_that_has_just_refused_is_left_to_the_http_relay_to_answer() {
    run(async {
        let destination = closed_port().await;
        let worker = with_quiet(NEVER);
        expect_server_first(&worker, destination);
        let (mut app, task) = detecting(&worker, destination).await;
        // The refusal comes within this time on loopback; the verdict is the same if it does not.
        tokio::time::sleep(Duration::from_millis(5)).await;
        app.write_all(REQUEST).await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Http1);
        assert!(first.dialled.is_none());
    });
}

/// Regression: a client that was slow to speak, to an address that stands for a cluster and where
/// nobody listens, was reset.
#[test]
fn where_there_are_routes_a_refusal_waits_for_what_the_client_says() {
    run(async {
        let mut settings = Settings::default();
        settings.timeouts.quiet = Span::from_millis(1);
        settings.routes = outrigger_config::parse(
            "routes: [{ match: { host: a }, cluster: original_destination }]",
        )
        .expect("good settings")
        .routes;
        let worker = worker(Settings::default());
        let shared = &worker.shared;
        let before = shared.configuration.snapshot();
        let snapshot = Snapshot::compile(settings, Some(&before));
        shared
            .configuration
            .publish(Arc::new(snapshot), &shared.clusters, &shared.rate_limits);
        let (mut app, task) = detecting(&worker, closed_port().await).await;
        // Many times the quiet time, after which it is dialled and refused.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!task.is_finished());
        app.write_all(REQUEST).await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Http1);
        assert!(first.dialled.is_none());
    });
}

#[test]
fn two_silent_sides_are_left_alone_until_the_idle_time() {
    run(async {
        let (listener, destination) = listener().await;
        let mut settings = Settings::default();
        settings.timeouts.quiet = Span::from_millis(1);
        settings.timeouts.tunnel_idle = Span::from_millis(50);
        let begun = Instant::now();
        let (_app, task) = detecting(&worker(settings), destination).await;
        let _server = listener.accept().await.unwrap();
        assert_eq!(task.await.unwrap().unwrap_err(), Failure::IdleTimeout);
        assert!(begun.elapsed() >= Duration::from_millis(51));
    });
}

#[test]
fn a_silent_connection_holds_no_buffer() {
    run(async {
        let (listener, destination) = listener().await;
        let worker = with_quiet(Span::from_millis(1));
        worker.buffers.give(worker.buffers.take());
        let (_app, _task) = detecting(&worker, destination).await;
        let _server = listener.accept().await.unwrap();
        assert_eq!(worker.buffers.kept(), 1);
    });
}

/// A person at a terminal that sends each key as it is typed.
#[test]
fn a_slow_typist_gets_through() {
    run(async {
        let (listener, destination) = listener().await;
        let worker = with_quiet(Span::from_millis(2));
        let (client, mut app) = pair().await;
        let connection = connection(&worker, destination);
        let tunnel = spawn_local(async move {
            let first = first_bytes(&connection, &client).await.unwrap();
            crate::forward::opaque::serve(connection, client, first).await;
        });
        let mut server = None;
        for key in *b"QUIT\r\n" {
            app.write_all(&[key]).await.unwrap();
            if server.is_none() {
                server = Some(listener.accept().await.unwrap().0);
            }
            let mut heard = [0];
            server
                .as_mut()
                .unwrap()
                .read_exact(&mut heard)
                .await
                .unwrap();
            assert_eq!(heard, [key]);
        }
        drop((app, server));
        tunnel.await.unwrap();
    });
}

#[test]
fn a_client_that_gives_up_on_a_silent_destination_ends_the_dial() {
    run(async {
        let worker = with_quiet(Span::from_millis(1));
        let (backlogged, _held) = black_hole().await;
        let (app, task) = detecting(&worker, backlogged).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!task.is_finished());
        accept::reset(app);
        assert_eq!(task.await.unwrap().unwrap_err(), Failure::ClientClosed);
    });
}

#[test]
fn a_request_does_not_wait_for_a_dial_that_hangs() {
    run(async {
        let worker = with_quiet(Span::from_millis(1));
        let (backlogged, _held) = black_hole().await;
        let (mut app, task) = detecting(&worker, backlogged).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        app.write_all(REQUEST).await.unwrap();
        let first = task.await.unwrap().unwrap();
        assert_eq!(first.detected, Detected::Http1);
        assert!(first.dialled.is_none());
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Split anywhere and sent as segments of their own, bytes come to the same end.
    #[test]
    fn splitting_changes_nothing(which in 0..4_usize, cuts in proptest::collection::vec(0..60_usize, 0..5)) {
        let (bytes, expected): (&[u8], _) = [
            (REQUEST, Detected::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Detected::Http2),
            (b"\x16\x03\x01\x00\x05\x01\0\0\x01\0", Detected::Tls(ClientHello::default())),
            (b"INVITE sip:bob@example SIP/2.0\r\n", Detected::Opaque),
        ][which].clone();
        run(async {
            let worker = with_quiet(NEVER);
            let (mut app, task) = detecting(&worker, closed_port().await).await;
            let mut cuts: Vec<_> = cuts.iter().map(|c| c % bytes.len()).collect();
            cuts.sort_unstable();
            let mut sent = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                if task.is_finished() {
                    break;
                }
                app.write_all(&bytes[sent..cut]).await.unwrap();
                sent = cut;
                // The detection reads what is there before the next segment is sent.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
            }
            let first = task.await.unwrap().unwrap();
            assert_eq!(first.detected, expected);
            assert!(bytes.starts_with(first.client_bytes.filled()));
        });
    }
}

fn expect_server_first(worker: &Worker, destination: SocketAddr) {
    let now = std::time::Instant::now();
    let destination = worker.shared.registry.destination(destination, now);
    destination.note_first_speaker(true, now);
}

/// A ClientHello as a TLS 1.2 client would send it.
fn client_hello(server_name: &str) -> Vec<u8> {
    fn prefixed(width: usize, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&length[length.len() - width..], content].concat()
    }
    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &prefixed(2, content)].concat()
    }
    let name = [&[0][..], &prefixed(2, server_name.as_bytes())].concat();
    let extensions = [
        extension(0, &prefixed(2, &name)),
        // supported_groups: x25519; signature_algorithms: ecdsa_secp256r1_sha256
        extension(10, &prefixed(2, &[0, 29])),
        extension(13, &prefixed(2, &[4, 3])),
    ]
    .concat();
    let hello = [
        &[3, 3][..],
        &[7; 32],
        &prefixed(1, &[]),
        &prefixed(2, &[0xc0, 0x2b]),
        &prefixed(1, &[0]),
        &prefixed(2, &extensions),
    ]
    .concat();
    let handshake = [&[1][..], &prefixed(3, &hello)].concat();
    [&[22, 3, 1][..], &prefixed(2, &handshake)].concat()
}
