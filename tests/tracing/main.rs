//! Traces as a collector gets them: real requests through a captured proxy, and the spans decoded by
//! OpenTelemetry's own types.

#[path = "../support/mod.rs"]
mod support;

mod chain;
mod collector;
mod export;
mod faults;
mod headers;
mod service;
