//! Relaying, a module per protocol.

mod deadlines;
pub mod http1;
pub mod http2;
pub mod opaque;
mod policed;
mod race;
pub mod respond;
pub mod splice;
