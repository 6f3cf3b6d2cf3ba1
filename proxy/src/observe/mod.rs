//! What is told about connections and requests.

mod metrics;
mod record;

pub use metrics::{DestinationMetrics, Metrics};
pub use record::{Protocol, Record, RequestLine};
