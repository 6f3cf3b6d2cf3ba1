//! Rate limits as an application meets them: real servers in a namespace, a captured client, and how
//! much of what it sends gets there.

#[path = "../support/mod.rs"]
mod support;

mod client;
mod http;
mod load;
mod opaque;
mod server;
mod service;
