use std::time::Duration;

use outrigger_config::{Cluster as Settings, GrpcCheck, HttpCheck, Locality, Span, TcpCheck};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::LocalSet,
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn cluster(check: HealthCheck, address: SocketAddr) -> (Arc<Cluster>, Checker) {
    let mut settings: Settings =
        serde_json::from_str(r#"{"name": "c", "endpoints": []}"#).expect("a cluster");
    settings.health_check = Some(check.clone());
    let now = Instant::now();
    let cluster = Cluster::new(settings.into(), Locality::default(), 1, now);
    cluster.set_endpoints(&[outrigger_config::Endpoint::at(address)], true, now);
    let mut checker = Checker::new(cluster.clone(), check, 1);
    checker.follow(now);
    (cluster, checker)
}

fn fast() -> HealthCheck {
    HealthCheck {
        interval: Span::from_millis(20),
        timeout: Span::from_millis(500),
        ..HealthCheck::default()
    }
}

async fn change(checker: &mut Checker) {
    let changed = tokio::time::timeout(DEADLINE, checker.changed()).await;
    changed.expect("a change of health");
}

#[tokio::test]
async fn http_falls_and_rises_over_one_connection() {
    let server = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            // There is no second one: whoever does not keep the first fails from here on.
            drop(listener);
            for n in 0.. {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.expect("read") == 0 {
                        return;
                    }
                }
                let status = if (3..8).contains(&n) {
                    "500 Oops"
                } else {
                    "200 OK"
                };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("written");
            }
        });
        address
    };
    LocalSet::new()
        .run_until(async {
            let check = HealthCheck {
                http: Some(HttpCheck::default()),
                ..fast()
            };
            let (cluster, mut checker) = cluster(check, server.await);
            assert!(cluster.endpoints()[0].is_unhealthy(), "unproven");
            for is_unhealthy in [false, true, false] {
                change(&mut checker).await;
                assert_eq!(cluster.endpoints()[0].is_unhealthy(), is_unhealthy);
            }
        })
        .await;
}

#[tokio::test]
async fn tcp_wants_its_text_back() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let address = listener.local_addr().expect("an address");
            tokio::task::spawn_local(async move {
                for answer in ["+PONG\r\n", "-ERR\r\n", "-ERR\r\n", "-ERR\r\n"] {
                    let (mut stream, _) = listener.accept().await.expect("a connection");
                    stream.write_all(answer.as_bytes()).await.expect("written");
                }
            });
            let tcp = TcpCheck {
                send: Some("PING\r\n".into()),
                receive: Some("PONG".into()),
            };
            let (cluster, mut checker) = cluster(
                HealthCheck {
                    tcp: Some(tcp),
                    ..fast()
                },
                address,
            );
            change(&mut checker).await;
            assert!(!cluster.endpoints()[0].is_unhealthy());
            change(&mut checker).await;
            assert!(cluster.endpoints()[0].is_unhealthy());
        })
        .await;
}

#[tokio::test]
async fn grpc_serving_is_well_and_not_serving_is_not() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let address = listener.local_addr().expect("an address");
            tokio::task::spawn_local(async move {
                let (stream, _) = listener.accept().await.expect("a connection");
                let mut server = h2::server::handshake(stream).await.expect("HTTP/2");
                for n in 0.. {
                    let Some(Ok((request, mut respond))) = server.accept().await else {
                        return;
                    };
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let status = if n == 0 { 1 } else { 2 };
                    let head = http::Response::builder().header("content-type", "application/grpc");
                    let mut body = respond
                        .send_response(head.body(()).expect("a head"), false)
                        .expect("sent");
                    let frame = vec![0, 0, 0, 0, 2, 8, status];
                    body.send_data(frame.into(), false).expect("sent");
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    body.send_trailers(trailers).expect("sent");
                }
            });
            let grpc = GrpcCheck {
                service: "s".into(),
                authority: None,
            };
            let (cluster, mut checker) = cluster(
                HealthCheck {
                    grpc: Some(grpc),
                    ..fast()
                },
                address,
            );
            change(&mut checker).await;
            assert!(!cluster.endpoints()[0].is_unhealthy());
            change(&mut checker).await;
            assert!(cluster.endpoints()[0].is_unhealthy());
        })
        .await;
}
