//! Bytes that we do not understand, and do not need to, relayed untouched both ways.

mod direction;
mod patience;
mod relay;
#[cfg(test)]
mod tests;

use std::time::Instant;

use tokio::net::TcpStream;

pub use patience::TunnelLimits;
pub use relay::{Relayed, relay};
use relay::{Traffic, relay_counted};

use crate::{
    accept::reset_when_dropped,
    buffer::Buffer,
    cluster::Outcome,
    connection::Connection,
    detect::{ClientHello, Detected, First},
    dispatch::{Dialled, Tried, Way},
    failure::Failure,
    observe::{Protocol, Record, trace::Trace},
    route::Routed,
};

/// Relays a connection until it ends.
pub async fn serve(connection: Connection, client: TcpStream, first: First) {
    let mut tunnel = Tunnel {
        connection,
        client,
        routed: first.routed.unwrap_or_default(),
        dialled: first.dialled,
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
        routed: Routed::default(),
        dialled: None,
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
    routed: Routed,
    dialled: Option<Dialled>,
    detected: Detected,
    traffic: Traffic,
    failure: Option<Failure>,
}

impl Tunnel {
    async fn run(&mut self, to_upstream: Buffer, to_client: Buffer) -> Result<(), Failure> {
        let connection = &self.connection;
        let at_hand = self.dialled.take();
        // A server that has spoken is the one to be spoken to, whatever its client says now.
        if at_hand.is_none() || to_client.is_empty() && self.hello().is_some() {
            let routed = connection.route(self.hello());
            if at_hand.is_none() || !routed.is_by_same_route(&self.routed) {
                self.routed = routed;
                let rng = &connection.worker.rng;
                connection.admit(&self.routed, &self.client).await?;
                self.routed.admit_opaque(rng, &self.client).await?;
            }
        }
        let target = &self.routed.target;
        let mut dialled = match at_hand.filter(|d| d.hop.is_towards(target)) {
            Some(dialled) => dialled,
            None => {
                let key = target.key_of_source(connection.client.0.ip());
                let way = Way {
                    worker: &connection.worker,
                    original: connection.original,
                    target,
                    key: &key,
                };
                // Large while under way, and over when the tunnel begins.
                let mut tried = Tried::default();
                Box::pin(way.connect(way.choose()?, &self.client, &mut tried)).await?
            }
        };
        // Of bytes that nobody understands, only that tells of the endpoint.
        dialled.hop.report(Outcome::Success, Instant::now());
        let upstream = &self.dialled.insert(dialled).upstream.stream;
        relay_counted(
            connection,
            &self.client,
            upstream,
            to_upstream,
            to_client,
            TunnelLimits::of(connection, &self.routed),
            &self.traffic,
        )
        .await
    }
}

impl Tunnel {
    fn hello(&self) -> Option<&ClientHello> {
        match &self.detected {
            Detected::Tls(hello) => Some(hello),
            _ => None,
        }
    }

    /// Nothing of it goes on with the connection, so that it need not be there before the end.
    fn trace(&self) -> Option<Trace> {
        let Connection {
            worker, accepted, ..
        } = &self.connection;
        let settings = worker.settings();
        let settings = settings.tracing.as_ref().filter(|t| t.connections)?;
        let route = self
            .routed
            .policy()
            .and_then(|route| route.tracing.as_ref());
        Some(Trace::connection(
            settings,
            route,
            &worker.trace_ids,
            *accepted,
        ))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if self.failure.is_some() {
            reset_when_dropped(&self.client);
            if let Some(dialled) = &self.dialled {
                reset_when_dropped(&dialled.upstream.stream);
            }
        }
        let protocol = match &self.detected {
            Detected::Tls(_) => Protocol::Tls,
            _ => Protocol::Opaque,
        };
        let trace = self.trace();
        let record = Record {
            protocol,
            client: self.connection.client,
            original: self.connection.original,
            cluster: self.routed.target.cluster(),
            upstream: self.dialled.as_ref().map(|d| d.upstream.peer),
            upstream_reused: false,
            request: None,
            sni: self.hello().and_then(|hello| hello.server_name.as_deref()),
            status: None,
            failure: self.failure,
            bytes_received: self.traffic.received.get(),
            bytes_sent: self.traffic.sent.get(),
            duration: self.connection.accepted.elapsed(),
            trace: trace.as_ref().map(|trace| trace.ids(None, self.failure)),
        };
        self.connection.record(&record);
        if let Some(trace) = trace {
            self.connection.trace(&trace, &record, |_| {});
        }
    }
}
