//! What goes wrong, and what the other side is told.

use std::{cell::Cell, future::poll_fn, rc::Rc};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task,
};

use super::peers::*;
use crate::{
    forward::http2::asking::MAX_REPLAYS,
    testing::{self, run},
};

#[test]
fn the_reset_code_of_a_client_reaches_the_destination() {
    run(async {
        let (tell, told) = oneshot::channel();
        let tell = Rc::new(Cell::new(Some(tell)));
        let to = destination(move |_request, mut response: SendResponse<Bytes>| {
            let tell = tell.clone();
            async move {
                let reason = poll_fn(|cx| response.poll_reset(cx)).await.unwrap();
                tell.take().unwrap().send(reason).unwrap();
            }
        })
        .await;
        let client = client(&worker(), to.address).await;
        let (_response, mut sink) = start(&client, post("/")).await;
        sink.send_data(Bytes::from_static(b"x"), false).unwrap();
        until(|| to.connections.get() == 1).await;
        sink.send_reset(Reason::ENHANCE_YOUR_CALM);
        assert_eq!(told.await.unwrap(), Reason::ENHANCE_YOUR_CALM);
    });
}

#[test]
fn a_client_that_goes_away_cancels_its_streams() {
    run(async {
        let (tell, told) = oneshot::channel();
        let tell = Rc::new(Cell::new(Some(tell)));
        let to = destination(move |_request, mut response: SendResponse<Bytes>| {
            let tell = tell.clone();
            async move {
                let mut sink = response.send_response(Response::new(()), false).unwrap();
                let reason = poll_fn(|cx| sink.poll_reset(cx)).await.unwrap();
                tell.take().unwrap().send(reason).unwrap();
            }
        })
        .await;
        let stream = connect(&worker(), to.address).await;
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = task::spawn_local(connection);
        let response = ask(&client, get("/")).await.unwrap();
        connection.abort();
        drop((response, client));
        assert_eq!(told.await.unwrap(), Reason::CANCEL);
    });
}

#[test]
fn a_reset_before_the_answer_reaches_the_client_with_its_code() {
    run(async {
        let to = destination(|_request, mut response: SendResponse<Bytes>| async move {
            response.send_reset(Reason::HTTP_1_1_REQUIRED);
        })
        .await;
        let client = client(&worker(), to.address).await;
        let error = ask(&client, get("/")).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::HTTP_1_1_REQUIRED));
        assert!(error.is_reset() && error.is_remote());
    });
}

#[test]
fn a_reset_within_the_answer_comes_after_what_was_answered() {
    run(async {
        let to = destination(|_request, mut response: SendResponse<Bytes>| async move {
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            sink.send_data(Bytes::from_static(b"half"), false).unwrap();
            task::yield_now().await;
            sink.send_reset(Reason::ENHANCE_YOUR_CALM);
        })
        .await;
        let client = client(&worker(), to.address).await;
        let response = ask(&client, get("/")).await.unwrap();
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "half");
        let error = body.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    });
}

#[test]
fn a_destination_that_breaks_off_its_answer_is_a_reset_with_internal_error() {
    run(async {
        let (listener, address) = testing::listener().await;
        task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut peer = RawPeer::server(stream, &[]).await;
            let stream = peer.next_of(HEADERS).await.stream;
            peer.send(HEADERS, 0x4, stream, STATUS_200).await;
            peer.send(DATA, 0, stream, b"half").await;
        });
        let client = client(&worker(), address).await;
        let mut body = ask(&client, get("/")).await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "half");
        let error = body.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    });
}

#[test]
fn failures_before_the_answer_explain_themselves() {
    run(async {
        let worker = worker();
        let refusing = client(&worker, testing::closed_port().await).await;
        let response = ask(&refusing, get("/")).await.unwrap();
        assert_eq!(
            proxy_error(&response),
            (502.try_into().unwrap(), "connection_refused".into())
        );
        let body = read(&mut response.into_body()).await.unwrap();
        assert_eq!(body, b"outrigger: destination refused the connection\n");
        let mut head = get("/");
        *head.method_mut() = http::Method::HEAD;
        let response = ask(&refusing, head).await.unwrap();
        assert_eq!(response.status(), 502);
        assert!(response.body().is_end_stream());

        let (listener, address) = testing::listener().await;
        task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let speaking_http1 = client(&worker, address).await;
        let response = ask(&speaking_http1, get("/")).await.unwrap();
        assert_eq!(
            proxy_error(&response),
            (502.try_into().unwrap(), "http_protocol_error".into())
        );

        let (listener, address) = testing::listener().await;
        task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            RawPeer::server(stream, &[]).await.next_of(HEADERS).await;
        });
        let closing = client(&worker, address).await;
        let response = ask(&closing, post("/")).await.unwrap();
        assert_eq!(
            proxy_error(&response),
            (502.try_into().unwrap(), "connection_terminated".into())
        );
    });
}

