//! The destination side: dialling, and connections kept for reuse.

mod connect;
mod pool;

pub use connect::{Upstream, connect, connect_for};
pub use pool::{IdleConnections, Lease, Pool, dial, dial_for_many, poll_disturbed};
