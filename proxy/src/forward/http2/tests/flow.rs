//! Flow control from end to end: who does not read slows down nobody else.

use bytes::Bytes;
use h2::{RecvStream, client, server, server::SendResponse};
use http::{Request, Response};
use tokio::task;

use super::peers::*;
use crate::{
    forward::http2::settings::{CONNECTION_WINDOW, STREAM_WINDOW},
    testing::run,
};

const LARGE: usize = 1 << 20;

/// Answers every request with [`LARGE`] bytes, or reads and counts what it is sent.
async fn bulk() -> Destination {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    destination_with(
        builder,
        |request: Request<RecvStream>, mut response| async move {
            let path = request.uri().path().to_owned();
            let mut body = request.into_body();
            if path == "/unread" {
                std::future::pending::<()>().await;
            }
            let received = read(&mut body).await.unwrap_or_default().len();
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            if received > 0 {
                sink.send_data(received.to_string().into(), true).unwrap();
            } else {
                let _ = send_all(&mut sink, LARGE).await;
            }
        },
    )
    .await
}

/// Opens a stream whose answer is never read, and waits until no more of it comes.
async fn stall(client: &client::SendRequest<Bytes>) -> RecvStream {
    ask(client, get("/")).await.unwrap().into_body()
}

#[test]
fn two_clients_that_do_not_read_leave_a_third_at_full_speed() {
    run(async {
        let to = bulk().await;
        let worker = worker();
        let mut stalled = Vec::new();
        for _ in 0..2 {
            let client = client(&worker, to.address).await;
            for _ in 0..20 {
                stalled.push(stall(&client).await);
            }
            stalled.push(stall(&client).await);
        }
        let third = client(&worker, to.address).await;
        for _ in 0..5 {
            let mut body = ask(&third, get("/")).await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap().len(), LARGE);
        }
        drop(stalled);
    });
}

#[test]
fn streams_that_nobody_reads_leave_the_other_streams_of_their_client_at_full_speed() {
    run(async {
        let to = bulk().await;
        let mut builder = client::Builder::new();
        // The client's own window holds them all, so that only the proxy's could run out.
        builder.initial_connection_window_size(64 << 20);
        let client = client_with(&worker(), to.address, &builder).await;
        let mut stalled = Vec::new();
        for _ in 0..40 {
            stalled.push(stall(&client).await);
        }
        // The window of their connection was used up ten times over.
        const { assert!(40 * STREAM_WINDOW >= 10 * CONNECTION_WINDOW) };
        for _ in 0..5 {
            let mut body = ask(&client, get("/")).await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap().len(), LARGE);
        }
        // And those are still whole.
        for mut body in stalled {
            assert_eq!(read(&mut body).await.unwrap().len(), LARGE);
        }
    });
}

#[test]
fn uploads_that_a_destination_does_not_read_leave_other_uploads_at_full_speed() {
    run(async {
        let to = bulk().await;
        let worker = worker();
        let client = client(&worker, to.address).await;
        let mut stuck = Vec::new();
        for _ in 0..12 {
            let (response, mut sink) = start(&client, post("/unread")).await;
            stuck.push(response);
            task::spawn_local(async move { send_all(&mut sink, LARGE).await });
        }
        for _ in 0..3 {
            let (response, mut sink) = start(&client, post("/")).await;
            send_all(&mut sink, LARGE).await.unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap(), LARGE.to_string().as_bytes());
        }
        drop(stuck);
    });
}

#[test]
fn an_upload_that_fills_the_window_of_its_connection_stops_no_other_client() {
    run(async {
        // The smallest windows there are: one stream that is not read uses up its connection's.
        let to = destination(
            |request: Request<RecvStream>, mut response: SendResponse<Bytes>| async move {
                let path = request.uri().path().to_owned();
                let mut body = request.into_body();
                if path == "/unread" {
                    std::future::pending::<()>().await;
                }
                read(&mut body).await.unwrap();
                response.send_response(Response::new(()), true).unwrap();
            },
        )
        .await;
        let worker = worker();
        let first = client(&worker, to.address).await;
        let (_unanswered, mut sink) = start(&first, post("/unread")).await;
        task::spawn_local(async move { send_all(&mut sink, LARGE).await });
        let second = client(&worker, to.address).await;
        let (response, mut sink) = start(&second, post("/")).await;
        send_all(&mut sink, LARGE).await.unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn a_stalled_stream_of_tiny_frames_is_not_taken_for_an_attack() {
    run(async {
        const FRAMES: usize = 40_000;
        let to = destination(|_, mut response: SendResponse<Bytes>| async move {
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            // All at once, so that a turn of the proxy reads as many as it may.
            for n in 1..=FRAMES {
                sink.send_data(Bytes::from_static(b"tiny"), n == FRAMES)
                    .unwrap();
            }
        })
        .await;
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(1000)
            .data_frame_budget(usize::MAX);
        let client = client_with(&worker(), to.address, &builder).await;
        let mut body = stall(&client).await;
        assert_eq!(read(&mut body).await.unwrap().len(), 4 * FRAMES);
    });
}
