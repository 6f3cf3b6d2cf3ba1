//! A worker's idle HTTP/1 upstream connections, by destination.

/// Idle connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {}
