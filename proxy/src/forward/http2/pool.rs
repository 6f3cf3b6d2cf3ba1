//! A worker's HTTP/2 upstream connections, by destination.

/// Upstream connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {}
