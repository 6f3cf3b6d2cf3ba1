//! Sends spans to the collector by OTLP (<https://opentelemetry.io/docs/specs/otlp/>), on the control
//! thread. One batch is under way at a time; what it may cost is bounded by the queue before it.
//!
//! OpenTelemetry's own exporter is not used: it takes each span as an object of its own with some 25
//! allocations, keeps a thread, and neither tells what it dropped nor heeds a partial success.

mod answer;
mod backoff;
mod connection;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use outrigger_config::{OtlpProtocol, Tracing};
use tokio::time;

use self::{answer::Answer, backoff::Backoff, connection::Connection};
use super::{
    attributes::Attributes,
    protobuf::Message,
    queue::{Batch, Loss, Taken, Tracer},
    resource,
};
use crate::{cluster::Rng, shared::Shared};

/// Bytes of spans in one export: collectors take messages of 4 MiB unless told otherwise.
const MAX_BATCH_BYTES: usize = 3 * 1024 * 1024;

/// How often one batch is tried. With the pauses between, that bridges a collector's restart.
const MAX_ATTEMPTS: u32 = 5;

/// How often a failure that lasts is told again.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The conventions that the spans follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.45.0";

/// Follows the settings, and sends what the workers have while tracing is on. Returns when no more is
/// to come and all is sent.
pub(crate) async fn run(shared: Arc<Shared>) {
    let tracer = &shared.tracer;
    let mut settings = tracer.settings();
    // What is under way when the settings change goes to the new collector.
    let mut taken = Taken::default();
    loop {
        let now = settings.borrow_and_update().clone();
        tokio::select! {
            biased;
            () = export(&shared, now.as_deref(), &mut taken) => return,
            changed = settings.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

async fn export(shared: &Arc<Shared>, settings: Option<&Tracing>, taken: &mut Taken) {
    let Some(settings) = settings else {
        // There is no collector any more.
        shared.tracer.take(taken);
        shared.tracer.drop_spans(Loss::Undeliverable, taken.clear());
        return shared.tracer.closed().await;
    };
    let mut exporter = Exporter {
        tracer: &shared.tracer,
        settings,
        envelope: Envelope::of(settings, &shared.instance),
        connection: Connection::new(shared, settings),
        backoff: Backoff::default(),
        rng: Rng::new(u64::from(std::process::id())),
        complained: None,
    };
    exporter.run(taken).await;
}

struct Exporter<'a> {
    tracer: &'a Tracer,
    settings: &'a Tracing,
    envelope: Envelope,
    connection: Connection<'a>,
    backoff: Backoff,
    rng: Rng,
    /// When a failure that lasts was told of last.
    complained: Option<Instant>,
}

impl Exporter<'_> {
    /// Until no more is to come and all is sent.
    async fn run(&mut self, taken: &mut Taken) {
        loop {
            while let Some(batch) = taken.batch(self.settings.max_batch as usize, MAX_BATCH_BYTES) {
                self.deliver(batch).await;
                let len = batch.bytes.len();
                taken.consume(len);
            }
            if !self.tracer.gather(self.settings.batch_delay.0).await {
                return;
            }
            self.tracer.take(taken);
        }
    }

    /// Sends a batch until the collector has it, will not have it, or has not had it for too long.
    async fn deliver(&mut self, batch: Batch<'_>) {
        let message = self.envelope.around(batch.bytes, self.settings.protocol);
        for attempt in 1.. {
            let sending = self.connection.send(message.clone());
            let answer = match time::timeout(self.settings.timeout.0, sending).await {
                Ok(answer) => answer,
                Err(_) => {
                    // Whatever is still to come on it belongs to no export any more.
                    self.connection.close();
                    Answer::retry("no answer in time")
                }
            };
            match answer {
                Answer::Taken { rejected, message } => {
                    self.tracer.note_export(true);
                    return self.taken(batch.spans, rejected, &message);
                }
                Answer::Refused(why) => {
                    self.tracer.note_export(false);
                    return self.drop(Loss::Rejected, batch.spans, &why);
                }
                Answer::Retry { after, why } => {
                    self.tracer.note_export(false);
                    if attempt == MAX_ATTEMPTS || self.tracer.is_closing() {
                        return self.drop(Loss::Undeliverable, batch.spans, &why);
                    }
                    self.complain(&why);
                    let pause = self.backoff.pause(after, self.rng.unit());
                    tokio::select! {
                        () = time::sleep(pause) => {}
                        () = self.tracer.closed() => {}
                    }
                }
            }
        }
    }

    fn taken(&mut self, spans: usize, rejected: u64, message: &str) {
        let rejected = usize::try_from(rejected).unwrap_or(spans).min(spans);
        self.tracer.note_exported(spans - rejected);
        self.backoff = Backoff::default();
        if rejected > 0 {
            self.drop(Loss::Rejected, rejected, message);
        } else if self.complained.take().is_some() {
            tracing::info!(collector = %self.settings.endpoint, "spans are exported again");
        }
    }

    fn drop(&mut self, why: Loss, spans: usize, message: &str) {
        self.tracer.drop_spans(why, spans);
        self.complain(message);
    }

    fn complain(&mut self, why: &str) {
        if self
            .complained
            .is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::warn!(
                collector = %self.settings.endpoint,
                dropped = self.tracer.dropped(),
                "cannot export spans: {why}; they wait, and those that find no room are dropped and counted"
            );
        }
    }
}

