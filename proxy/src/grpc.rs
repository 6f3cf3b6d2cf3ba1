//! One call of gRPC over HTTP/2 in the clear: a message out, a message back. For what the proxy
//! itself asks others; calls of applications are relayed.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    Request, Response, StatusCode, Uri, header,
    uri::{Authority, Scheme},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::Upstream;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Asks on one connection, any number of questions at once.
pub(crate) type Sender = conn::http2::SendRequest<Full<Bytes>>;

/// An address as an authority.
pub(crate) fn authority(address: SocketAddr) -> Authority {
    // An address has nothing in it that an authority may not have.
    (address.to_string().parse()).unwrap_or_else(|_| Authority::from_static("localhost"))
}

/// Before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Speaks HTTP/2 on `io` from now on.
///
/// # Errors
/// When the connection breaks at once.
pub(crate) async fn handshake(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Sender, hyper::Error> {
    let (sender, connection) =
        conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// Calls the method at `path` with an encoded message, and returns its answer's.
///
/// # Errors
/// When it fails, by its own words or before it can say any, or answers with more than `max` bytes.
pub(crate) async fn call(
    sender: &mut Sender,
    authority: Authority,
    path: &'static str,
    message: &[u8],
    max: usize,
) -> Result<Bytes, Error> {
    sender.ready().await?;
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority)
        .path_and_query(path)
        .build()?;
    let request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(frame(message)))?;
    message_of(sender.send_request(request).await?, max).await
}

/// The message, uncompressed, after its length in four bytes.
fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

async fn message_of(response: Response<Incoming>, max: usize) -> Result<Bytes, Error> {
    if response.status() != StatusCode::OK {
        return Err(format!("HTTP status {}", response.status().as_u16()).into());
    }
    // An error has its status in the header and no message.
    let in_head = response.headers().get("grpc-status").cloned();
    let body = Limited::new(response.into_body(), max).collect().await?;
    let in_trailers = body.trailers().and_then(|t| t.get("grpc-status").cloned());
    match in_trailers.or(in_head) {
        Some(status) if status == "0" => {}
        Some(status) => {
            return Err(format!("grpc-status {}", status.to_str().unwrap_or("?")).into());
        }
        None => return Err("no grpc-status".into()),
    }
    let frame = body.to_bytes();
    match frame.first_chunk::<PREFIX>() {
        Some([0, length @ ..]) if u32::from_be_bytes(*length) as usize == frame.len() - PREFIX => {
            Ok(frame.slice(PREFIX..))
        }
        _ => Err("the answer is not one plain message".into()),
    }
}

/// An upstream connection as bytes; it stays known as ours until it is closed.
impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
