//! The destination side: dialling.

mod connect;
mod pool;

pub use connect::{Upstream, connect};
pub use pool::Pool;
