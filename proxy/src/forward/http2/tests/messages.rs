//! Requests and responses pass through as they are.

use std::{cell::RefCell, future::poll_fn, rc::Rc};

use bytes::Bytes;
use h2::{RecvStream, client, ext::Protocol, server, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::AsyncReadExt;

use super::peers::*;
use crate::testing::run;

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            (
                http::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    headers.keys().map(http::HeaderName::as_str).collect()
}

#[test]
fn headers_bodies_and_trailers_pass_both_ways_unchanged() {
    run(async {
        let to = destination(|request: Request<RecvStream>, mut response| async move {
            let (head, mut body) = request.into_parts();
            assert_eq!(head.method, Method::PUT);
            assert_eq!(head.uri, "http://user@service.test:8080/a/../b?c=%20d&e");
            assert_eq!(
                names(&head.headers),
                ["x-first", "te", "host", "cookie", "x-last"]
            );
            assert_eq!(head.headers["te"], "trailers");
            assert_eq!(head.headers["host"], "another.test");
            assert_eq!(head.headers.get_all("cookie").iter().count(), 2);
            assert_eq!(read(&mut body).await.unwrap(), b"question");
            assert_eq!(
                trailers(&mut body).await.unwrap(),
                map(&[("x-sum", "1"), ("x-more", "2")])
            );
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::IM_A_TEAPOT;
            *answer.headers_mut() = map(&[("server", "s"), ("x-a", "1"), ("date", "d")]);
            let mut sink = response.send_response(answer, false).unwrap();
            sink.send_data(Bytes::from_static(b"ans"), false).unwrap();
            sink.send_data(Bytes::from_static(b"wer"), false).unwrap();
            sink.send_trailers(map(&[("grpc-status", "0")])).unwrap();
        })
        .await;
        let client = client(&worker(), to.address).await;
        let mut request = Request::new(());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = "http://user@service.test:8080/a/../b?c=%20d&e"
            .parse()
            .unwrap();
        *request.headers_mut() = map(&[
            ("x-first", "1"),
            ("te", "trailers"),
            ("host", "another.test"),
            ("cookie", "a=1"),
        ]);
        let headers = request.headers_mut();
        headers.append("cookie", HeaderValue::from_static("b=2"));
        headers.append("x-last", HeaderValue::from_static("\u{7e}"));
        let (response, mut sink) = start(&client, request).await;
        sink.send_data(Bytes::from_static(b"question"), false)
            .unwrap();
        sink.send_trailers(map(&[("x-sum", "1"), ("x-more", "2")]))
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(names(response.headers()), ["server", "x-a", "date"]);
        let mut body = response.into_body();
        assert_eq!(read(&mut body).await.unwrap(), b"answer");
        assert_eq!(
            trailers(&mut body).await.unwrap(),
            map(&[("grpc-status", "0")])
        );
    });
}

#[test]
fn a_request_without_authority_keeps_its_host() {
    run(async {
        let to = destination(|request: Request<RecvStream>, response| async move {
            assert_eq!(request.uri().authority(), None);
            assert_eq!(request.uri().path(), "/p");
            assert_eq!(request.headers()["host"], "h.test");
            ok(request, response).await;
        })
        .await;
        let client = client(&worker(), to.address).await;
        let request = Request::get("/p")
            .version(http::Version::HTTP_11)
            .header("host", "h.test")
            .body(())
            .unwrap();
        assert_eq!(ask(&client, request).await.unwrap().status(), 200);
    });
}

#[test]
fn an_answer_of_trailers_only_ends_with_its_head() {
    run(async {
        let to = destination(|_, mut response: SendResponse<Bytes>| async move {
            let mut answer = Response::new(());
            *answer.headers_mut() = map(&[("grpc-status", "5")]);
            response.send_response(answer, true).unwrap();
        })
        .await;
        let client = client(&worker(), to.address).await;
        let response = ask(&client, get("/")).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "5");
        assert!(response.body().is_end_stream());
    });
}

#[test]
fn each_message_of_a_bidirectional_stream_is_answered_before_the_next_is_sent() {
    run(async {
        let to = destination(|request: Request<RecvStream>, mut response| async move {
            let mut body = request.into_body();
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            while let Some(chunk) = body.data().await {
                let chunk = chunk.unwrap();
                body.flow_control().release_capacity(chunk.len()).unwrap();
                sink.send_data(chunk, false).unwrap();
            }
            sink.send_trailers(map(&[("grpc-status", "0")])).unwrap();
        })
        .await;
        let client = client(&worker(), to.address).await;
        let (response, mut sink) = start(&client, post("/chat")).await;
        let mut body = response.await.unwrap().into_body();
        for message in ["one", "two", "three"] {
            sink.send_data(Bytes::from(message), false).unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), message);
        }
        sink.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(trailers(&mut body).await.unwrap()["grpc-status"], "0");
    });
}

