//! The destination side: dialling.

mod connect;
mod pool;

pub use connect::{Upstream, connect, connect_for};
pub use pool::Pool;