#[test]
fn a_failed_dial_fails_everyone_who_waits_for_it_at_once() {
    run(async {
        let client = client(&worker(), testing::closed_port().await).await;
        let asked: Vec<_> = (0..50)
            .map(|_| {
                let client = client.clone();
                task::spawn_local(async move { ask(&client, get("/")).await.unwrap().status() })
            })
            .collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap(), 502);
        }
    });
}

#[test]
fn a_request_given_up_while_dialling_gives_up_the_dial_with_the_client() {
    run(async {
        let (address, _held) = testing::black_hole().await;
        let worker = worker();
        let stream = connect(&worker, address).await;
        let (client, connection) = h2::client::handshake::<_>(stream).await.unwrap();
        let connection = task::spawn_local(connection);
        let asked = task::spawn_local(async move { ask(&client, get("/")).await.err() });
        until(|| !worker.shared.own.is_empty()).await;
        connection.abort();
        asked.abort();
        until(|| worker.shared.own.is_empty()).await;
    });
}

#[test]
fn too_many_header_lines_are_answered_with_431() {
    run(async {
        let to = destination(ok).await;
        let client = client(&worker(), to.address).await;
        let mut request = get("/");
        for n in 0..101 {
            let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
            request.headers_mut().insert(name, 1.into());
        }
        let response = ask(&client, request).await.unwrap();
        assert_eq!(
            proxy_error(&response),
            (431.try_into().unwrap(), "http_request_error".into())
        );
        assert_eq!(to.connections.get(), 0);
    });
}

/// Refuses the first `count` requests, then answers with what it was sent.
async fn refusing(count: usize) -> (Destination, Rc<Cell<usize>>) {
    let asked = Rc::new(Cell::new(0));
    let counted = asked.clone();
    let to = destination(move |request: Request<RecvStream>, mut response| {
        counted.set(counted.get() + 1);
        let is_refused = counted.get() <= count;
        async move {
            let mut body = request.into_body();
            if is_refused {
                // Not before some of the body has come.
                if !body.is_end_stream() {
                    body.data().await.unwrap().unwrap();
                }
                response.send_reset(Reason::REFUSED_STREAM);
                return;
            }
            let received = read(&mut body).await.unwrap();
            let trailers = trailers(&mut body).await;
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            sink.send_data(received.into(), trailers.is_none()).unwrap();
            if let Some(trailers) = trailers {
                sink.send_trailers(trailers).unwrap();
            }
        }
    })
    .await;
    (to, asked)
}

#[test]
fn a_refused_request_is_sent_again_on_another_connection_body_and_all() {
    run(async {
        let (to, asked) = refusing(2).await;
        let client = client(&worker(), to.address).await;
        let (response, mut sink) = start(&client, post("/")).await;
        sink.send_data(Bytes::from_static(b"first "), false)
            .unwrap();
        until(|| asked.get() == 3).await;
        sink.send_data(Bytes::from_static(b"second"), false)
            .unwrap();
        let mut last = http::HeaderMap::new();
        last.insert("x-last", 7.into());
        sink.send_trailers(last.clone()).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(read(&mut body).await.unwrap(), b"first second");
        assert_eq!(trailers(&mut body).await.unwrap(), last);
        assert!(to.connections.get() > 1);
    });
}

#[test]
fn a_request_that_had_ended_when_it_was_refused_is_sent_again_to_its_end() {
    run(async {
        for has_trailers in [false, true] {
            let (to, _) = refusing(1).await;
            let client = client(&worker(), to.address).await;
            let (response, mut sink) = start(&client, post("/")).await;
            sink.send_data(Bytes::from_static(b"all"), !has_trailers)
                .unwrap();
            if has_trailers {
                sink.send_trailers(http::HeaderMap::new()).unwrap();
            }
            let mut body = response.await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap(), b"all");
        }
    });
}

#[test]
fn a_client_is_told_of_a_refusal_that_cannot_be_mended() {
    run(async {
        let (always, asked) = refusing(usize::MAX).await;
        let worker = worker();
        let first = client(&worker, always.address).await;
        let error = ask(&first, get("/")).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
        assert_eq!(asked.get(), 1 + MAX_REPLAYS);

        // More of the body has gone than is kept.
        let to = destination(|request: Request<RecvStream>, mut response| async move {
            let mut body = request.into_body();
            let mut received = 0;
            while received < 100_000 {
                let chunk = body.data().await.unwrap().unwrap();
                body.flow_control().release_capacity(chunk.len()).unwrap();
                received += chunk.len();
            }
            response.send_reset(Reason::REFUSED_STREAM);
        })
        .await;
        let second = client(&worker, to.address).await;
        let (response, mut sink) = start(&second, post("/")).await;
        task::spawn_local(async move { send_all(&mut sink, 1 << 20).await });
        let error = response.await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
        assert_eq!(to.connections.get(), 1);
    });
}