/// What stands around the spans of every `ExportTraceServiceRequest`.
struct Envelope {
    /// `ResourceSpans.resource`.
    resource: Vec<u8>,
    /// `ScopeSpans.scope`.
    scope: Vec<u8>,
    /// `schema_url` of either, which have the same field for it.
    schema: Vec<u8>,
}

impl Envelope {
    fn of(settings: &Tracing, instance: &str) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let attributes = resource::attributes(settings, instance, variable);
        let (mut resource, mut scope, mut schema) = Default::default();
        Message::new(&mut resource).nested(1, |resource| {
            let mut to = Attributes {
                message: resource,
                field: 1,
            };
            for (key, value) in &attributes {
                to.text(key, &[value.as_bytes()]);
            }
        });
        Message::new(&mut scope).nested(1, |scope| {
            scope.bytes(1, b"outrigger");
            scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
        });
        Message::new(&mut schema).bytes(3, SCHEMA.as_bytes());
        Self {
            resource,
            scope,
            schema,
        }
    }

    fn around(&self, spans: &[u8], protocol: OtlpProtocol) -> Bytes {
        let scope_spans = self.scope.len() + spans.len() + self.schema.len();
        let mut out = Vec::with_capacity(scope_spans + self.resource.len() + 64);
        if protocol == OtlpProtocol::Grpc {
            // Uncompressed, and room for the length.
            out.extend_from_slice(&[0; GRPC_PREFIX]);
        }
        let mut inner = Vec::with_capacity(16);
        Message::new(&mut inner).head(2, scope_spans);
        let resource_spans = self.resource.len() + inner.len() + scope_spans + self.schema.len();
        let mut message = Message::new(&mut out);
        message.head(1, resource_spans);
        message.raw(&self.resource);
        message.raw(&inner);
        message.raw(&self.scope);
        message.raw(spans);
        message.raw(&self.schema);
        message.raw(&self.schema);
        if protocol == OtlpProtocol::Grpc {
            let len = (out.len() - GRPC_PREFIX) as u32;
            out[1..GRPC_PREFIX].copy_from_slice(&len.to_be_bytes());
        }
        out.into()
    }
}

/// A flag and a length before each message of gRPC.
const GRPC_PREFIX: usize = 5;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A whole request around `spans`, as OTLP over HTTP has it.
    pub(in crate::observe::trace) fn request(settings: &Tracing, spans: &[u8]) -> Bytes {
        Envelope::of(settings, "instance").around(spans, OtlpProtocol::HttpProtobuf)
    }
}
