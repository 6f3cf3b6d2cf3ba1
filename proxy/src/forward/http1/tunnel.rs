//! From a request on, its connection is a tunnel.

use std::mem;

use super::{Next, Session, exchange::Exchange, progress::Progress};
use crate::{
    accept::reset_when_dropped,
    failure::Failure,
    forward::opaque::{self, TunnelLimits},
    upstream::Lease,
};

impl Session {
    /// The connection is a tunnel from here on: an upgrade, CONNECT, or an answer that is no HTTP
    /// to rely on.
    pub(super) async fn tunnel(
        &mut self,
        exchange: &mut Exchange,
        lease: Lease,
        progress: &Progress,
    ) -> Next {
        let Exchange {
            head,
            outcome,
            policed,
            ..
        } = exchange;
        let mut buffers = mem::take(&mut exchange.buffers);
        let mut limits = TunnelLimits::of(&self.connection, &outcome.routed);
        if let Some(policed) = policed {
            limits.end = policed.deadlines.tunnel_end();
            policed.settle(progress.status.get().unwrap_or_default());
        }
        if progress.has_streamed.get() && !progress.is_request_complete.get() {
            // Part of the body may be inside a pipe that is gone.
            reset_when_dropped(&lease.upstream.stream);
            outcome.failure = Some(Failure::UpstreamProtocol);
            self.record(Some(head), outcome);
            return Next::Reset;
        }
        // A tunnel may live for days: it keeps of the request no more than the record needs.
        let mut to_upstream = mem::take(&mut self.input);
        self.input.extend(&to_upstream.filled()[..head.len]);
        if progress.has_streamed.get() {
            to_upstream = mem::take(&mut buffers.overflow);
        } else {
            to_upstream.consume(progress.written.get() as usize);
        }
        let relayed = opaque::relay(
            &self.connection,
            &self.client,
            &lease.upstream.stream,
            to_upstream,
            buffers.output,
            limits,
        )
        .await;
        outcome.received += relayed.received;
        outcome.sent += relayed.sent;
        outcome.failure = relayed.failure;
        self.record(Some(head), outcome);
        Next::Close
    }
}