#[test]
fn streams_that_a_goaway_leaves_out_are_sent_again_and_the_others_finish() {
    run(async {
        let (listener, address) = testing::listener().await;
        let connections = Rc::new(Cell::new(0));
        let counted = connections.clone();
        task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.set(counted.get() + 1);
                let is_first = counted.get() == 1;
                task::spawn_local(async move {
                    let mut peer = RawPeer::server(stream, &[]).await;
                    let mut seen = Vec::new();
                    loop {
                        seen.push(peer.next_of(HEADERS).await.stream);
                        if is_first && seen.len() < 3 {
                            continue;
                        }
                        if is_first {
                            // Only the first stream was processed.
                            let mut goaway = seen[0].to_be_bytes().to_vec();
                            goaway.extend([0; 4]);
                            peer.send(GOAWAY, 0, 0, &goaway).await;
                            peer.send(HEADERS, 0x5, seen[0], STATUS_200).await;
                            while peer.next().await.is_some() {}
                            return;
                        }
                        let stream = seen[seen.len() - 1];
                        peer.send(HEADERS, 0x5, stream, STATUS_200).await;
                    }
                });
            }
        });
        let client = client(&worker(), address).await;
        let asked: Vec<_> = (0..3)
            .map(|_| {
                let client = client.clone();
                task::spawn_local(async move { ask(&client, post("/")).await.unwrap().status() })
            })
            .collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap(), 200);
        }
        assert_eq!(connections.get(), 2);
    });
}

/// What nginx does after `keepalive_requests`.
#[test]
fn a_server_that_ends_each_connection_after_some_requests_costs_no_request() {
    run(async {
        let (listener, address) = testing::listener().await;
        task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                task::spawn_local(async move {
                    let mut peer = RawPeer::server(stream, &[]).await;
                    let mut last = 0;
                    for _ in 0..5 {
                        let Some(frame) = peer.next_of_or_end(HEADERS).await else {
                            return;
                        };
                        last = frame.stream;
                        peer.send(HEADERS, 0x5, last, STATUS_200).await;
                    }
                    let goaway = [&last.to_be_bytes()[..], &[0; 4]].concat();
                    peer.send(GOAWAY, 0, 0, &goaway).await;
                    while peer.next().await.is_some() {}
                });
            }
        });
        let client = client(&worker(), address).await;
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                task::spawn_local(async move {
                    for _ in 0..25 {
                        assert_eq!(ask(&client, post("/")).await.unwrap().status(), 200);
                    }
                })
            })
            .collect();
        for all in asked {
            all.await.unwrap();
        }
    });
}

#[test]
fn an_idempotent_request_on_a_reused_connection_that_breaks_is_sent_again_and_others_are_not() {
    run(async {
        let (listener, address) = testing::listener().await;
        let connections = Rc::new(Cell::new(0));
        let counted = connections.clone();
        task::spawn_local(async move {
            // Each connection answers once and breaks at the second request.
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.set(counted.get() + 1);
                task::spawn_local(async move {
                    let mut peer = RawPeer::server(stream, &[]).await;
                    let stream = peer.next_of(HEADERS).await.stream;
                    peer.send(HEADERS, 0x5, stream, STATUS_200).await;
                    peer.next_of(HEADERS).await;
                });
            }
        });
        let client = client(&worker(), address).await;
        assert_eq!(ask(&client, get("/")).await.unwrap().status(), 200);
        assert_eq!(ask(&client, get("/")).await.unwrap().status(), 200);
        assert_eq!(connections.get(), 2);
        let response = ask(&client, post("/")).await.unwrap();
        assert_eq!(proxy_error(&response).1, "connection_terminated");
    });
}

#[test]
fn a_rapid_series_of_resets_ends_the_client_and_never_reaches_the_destination() {
    run(async {
        let to = destination(ok).await;
        let mut sent = PREFACE.to_vec();
        sent.extend(frame(SETTINGS, 0, 0, &[]));
        for stream in (1..2000).step_by(2) {
            sent.extend(frame(HEADERS, 0x5, stream, &[0x82, 0x84, 0x86]));
            sent.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        }
        let mut peer = RawPeer(connect_after(&worker(), to.address, &sent).await);
        let goaway = peer.next_of(GOAWAY).await;
        let calm = u32::from(Reason::ENHANCE_YOUR_CALM).to_be_bytes();
        assert_eq!(goaway.payload[4..8], calm);
        assert_eq!(to.connections.get(), 0);
    });
}
