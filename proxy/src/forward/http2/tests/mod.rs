//! A proxy between clients and destinations that speak HTTP/2 through the h2 crate, or, where h2
//! would not misbehave, byte by byte.

mod calls;
mod failures;
mod flow;
mod messages;
mod peers;
mod sessions;
