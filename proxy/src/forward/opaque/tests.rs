//! Tunnels between scripted peers on loopback.

use std::{
    io::ErrorKind,
    rc::Rc,
    time::{Duration, Instant},
};

use outrigger_config::{Settings, Span};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinHandle, spawn_local},
};

use super::*;
use crate::{
    accept,
    testing::{self, connection, listener, pair, run, worker},
    worker::Worker,
};

/// A tunnel under way, with the application and the server at its ends.
struct Stage {
    app: TcpStream,
    server: TcpStream,
    tunnel: JoinHandle<Relayed>,
}

async fn stage(worker: &Rc<Worker>) -> Stage {
    let (client, app) = pair().await;
    let (upstream, server) = pair().await;
    let tunnel = spawn_local(relay_all(worker.clone(), client, upstream, "", ""));
    Stage {
        app,
        server,
        tunnel,
    }
}

async fn relay_all(
    worker: Rc<Worker>,
    client: TcpStream,
    upstream: TcpStream,
    to_upstream: &str,
    to_client: &str,
) -> Relayed {
    let connection = connection(&worker, upstream.local_addr().expect("a socket"));
    let mut buffers = [Buffer::default(), Buffer::default()];
    buffers[0].extend(to_upstream.as_bytes());
    buffers[1].extend(to_client.as_bytes());
    let [to_upstream, to_client] = buffers;
    let limits = TunnelLimits::of(&connection, &Routed::default());
    relay(
        &connection,
        &client,
        &upstream,
        to_upstream,
        to_client,
        limits,
    )
    .await
}

fn settings(tunnel_idle: Span, half_close: Span) -> Settings {
    let mut settings = Settings::default();
    settings.timeouts.tunnel_idle = tunnel_idle;
    settings.timeouts.half_close = half_close;
    settings
}

async fn read_all(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map(|_| text)
}

async fn read_error(stream: &mut TcpStream) -> ErrorKind {
    let mut byte = [0];
    stream.read(&mut byte).await.expect_err("an error").kind()
}

#[test]
fn a_client_that_closes_its_half_still_gets_its_answer() {
    run(async {
        let Stage {
            mut app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        app.write_all(b"question").await.unwrap();
        app.shutdown().await.unwrap();
        assert_eq!(read_all(&mut server).await.unwrap(), "question");
        server.write_all(b"the answer").await.unwrap();
        drop(server);
        assert_eq!(read_all(&mut app).await.unwrap(), "the answer");
        let relayed = tunnel.await.unwrap();
        assert_eq!(
            relayed,
            Relayed {
                received: 8,
                sent: 10,
                failure: None
            }
        );
    });
}

#[test]
fn a_server_that_closes_its_half_still_hears_the_client() {
    run(async {
        let Stage {
            mut app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        server.write_all(b"bye").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut app).await.unwrap(), "bye");
        app.write_all(b"one more thing").await.unwrap();
        drop(app);
        assert_eq!(read_all(&mut server).await.unwrap(), "one more thing");
        assert_eq!(tunnel.await.unwrap().failure, None);
    });
}

#[test]
fn what_was_read_before_goes_first_both_ways() {
    run(async {
        let (client, mut app) = pair().await;
        let (upstream, mut server) = pair().await;
        let worker = worker(Settings::default());
        let tunnel = spawn_local(relay_all(worker, client, upstream, "first ", "banner "));
        app.write_all(b"second").await.unwrap();
        app.shutdown().await.unwrap();
        assert_eq!(read_all(&mut server).await.unwrap(), "first second");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(read_all(&mut app).await.unwrap(), "banner answer");
        let relayed = tunnel.await.unwrap();
        assert_eq!((relayed.received, relayed.sent), (12, 13));
    });
}

