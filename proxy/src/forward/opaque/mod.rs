//! Bytes that we do not understand, and do not need to, relayed untouched both ways.

mod direction;
mod patience;
mod relay;
#[cfg(test)]
mod tests;

use tokio::net::TcpStream;

pub use relay::{Relayed, relay};
use relay::{Traffic, relay_counted};

use crate::{
    accept::reset_when_dropped,
    buffer::Buffer,
    connection::Connection,
    detect::{Detected, First},
    failure::Failure,
    observe::{Protocol, Record},
    upstream::{self, Upstream},
};

/// Relays a connection to its original destination until it ends.
pub async fn serve(connection: Connection, client: TcpStream, first: First) {
    let mut tunnel = Tunnel {
        connection,
        client,
        upstream: first.upstream,
        detected: first.detected,
        traffic: Traffic::default(),
        // What cuts it short is the end of the worker.
        failure: Some(Failure::Drained),
    };
    let relayed = tunnel.run(first.client_bytes, first.upstream_bytes).await;
    tunnel.failure = relayed.err();
}

/// Ends a connection of which nothing is known but that it failed.
pub fn fail(connection: Connection, client: TcpStream, failure: Failure) {
    drop(Tunnel {
        connection,
        client,
        upstream: None,
        detected: Detected::Opaque,
        traffic: Traffic::default(),
        failure: Some(failure),
    });
}

/// A connection and its counterpart. However it ends, it is recorded once, and a failure ends both
/// with a reset, which nobody mistakes for an orderly close.
#[derive(Debug)]
struct Tunnel {
    connection: Connection,
    client: TcpStream,
    upstream: Option<Upstream>,
    detected: Detected,
    traffic: Traffic,
    failure: Option<Failure>,
}

impl Tunnel {
    async fn run(&mut self, to_upstream: Buffer, to_client: Buffer) -> Result<(), Failure> {
        let connection = &self.connection;
        let upstream = match self.upstream.take() {
            Some(upstream) => upstream,
            None => {
                // Large while under way, and over when the tunnel begins.
                Box::pin(upstream::dial(
                    &connection.worker,
                    connection.original.0,
                    &self.client,
                ))
                .await?
            }
        };
        let upstream = &self.upstream.insert(upstream).stream;
        relay_counted(
            connection,
            &self.client,
            upstream,
            to_upstream,
            to_client,
            &self.traffic,
        )
        .await
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if self.failure.is_some() {
            reset_when_dropped(&self.client);
            if let Some(upstream) = &self.upstream {
                reset_when_dropped(&upstream.stream);
            }
        }
        let (protocol, sni) = match &self.detected {
            Detected::Tls { server_name } => (Protocol::Tls, server_name.as_deref()),
            _ => (Protocol::Opaque, None),
        };
        self.connection.record(&Record {
            protocol,
            client: self.connection.client,
            original: self.connection.original,
            upstream: self.upstream.as_ref().map(|u| u.peer),
            upstream_reused: false,
            request: None,
            sni,
            status: None,
            failure: self.failure,
            bytes_received: self.traffic.received.get(),
            bytes_sent: self.traffic.sent.get(),
            duration: self.connection.accepted.elapsed(),
        });
    }
}
