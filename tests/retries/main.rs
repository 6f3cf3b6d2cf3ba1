//! Retries and time limits as both ends see them: an application's requests through a captured
//! connection, and endpoints that do what they are told and count what they saw.

#[path = "../support/mod.rs"]
mod support;

mod conditions;
mod endpoints;
mod hedging;
mod http2;
mod http2_endpoints;
mod refusals;
mod storms;
mod timeouts;
