//! Points in time to come.

use std::time::Duration;

use tokio::time::Instant;

/// `limit` after `start`. A limit beyond the clock's range comes as little as one in ten years.
pub fn after(start: Instant, limit: Duration) -> Instant {
    start + limit.min(Duration::from_secs(10 * 365 * 86400))
}
