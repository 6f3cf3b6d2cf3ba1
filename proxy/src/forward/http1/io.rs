//! Waiting reads and writes of the relay: one system call each when the event loop has said that
//! the socket is ready, none when it has not.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

use crate::buffer::{Buffer, try_write};

/// Reads what has arrived into the buffer's free space, of which there must be some. 0 means the
/// peer has closed.
fn poll_read(
    cx: &mut Context<'_>,
    from: &TcpStream,
    buffer: &mut Buffer,
) -> Poll<io::Result<usize>> {
    debug_assert!(!buffer.space().is_empty());
    loop {
        ready!(from.poll_read_ready(cx))?;
        match buffer.try_read(from) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return Poll::Ready(read),
        }
    }
}

pub(super) async fn read(from: &TcpStream, buffer: &mut Buffer) -> io::Result<usize> {
    poll_fn(|cx| poll_read(cx, from, buffer)).await
}

/// Writes as much of `bytes` as is taken at once; at least one.
pub(super) async fn write_some(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        poll_fn(|cx| to.poll_write_ready(cx)).await?;
        match try_write(to, bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return written,
        }
    }
}
