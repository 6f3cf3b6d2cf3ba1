//! One check of one endpoint, over a connection that is kept for the next.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn;
use hyper_util::rt::TokioIo;
use outrigger_config::{GrpcCheck, HealthCheck, HttpCheck, TcpCheck};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::grpc;

/// The method of gRPC health checks.
const HEALTH_PATH: &str = "/grpc.health.v1.Health/Check";

/// What of an answer is looked at.
const LOOKED_AT: usize = 16 * 1024;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Text = Full<Bytes>;

/// An idle connection of the check before, if the peer keeps it.
#[derive(Debug)]
pub(super) enum Kept {
    Http1(conn::http1::SendRequest<Text>),
    Http2(grpc::Sender),
}

/// Whether the endpoint is well, and why not; the caller bounds the time.
pub(super) async fn probe(
    settings: &HealthCheck,
    cluster: &str,
    address: SocketAddr,
    kept: &mut Option<Kept>,
) -> Result<(), Failure> {
    let kept_now = kept.take();
    match (&settings.http, &settings.tcp, &settings.grpc) {
        (Some(check), ..) => http(check, cluster, address, kept_now, kept).await,
        (_, Some(check), _) => tcp(check, address).await,
        (.., Some(check)) => check_grpc(check, cluster, address, kept_now, kept).await,
        (None, None, None) => TcpStream::connect(address)
            .await
            .map(drop)
            .map_err(Into::into),
    }
}

async fn tcp(check: &TcpCheck, address: SocketAddr) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address).await?;
    if let Some(text) = &check.send {
        stream.write_all(text.as_bytes()).await?;
    }
    let Some(wanted) = check.receive.as_deref().filter(|w| !w.is_empty()) else {
        return Ok(());
    };
    let mut seen = Vec::new();
    while seen.len() < LOOKED_AT {
        if stream.read_buf(&mut seen).await? == 0 {
            return Err("closed before what should come back".into());
        }
        if memchr::memmem::find(&seen, wanted.as_bytes()).is_some() {
            return Ok(());
        }
    }
    Err("what should come back is not in the first 16 KiB".into())
}

async fn http(
    check: &HttpCheck,
    cluster: &str,
    address: SocketAddr,
    kept_now: Option<Kept>,
    kept: &mut Option<Kept>,
) -> Result<(), Failure> {
    let mut sender = match kept_now {
        // Closed, or closing: `ready` tells.
        Some(Kept::Http1(mut sender)) => match sender.ready().await {
            Ok(()) => sender,
            Err(_) => connect_http1(address).await?,
        },
        _ => connect_http1(address).await?,
    };
    let request = Request::get(check.path.as_str())
        .header(header::HOST, check.host.as_deref().unwrap_or(cluster))
        .header(header::USER_AGENT, "outrigger-health-check")
        .body(Text::default())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    // Read to its end, else the connection could not be used again.
    if Limited::new(response.into_body(), LOOKED_AT)
        .collect()
        .await
        .is_ok()
    {
        *kept = Some(Kept::Http1(sender));
    }
    if check.expected_statuses.contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("status {}", status.as_u16()).into())
    }
}

async fn connect_http1(address: SocketAddr) -> Result<conn::http1::SendRequest<Text>, Failure> {
    let stream = TokioIo::new(connect(address).await?);
    let (sender, connection) = conn::http1::handshake(stream).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// A message with one string, answered by one with one enum, for which no code generator is needed.
async fn check_grpc(
    check: &GrpcCheck,
    cluster: &str,
    address: SocketAddr,
    kept_now: Option<Kept>,
    kept: &mut Option<Kept>,
) -> Result<(), Failure> {
    let mut sender = match kept_now {
        Some(Kept::Http2(mut sender)) => match sender.ready().await {
            Ok(()) => sender,
            Err(_) => grpc::handshake(connect(address).await?).await?,
        },
        _ => grpc::handshake(connect(address).await?).await?,
    };
    let authority = check.authority.as_deref().unwrap_or(cluster).parse()?;
    let message = health_request(&check.service);
    let answer = grpc::call(&mut sender, authority, HEALTH_PATH, &message, LOOKED_AT).await;
    *kept = Some(Kept::Http2(sender));
    match health_status(&answer?) {
        Some(1) => Ok(()),
        Some(2) => Err("NOT_SERVING".into()),
        other => Err(format!("serving status {other:?}").into()),
    }
}

/// `HealthCheckRequest { service = 1 }`.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0A);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

/// `HealthCheckResponse { status = 1 }`: 1 is SERVING. An enum's zero is not written.
fn health_status(message: &[u8]) -> Option<u8> {
    match message {
        [] => Some(0),
        [0x08, status] => Some(*status),
        _ => None,
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
