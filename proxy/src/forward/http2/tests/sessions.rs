//! Which connections there are to a destination.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, server, server::SendResponse};
use http::{Request, Response};
use outrigger_config::{Settings, Span};
use tokio::{sync::Semaphore, task};

use super::peers::*;
use crate::{
    dispatch::Hop,
    forward::http2::peers::Peers,
    testing::{self, run},
};

/// Answers a request when it is let go.
async fn holding(max_streams: u32) -> (Destination, Rc<Cell<usize>>, Rc<Semaphore>) {
    let asked = Rc::new(Cell::new(0));
    let gate = Rc::new(Semaphore::new(0));
    let (counted, waiting) = (asked.clone(), gate.clone());
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(max_streams);
    let to = destination_with(builder, move |request: Request<RecvStream>, response| {
        counted.set(counted.get() + 1);
        let waiting = waiting.clone();
        async move {
            waiting.acquire().await.unwrap().forget();
            ok(request, response).await;
        }
    })
    .await;
    (to, asked, gate)
}

fn ask_many(
    client: &h2::client::SendRequest<Bytes>,
    count: usize,
) -> Vec<task::JoinHandle<http::StatusCode>> {
    (0..count)
        .map(|_| {
            let client = client.clone();
            task::spawn_local(async move { ask(&client, get("/")).await.unwrap().status() })
        })
        .collect()
}

#[test]
fn more_connections_are_made_when_the_streams_of_one_are_used_up() {
    run(async {
        let (to, asked, gate) = holding(2).await;
        let client = client(&worker(), to.address).await;
        let answers = ask_many(&client, 7);
        until(|| asked.get() == 7).await;
        assert_eq!(to.connections.get(), 4);
        gate.add_permits(7);
        for answer in answers {
            assert_eq!(answer.await.unwrap(), 200);
        }
    });
}

#[test]
fn a_burst_of_streams_waits_for_one_connection_and_not_for_many() {
    run(async {
        let (to, asked, gate) = holding(128).await;
        let client = client(&worker(), to.address).await;
        let answers = ask_many(&client, 100);
        until(|| asked.get() == 100).await;
        assert_eq!(to.connections.get(), 1);
        gate.add_permits(100);
        for answer in answers {
            assert_eq!(answer.await.unwrap(), 200);
        }
    });
}

#[test]
fn an_idle_connection_serves_the_next_client_and_a_busy_one_does_not() {
    run(async {
        let (to, asked, gate) = holding(100).await;
        let worker = worker();
        let first = client(&worker, to.address).await;
        let second = client(&worker, to.address).await;
        gate.add_permits(2);
        for client in [&first, &second] {
            assert_eq!(ask(client, get("/")).await.unwrap().status(), 200);
        }
        assert_eq!(to.connections.get(), 1);
        let answers = [ask_many(&first, 1), ask_many(&second, 1)];
        until(|| asked.get() == 4).await;
        assert_eq!(to.connections.get(), 2);
        gate.add_permits(2);
        for answer in answers.into_iter().flatten() {
            assert_eq!(answer.await.unwrap(), 200);
        }
    });
}

#[test]
fn idle_connections_are_closed_in_time() {
    run(async {
        let to = destination(ok).await;
        let mut settings = Settings::default();
        settings.pool.idle = Span::from_millis(40);
        let client = client(&testing::worker(settings), to.address).await;
        assert_eq!(ask(&client, get("/")).await.unwrap().status(), 200);
        assert_eq!(to.open.get(), 1);
        until(|| to.open.get() == 0).await;
        assert_eq!(ask(&client, get("/")).await.unwrap().status(), 200);
        assert_eq!(to.connections.get(), 2);
    });
}

