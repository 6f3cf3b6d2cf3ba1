//! Clusters as an application meets them: real servers in a namespace, a captured client, and what
//! happens to its requests when an endpoint does not do its part.

#[path = "../support/mod.rs"]
mod support;

mod backend;
mod balancing;
mod client;
mod failing;
mod health;
mod http2;
mod routing;
mod scale;
