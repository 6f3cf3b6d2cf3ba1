//! The relay between a scripted client and a scripted upstream on loopback.

mod answers;
mod failures;
mod policies;
mod pooling;
mod requests;
mod script;
mod tunnels;
