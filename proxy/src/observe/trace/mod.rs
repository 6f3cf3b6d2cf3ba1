//! Traces: a server span for each request, a client span for each of its attempts, and the headers by
//! which the trace goes on.
//!
//! A request under way carries a [`Trace`], a plain record. What is exported is decided at its end:
//! sampled requests always, and others when they have failed. Only then is anything built, and at
//! once in OTLP's own form ([`encode`]), into a bounded lane of the worker's ([`Tracer`]), from which
//! the control thread sends ([`export`]). A request that is not exported costs two headers read or
//! written and a few numbers drawn.
//!
//! | question | file |
//! | --- | --- |
//! | which headers, in which form | `w3c.rs`, `b3.rs`, `propagation.rs` |
//! | sampled or not | `sampling.rs` |
//! | what is known of a request | `request.rs` |
//! | what a span says | `spans.rs`, over `attributes.rs` and `protobuf.rs` |
//! | what waits, what was dropped | `queue.rs` |
//! | how it is sent | `export/` |
//!
//! Failure edges: a full lane, a collector that refuses, one that is gone for long: spans are dropped
//! and counted. Traffic never waits.

mod attributes;
mod b3;
mod export;
mod ids;
mod propagation;
mod protobuf;
mod queue;
mod request;
mod resource;
mod sampling;
mod spans;
#[cfg(test)]
mod tests;
mod w3c;

pub(crate) use export::run as export;
pub(crate) use ids::Ids;
pub use ids::{SpanId, TraceId, TraceIds};
pub(crate) use propagation::{Edit, Incoming};
pub(crate) use queue::{TraceFigures, Tracer};
pub(crate) use request::Trace;
