//! The destination side: dialling, and connections kept for reuse.

mod connect;
mod pool;

pub use connect::{Upstream, connect};
pub use pool::{IdleConnections, Lease, Pool, dial, poll_disturbed};
