//! What became of a gRPC call, as its endpoint's cluster is told.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, Response};

use super::peers::*;
use crate::{cluster::Cluster, testing::run};

/// By the path: the status at the end of the answer, or as all of it, or none.
async fn answer(request: Request<RecvStream>, mut response: SendResponse<Bytes>) {
    let mut head = Response::new(());
    let content_type = "application/grpc+proto".parse().expect("a value");
    head.headers_mut().insert("content-type", content_type);
    let path = request.uri().path().to_owned();
    if let Some(status) = path.strip_prefix("/only/") {
        head.headers_mut()
            .insert("grpc-status", status.parse().expect("a value"));
        response.send_response(head, true).expect("sent");
        return;
    }
    let mut sink = response.send_response(head, false).expect("sent");
    sink.send_data(Bytes::from_static(b"\0\0\0\0\0"), path == "/none")
        .expect("sent");
    match path.strip_prefix("/end/") {
        Some(status) => {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", status.parse().expect("a value"));
            sink.send_trailers(trailers).expect("sent");
        }
        None if path == "/broken" => sink.send_reset(Reason::INTERNAL_ERROR),
        None => {}
    }
}

/// Successes, errors and failures so far.
fn counts(cluster: &Cluster) -> (u64, u64, u64) {
    let endpoint = &cluster.endpoints()[0];
    let of = &endpoint.counts;
    let [ok, errors, failures] = [&of.successes, &of.errors, &of.connect_failures];
    (
        ok.load(Ordering::Relaxed),
        errors.load(Ordering::Relaxed),
        failures.load(Ordering::Relaxed),
    )
}

#[test]
fn its_status_counts_wherever_it_stands() {
    run(async {
        let to = destination(answer).await;
        let (worker, cluster) = clustered(to.address, "");
        let client = client(&worker, to.address).await;
        for (path, expected) in [
            ("/end/0", (1, 0, 0)),
            ("/end/14", (1, 1, 0)),
            ("/only/0", (2, 1, 0)),
            ("/only/13", (2, 2, 0)),
            // NOT_FOUND is the caller's.
            ("/end/5", (3, 2, 0)),
            // Without a status a call has not succeeded.
            ("/none", (3, 3, 0)),
            ("/broken", (3, 3, 1)),
        ] {
            match ask(&client, get(path)).await {
                Ok(response) => {
                    let mut body = response.into_body();
                    while let Some(Ok(_)) = body.data().await {}
                    let _ = body.trailers().await;
                }
                // A reset may overtake the head.
                Err(error) => assert_eq!((path, error.is_reset()), ("/broken", true)),
            }
            until(|| counts(&cluster) == expected).await;
        }
    });
}

#[test]
fn calls_that_end_badly_trip_the_breaker_of_their_endpoint() {
    run(async {
        let to = destination(answer).await;
        let (worker, cluster) = clustered(
            to.address,
            "endpoint_breaker: { consecutive_failures: 3, trip_duration: 1h, max_trip_duration: 1h }",
        );
        let client = client(&worker, to.address).await;
        for _ in 0..3 {
            let response = ask(&client, get("/end/14")).await.expect("a head");
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.data().await {}
            let _ = body.trailers().await;
        }
        until(|| counts(&cluster).1 == 3).await;
        let refused = ask(&client, get("/end/0")).await.expect("a head");
        assert_eq!(refused.status(), 503);
    });
}
