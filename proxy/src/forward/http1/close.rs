//! Closing a connection whose peer may still be sending.

use std::{net::Shutdown, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::io::read;
use crate::worker::Worker;

/// As nginx's `lingering_timeout`: how long the client may be silent.
const QUIET: Duration = Duration::from_secs(5);

/// As nginx's `lingering_time`: how long in all.
const WHOLE: Duration = Duration::from_secs(30);

/// Only loopback lies between the client and us: what it sent before it could see our end has
/// arrived long before this, and its process has had a turn.
const PARTING: Duration = Duration::from_millis(250);

/// Closes between two requests. One that crosses our end gets that end for an answer, which clients
/// know from any server and repeat, where a close at once would answer it with a reset.
pub(super) async fn part(worker: &Worker, client: &TcpStream) {
    close(worker, client, PARTING).await;
}

/// Closes our direction, then reads off what the client still sends until it closes too: unread
/// bytes would turn the close into a reset, and a reset can destroy an answer not yet read.
pub(super) async fn linger(worker: &Worker, client: &TcpStream) {
    close(worker, client, QUIET).await;
}

async fn close(worker: &Worker, client: &TcpStream, quiet: Duration) {
    if SockRef::from(client).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut buffer = worker.buffers.take();
    let reading_off = async {
        while let Ok(Ok(1..)) = timeout(quiet, read(client, &mut buffer)).await {
            buffer.clear();
        }
    };
    // Either way the client has had its time.
    let _ = timeout_at(Instant::now() + WHOLE, reading_off).await;
    worker.buffers.give(buffer);
}