#[test]
fn a_server_that_wants_no_streams_for_now_is_waited_for() {
    run(async {
        const MAX_CONCURRENT_STREAMS: u16 = 3;
        let (listener, address) = testing::listener().await;
        let connections = Rc::new(Cell::new(0));
        let counted = connections.clone();
        task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.set(counted.get() + 1);
                task::spawn_local(async move {
                    let mut peer = RawPeer::server(stream, &[(MAX_CONCURRENT_STREAMS, 0)]).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    peer.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 10]).await;
                    loop {
                        let stream = peer.next_of(HEADERS).await.stream;
                        peer.send(HEADERS, 0x5, stream, STATUS_200).await;
                    }
                });
            }
        });
        let client = client(&worker(), address).await;
        for answer in ask_many(&client, 5) {
            assert_eq!(answer.await.unwrap(), 200);
        }
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn draining_finishes_what_is_under_way_and_then_ends_the_connection() {
    run(async {
        let (to, asked, gate) = holding(100).await;
        let worker = worker();
        let stream = connect(&worker, to.address).await;
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = task::spawn_local(connection);
        let answers = ask_many(&client, 3);
        until(|| asked.get() == 3).await;
        worker.drain.start();
        // The client hears of it: it can start nothing new.
        while client.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gate.add_permits(3);
        for answer in answers {
            assert_eq!(answer.await.unwrap(), 200);
        }
        connection.await.unwrap().unwrap();
        drop(client);
        until(|| to.open.get() == 0).await;
    });
}

#[test]
fn an_upstream_dialled_by_detection_is_used() {
    run(async {
        let to = destination(ok).await;
        let worker = worker();
        let upstream = crate::upstream::connect(&worker.shared, to.address)
            .await
            .unwrap();
        let (accepted, connected) = testing::pair().await;
        let first = crate::detect::First {
            detected: crate::detect::Detected::Http2,
            client_bytes: crate::buffer::Buffer::default(),
            upstream_bytes: crate::buffer::Buffer::default(),
            dialled: Some(crate::dispatch::Dialled {
                upstream,
                hop: Hop::to(to.address),
            }),
            routed: None,
        };
        let connection = testing::connection(&worker, to.address);
        task::spawn_local(crate::forward::http2::serve(connection, accepted, first));
        let (client, connection) = h2::client::handshake(connected).await.unwrap();
        task::spawn_local(connection);
        assert_eq!(ask(&client, get("/")).await.unwrap().status(), 200);
        assert_eq!(to.connections.get(), 1);
    });
}

#[test]
fn a_request_is_recorded_once_with_what_came_of_it() {
    run(async {
        let to = destination(|_, mut response: SendResponse<Bytes>| async move {
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            sink.send_data(Bytes::from_static(b"answer"), true).unwrap();
        })
        .await;
        let worker = worker();
        let client = client(&worker, to.address).await;
        let mut body = ask(&client, get("/")).await.unwrap().into_body();
        read(&mut body).await.unwrap();
        let metrics = testing::connection(&worker, to.address).destination;
        let requests = || metrics.metrics.totals().outcomes.values().sum::<u64>();
        until(|| requests() == 1).await;
    });
}

#[test]
fn a_dial_that_was_given_up_is_not_waited_for() {
    run(async {
        let (address, _held) = testing::black_hole().await;
        let worker = worker();
        let peers = Peers::new(testing::connection(&worker, address));
        let sessions = peers.sessions(&Hop::to(address));
        sessions.connect(None);
        until(|| !worker.shared.own.is_empty()).await;
        peers.client.end().await;
        until(|| worker.shared.own.is_empty()).await;
        // A copy of one of its requests comes late.
        let waiting = task::spawn_local(async move {
            sessions.wait_for_place(None).await.err();
        });
        until(|| !worker.shared.own.is_empty()).await;
        waiting.abort();
    });
}

#[test]
fn a_server_that_takes_connections_only_to_close_them_is_not_dialled_over_and_over() {
    run(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Rc::new(Cell::new(0));
        let counted = connections.clone();
        // Whenever the worker looks at its sockets, each of them is closed already.
        task::spawn_local(poll_fn(move |cx| -> Poll<()> {
            if listener.accept().is_ok() {
                counted.set(counted.get() + 1);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let client = client(&worker(), address).await;
        assert_eq!(ask(&client, get("/")).await.unwrap().status(), 502);
        assert!(connections.get() <= 2, "{} connections", connections.get());
    });
}
