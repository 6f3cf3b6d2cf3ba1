//! What is known of a request's trace while it is under way: numbers, and nothing on the heap unless
//! it is tried more than once.

use std::{net::SocketAddr, time::Instant};

use http::HeaderMap;
use outrigger_config::{RouteTracing, Tracing};

use super::{
    ids::{Ids, SpanId, TraceId, TraceIds},
    propagation::{Edit, Flags, Found, Incoming, Onward},
    queue::Tracer,
    sampling::{self, Export},
    spans::{self, Seen},
};
use crate::{failure::Failure, observe::Record};

/// Attempts of one request that have a span each; of a request that is tried more often, the last one
/// takes the place of the last but one.
const MAX_ATTEMPTS: usize = 16;

/// A request's trace, or a connection's.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(super) trace: TraceId,
    /// The sender's span.
    pub(super) parent: Option<SpanId>,
    pub(super) server: SpanId,
    pub(super) flags: Flags,
    export: Export,
    onward: Onward,
    pub(super) is_grpc: bool,
    /// The code that a gRPC call ended with.
    pub(super) grpc_status: Option<u8>,
    /// Of the client's HTTP.
    pub(super) version: &'static str,
    pub(super) started: Instant,
    pub(super) attempt: Attempt,
    /// Those before it.
    pub(super) earlier: Vec<Attempt>,
}

/// One try, which a client span tells of.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) span: SpanId,
    pub(super) started: Instant,
    /// None while it is under way.
    pub(super) ended: Option<Instant>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) status: Option<u16>,
    pub(super) failure: Option<Failure>,
}

impl Attempt {
    fn begin(span: SpanId, now: Instant) -> Self {
        Self {
            span,
            started: now,
            ended: None,
            peer: None,
            status: None,
            failure: None,
        }
    }
}

impl Trace {
    /// Of a request with these headers, on its first attempt.
    pub(crate) fn begin(
        settings: &Tracing,
        route: Option<&RouteTracing>,
        incoming: &Incoming<'_>,
        ids: &Ids,
        version: &'static str,
        now: Instant,
    ) -> Self {
        let found = incoming.extract(&settings.extract);
        let parent = match found {
            Some(Found::Parent(parent)) => Some(parent),
            Some(Found::Decision { .. }) | None => None,
        };
        let trace = parent.map_or_else(|| ids.trace(), |parent| parent.trace);
        let (flags, export) = sampling::decide(settings, route, found, trace);
        let (server, client) = (ids.span(), ids.span());
        Self {
            trace,
            parent: parent.map(|parent| parent.span),
            server,
            flags,
            export,
            onward: Onward {
                trace,
                span: client,
                parent: server,
                flags,
                present: incoming.present(),
                keeps_tracestate: incoming.has_state_of(trace),
            },
            is_grpc: incoming.is_grpc,
            grpc_status: None,
            version,
            started: now,
            attempt: Attempt::begin(client, now),
            earlier: Vec::new(),
        }
    }

    /// Of a connection that carries no trace.
    pub(crate) fn connection(
        settings: &Tracing,
        route: Option<&RouteTracing>,
        ids: &Ids,
        now: Instant,
    ) -> Self {
        Self::begin(settings, route, &Incoming::default(), ids, "", now)
    }

    /// Shows each header that is to be written for the attempt under way; the same ones each time,
    /// of the same lengths.
    pub(crate) fn each_edit(&self, settings: &Tracing, edit: impl FnMut(Edit<'_>)) {
        self.onward.each_edit(&settings.inject, edit);
    }

    /// The headers are in the request from here on, so that those of another attempt replace them.
    pub(crate) fn note_written(&mut self, settings: &Tracing) {
        self.onward.written(&settings.inject);
    }

    /// The attempt has reached an upstream.
    pub(crate) fn reached(&mut self, peer: SocketAddr) {
        self.attempt.peer = Some(peer);
    }

    /// What the attempt's answer began with.
    pub(crate) fn answered(&mut self, status: u16) {
        self.attempt.status = Some(status);
    }

    /// The code that a gRPC call ends with, from its answer's trailers, or its head if there is no
    /// more.
    pub(crate) fn note_grpc_status(&mut self, headers: &HeaderMap) {
        let status = headers.get("grpc-status").and_then(|s| s.to_str().ok());
        self.grpc_status = status.and_then(|s| s.parse().ok()).or(self.grpc_status);
    }

    /// Whether that is wanted.
    pub(crate) fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// The attempt came to no answer.
    pub(crate) fn failed(&mut self, failure: Failure) {
        self.attempt.failure = Some(failure);
    }

    /// Whatever the attempt came to, it is not the last.
    pub(crate) fn end_attempt(&mut self, now: Instant) {
        self.attempt.ended = Some(now);
    }

    /// Another attempt begins, unless the last one was none: nothing has come of it.
    pub(crate) fn again(&mut self, ids: &Ids, now: Instant) {
        if self.attempt.status.is_none() && self.attempt.failure.is_none() {
            return;
        }
        let mut ended = std::mem::replace(&mut self.attempt, Attempt::begin(ids.span(), now));
        ended.ended.get_or_insert(now);
        self.onward.span = self.attempt.span;
        self.grpc_status = None;
        if self.earlier.len() < MAX_ATTEMPTS - 1 {
            self.earlier.push(ended);
        }
    }

    /// What to tell of it elsewhere, once it is known how the request went.
    pub(crate) fn ids(&self, status: Option<u16>, failure: Option<Failure>) -> TraceIds {
        TraceIds {
            trace: self.trace,
            span: self.server,
            is_exported: self.is_exported(status, failure),
        }
    }

    fn is_exported(&self, status: Option<u16>, failure: Option<Failure>) -> bool {
        match self.export {
            Export::Always => true,
            Export::IfFailed => spans::has_failed(self, status, failure),
            Export::Never => false,
        }
    }

    /// The request is over: exports its spans, or forgets it. `headers` shows each header of the
    /// request, as far as it is still there.
    pub(crate) fn finish<'h>(
        &self,
        tracer: &Tracer,
        worker: usize,
        record: &Record<'_>,
        headers: impl FnOnce(&mut dyn FnMut(&'h [u8], &'h [u8])),
    ) {
        if !self.is_exported(record.status, record.failure) {
            return;
        }
        let mut seen = Seen::of(self);
        headers(&mut |name, value| seen.visit(name, value));
        tracer.push(worker, spans::count(self, record), |out| {
            spans::of_request(out, self, record, &seen);
        });
    }

    pub(super) fn keeps_tracestate(&self) -> bool {
        self.onward.keeps_tracestate
    }
}