#[test]
fn a_reset_by_the_client_resets_the_server_after_its_bytes() {
    run(async {
        let Stage {
            mut app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        app.write_all(b"half a").await.unwrap();
        let mut text = [0; 6];
        server.read_exact(&mut text).await.unwrap();
        accept::reset(app);
        assert_eq!(read_error(&mut server).await, ErrorKind::ConnectionReset);
        assert_eq!(tunnel.await.unwrap().failure, Some(Failure::ClientClosed));
    });
}

#[test]
fn a_reset_by_the_server_resets_the_client() {
    run(async {
        let Stage {
            mut app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        server.write_all(b"half a").await.unwrap();
        let mut text = [0; 6];
        app.read_exact(&mut text).await.unwrap();
        accept::reset(server);
        assert_eq!(read_error(&mut app).await, ErrorKind::ConnectionReset);
        let failure = tunnel.await.unwrap().failure;
        assert_eq!(failure, Some(Failure::UpstreamIncomplete));
    });
}

#[test]
fn a_reset_before_any_answer_is_told_apart() {
    run(async {
        let Stage {
            mut app,
            server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        accept::reset(server);
        assert_eq!(read_error(&mut app).await, ErrorKind::ConnectionReset);
        let failure = tunnel.await.unwrap().failure;
        assert_eq!(failure, Some(Failure::UpstreamClosed));
    });
}

/// The kernel reports a reset once. When a write has taken the report, reading says "closed", which
/// would have reached the client as an orderly end of a cut answer.
#[test]
fn a_reset_that_a_write_ran_into_is_no_orderly_close() {
    run(async {
        let (client, mut app) = pair().await;
        let (upstream, server) = pair().await;
        app.write_all(b"bytes").await.unwrap();
        accept::reset(server);
        // Both are pending when the relay looks for the first time.
        let worker = worker(Settings::default());
        let tunnel = spawn_local(relay_all(worker, client, upstream, "first", ""));
        assert_eq!(read_error(&mut app).await, ErrorKind::ConnectionReset);
        let failure = tunnel.await.unwrap().failure;
        assert_eq!(failure, Some(Failure::UpstreamClosed));
    });
}

#[test]
fn a_reset_is_carried_over_although_the_other_side_reads_nothing() {
    run(async {
        let Stage {
            app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        fill(&app).await;
        accept::reset(app);
        assert_eq!(tunnel.await.unwrap().failure, Some(Failure::ClientClosed));
        let error = loop {
            match server.read(&mut [0; 65536]).await {
                Ok(0) => panic!("the reset came as an orderly close"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_reset_after_half_a_close_is_carried_over() {
    run(async {
        let Stage {
            mut app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut app).await.unwrap(), "");
        accept::reset(app);
        assert_eq!(read_error(&mut server).await, ErrorKind::ConnectionReset);
        assert_eq!(tunnel.await.unwrap().failure, Some(Failure::ClientClosed));
    });
}

/// As TLS does: the server says goodbye and closes, the client's own goodbye meets a closed door.
#[test]
fn a_last_word_to_a_server_that_has_closed_is_no_failure() {
    run(async {
        let Stage {
            mut app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        server.write_all(b"all of it").await.unwrap();
        drop(server);
        assert_eq!(read_all(&mut app).await.unwrap(), "all of it");
        app.write_all(b"goodbye").await.unwrap();
        let relayed = tunnel.await.unwrap();
        assert_eq!((relayed.sent, relayed.failure), (9, None));
        assert_eq!(read_all(&mut app).await.unwrap(), "");
    });
}

#[test]
fn a_slow_reader_holds_its_sender_back() {
    run(async {
        let Stage {
            app,
            mut server,
            tunnel,
        } = stage(&worker(Settings::default())).await;
        let written = fill(&app).await;
        // Kernel buffers, and one of ours or a pipe; not more.
        assert!(written < 64 << 20, "{written} bytes were taken");
        drop(app);
        let mut read = 0;
        let mut bytes = vec![0; 65536];
        while let count @ 1.. = server.read(&mut bytes).await.unwrap() {
            read += count;
        }
        assert_eq!(read, written);
        drop(server);
        assert_eq!(tunnel.await.unwrap().failure, None);
    });
}

#[test]
fn an_idle_tunnel_holds_no_buffer_and_no_pipe() {
    run(async {
        let worker = worker(Settings::default());
        let Stage {
            mut app,
            mut server,
            tunnel,
        } = stage(&worker).await;
        send_blocks(&mut app, &mut server, 4 << 20).await;
        app.write_all(b"ping").await.unwrap();
        server.read_exact(&mut [0; 4]).await.unwrap();
        // The relay has gone to rest by the time that the next answer has come.
        server.write_all(b"pong").await.unwrap();
        app.read_exact(&mut [0; 4]).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(worker.buffers.kept(), 1);
        assert_eq!(worker.pipes.lent(), 0);
        drop((app, server));
        tunnel.await.unwrap();
    });
}

#[test]
fn two_hundred_mebibytes_arrive_unharmed_through_pipes() {
    run(async {
        let worker = worker(Settings::default());
        let mut stage = stage(&worker).await;
        send_blocks(&mut stage.app, &mut stage.server, 200 << 20).await;
        send_blocks(&mut stage.server, &mut stage.app, 200 << 20).await;
        assert!(worker.pipes.kept() > 0, "nothing was spliced");
        drop((stage.app, stage.server));
        let relayed = stage.tunnel.await.unwrap();
        assert_eq!((relayed.received, relayed.sent), (200 << 20, 200 << 20));
    });
}

#[test]
fn two_hundred_mebibytes_arrive_unharmed_through_buffers() {
    run(async {
        let worker = worker(Settings::default());
        let _lent: Vec<_> = std::iter::from_fn(|| worker.pipes.lend()).collect();
        let mut stage = stage(&worker).await;
        send_blocks(&mut stage.app, &mut stage.server, 200 << 20).await;
        send_blocks(&mut stage.server, &mut stage.app, 200 << 20).await;
        drop((stage.app, stage.server));
        assert_eq!(stage.tunnel.await.unwrap().failure, None);
    });
}

#[test]
fn an_idle_tunnel_is_reset_in_time() {
    run(async {
        let limit = Span::from_millis(80);
        let worker = worker(settings(limit, Span::from_secs(3600)));
        let begun = Instant::now();
        let mut stage = stage(&worker).await;
        assert_eq!(read_error(&mut stage.app).await, ErrorKind::ConnectionReset);
        assert_eq!(
            read_error(&mut stage.server).await,
            ErrorKind::ConnectionReset
        );
        assert!(begun.elapsed() >= limit.0);
        let failure = stage.tunnel.await.unwrap().failure;
        assert_eq!(failure, Some(Failure::IdleTimeout));
    });
}

#[test]
fn a_half_closed_tunnel_is_reset_in_time() {
    run(async {
        let limit = Span::from_millis(80);
        let worker = worker(settings(Span::from_secs(3600), limit));
        let mut stage = stage(&worker).await;
        stage.app.shutdown().await.unwrap();
        let begun = Instant::now();
        assert_eq!(read_error(&mut stage.app).await, ErrorKind::ConnectionReset);
        assert!(begun.elapsed() >= limit.0 - Duration::from_millis(5));
        let failure = stage.tunnel.await.unwrap().failure;
        assert_eq!(failure, Some(Failure::HalfCloseTimeout));
    });
}

#[test]
fn a_refused_destination_looks_refused() {
    run(async {
        let worker = worker(Settings::default());
        let (client, mut app) = pair().await;
        let connection = connection(&worker, testing::closed_port().await);
        serve(connection, client, opaque_first(&worker)).await;
        assert_eq!(read_error(&mut app).await, ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_tunnel_cut_by_the_end_of_its_worker_is_recorded_and_reset() {
    run(async {
        let worker = worker(Settings::default());
        let (listener, address) = listener().await;
        let (client, mut app) = pair().await;
        let connection = connection(&worker, address);
        let destination = connection.destination.clone();
        let tunnel = spawn_local(serve(connection, client, opaque_first(&worker)));
        let (mut server, _) = listener.accept().await.unwrap();
        app.write_all(b"a").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
        tunnel.abort();
        assert!(tunnel.await.unwrap_err().is_cancelled());
        assert_eq!(read_error(&mut app).await, ErrorKind::ConnectionReset);
        assert_eq!(read_error(&mut server).await, ErrorKind::ConnectionReset);
        let outcomes = destination.metrics.totals().outcomes;
        assert_eq!(outcomes.values().sum::<u64>(), 1, "{outcomes:?}");
    });
}

fn opaque_first(worker: &Worker) -> First {
    First {
        detected: Detected::Opaque,
        client_bytes: worker.buffers.take(),
        upstream_bytes: Buffer::default(),
        dialled: None,
        routed: None,
    }
}

/// Writes until nothing has been taken for a while; how much was.
async fn fill(stream: &TcpStream) -> usize {
    let mut written = 0;
    let bytes = vec![7; 65536];
    let pause = Duration::from_millis(300);
    while let Ok(Ok(())) = tokio::time::timeout(pause, stream.writable()).await {
        match stream.try_write(&bytes) {
            Ok(count) => written += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    written
}

/// Sends blocks that each differ, and checks each as it arrives.
async fn send_blocks(from: &mut TcpStream, to: &mut TcpStream, total: u64) {
    const BLOCK: usize = 256 * 1024;
    let blocks = total / BLOCK as u64;
    let block = |number: u64| -> Vec<u8> {
        let words =
            (0..BLOCK as u64 / 8).map(|i| (number << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.flat_map(u64::to_le_bytes).collect()
    };
    // The expected bytes are few enough to make once, and no two neighbours are alike.
    let patterns: Vec<_> = (0..7).map(block).collect();
    let pattern = |number: u64| &patterns[(number % 7) as usize];
    let send = async {
        for number in 0..blocks {
            from.write_all(pattern(number)).await.unwrap();
        }
    };
    let check = async {
        let mut bytes = vec![0; BLOCK];
        for number in 0..blocks {
            to.read_exact(&mut bytes).await.unwrap();
            assert!(bytes == *pattern(number), "block {number} was harmed");
        }
    };
    tokio::join!(send, check);
}