#[test]
fn interim_responses_come_before_the_answer_and_a_client_may_wait_for_them() {
    run(async {
        let to = destination(|request: Request<RecvStream>, mut response| async move {
            for (status, name) in [(100, "x-go"), (103, "link")] {
                let mut interim = Response::new(());
                *interim.status_mut() = StatusCode::from_u16(status).unwrap();
                *interim.headers_mut() = map(&[(name, "v")]);
                response.send_informational(interim).unwrap();
            }
            assert_eq!(read(&mut request.into_body()).await.unwrap(), b"body");
            response.send_response(Response::new(()), true).unwrap();
        })
        .await;
        let client = client(&worker(), to.address).await;
        let mut request = post("/");
        *request.headers_mut() = map(&[("expect", "100-continue")]);
        let (mut response, mut sink) = start(&client, request).await;
        for (status, name) in [(100, "x-go"), (103, "link")] {
            let interim = poll_fn(|cx| response.poll_informational(cx)).await;
            let interim = interim.unwrap().unwrap();
            assert_eq!(interim.status(), status);
            assert_eq!(interim.headers()[name], "v");
        }
        sink.send_data(Bytes::from_static(b"body"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn an_early_answer_is_passed_on_and_the_rest_of_the_request_is_not_waited_for() {
    run(async {
        let to = destination(|_request, mut response: SendResponse<Bytes>| async move {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            let mut sink = response.send_response(answer, false).unwrap();
            sink.send_data(Bytes::from_static(b"too large"), true)
                .unwrap();
        })
        .await;
        let client = client(&worker(), to.address).await;
        let (response, mut sink) = start(&client, post("/")).await;
        sink.send_data(Bytes::from(vec![0; 40_000]), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 413);
        assert_eq!(read(&mut response.into_body()).await.unwrap(), b"too large");
        let reset = poll_fn(|cx| sink.poll_reset(cx)).await.unwrap();
        assert_eq!(reset, h2::Reason::NO_ERROR);
    });
}

#[test]
fn connect_is_a_tunnel() {
    run(async {
        let to = destination(|request: Request<RecvStream>, mut response| async move {
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.uri(), "db.test:5432");
            let mut body = request.into_body();
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            let hello = body.data().await.unwrap().unwrap();
            sink.send_data(hello, true).unwrap();
        })
        .await;
        let client = client(&worker(), to.address).await;
        let request = Request::connect("db.test:5432").body(()).unwrap();
        let (response, mut sink) = start(&client, request).await;
        let mut body = response.await.unwrap().into_body();
        sink.send_data(Bytes::from_static(b"hello"), true).unwrap();
        assert_eq!(read(&mut body).await.unwrap(), b"hello");
    });
}

#[test]
fn extended_connect_is_offered_where_the_destination_has_offered_it_and_nowhere_else() {
    run(async {
        let seen: Rc<RefCell<Option<Protocol>>> = Rc::default();
        let noted = seen.clone();
        let with = destination_with(
            server::Builder::new().enable_connect_protocol().clone(),
            move |request: Request<RecvStream>, response| {
                *noted.borrow_mut() = request.extensions().get::<Protocol>().cloned();
                ok(request, response)
            },
        )
        .await;
        let without = destination(ok).await;
        let worker = worker();
        for _ in 0..2 {
            let plain = client(&worker, without.address).await;
            ask(&plain, get("/")).await.unwrap();
            assert!(!plain.is_extended_connect_protocol_enabled());
        }
        // The first client learns it when the destination has been heard, later ones at once.
        let first = client(&worker, with.address).await;
        ask(&first, get("/")).await.unwrap();
        until(|| first.is_extended_connect_protocol_enabled()).await;
        let second = client(&worker, with.address).await;
        until(|| second.is_extended_connect_protocol_enabled()).await;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = "http://service.test/socket".parse().unwrap();
        request
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        assert_eq!(ask(&second, request).await.unwrap().status(), 200);
        assert_eq!(seen.borrow().as_ref().unwrap().as_str(), "websocket");
    });
}

#[test]
fn what_detection_has_read_is_read_first() {
    run(async {
        let to = destination(ok).await;
        let mut sent = PREFACE.to_vec();
        sent.extend(frame(SETTINGS, 0, 0, &[]));
        // GET / over http, from the static table, without authority.
        sent.extend(frame(HEADERS, 0x5, 1, &[0x82, 0x84, 0x86]));
        for cut in [1, 12, PREFACE.len(), PREFACE.len() + 5, sent.len()] {
            let stream = connect_after(&worker(), to.address, &sent[..cut]).await;
            let mut peer = RawPeer(stream);
            tokio::io::AsyncWriteExt::write_all(&mut peer.0, &sent[cut..])
                .await
                .unwrap();
            assert_eq!(peer.next_of(HEADERS).await.payload, STATUS_200);
        }
    });
}

#[test]
fn garbage_after_the_preface_ends_the_connection_with_goaway() {
    run(async {
        let to = destination(ok).await;
        let mut sent = PREFACE.to_vec();
        sent.extend(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut peer = RawPeer(connect_after(&worker(), to.address, &sent).await);
        let goaway = peer.next_of(GOAWAY).await;
        assert_ne!(goaway.payload[4..8], [0; 4]);
        let mut rest = Vec::new();
        let _ = peer.0.read_to_end(&mut rest).await;
        assert_eq!(to.connections.get(), 0);
    });
}

#[test]
fn a_client_with_large_windows_gets_a_large_body_whole() {
    run(async {
        const SIZE: usize = 20 << 20;
        let to = destination(|_, mut response: SendResponse<Bytes>| async move {
            let mut sink = response.send_response(Response::new(()), false).unwrap();
            let _ = send_all(&mut sink, SIZE).await;
        })
        .await;
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20);
        let client = client_with(&worker(), to.address, &builder).await;
        let mut body = ask(&client, get("/")).await.unwrap().into_body();
        assert_eq!(read(&mut body).await.unwrap().len(), SIZE);
    });
}
