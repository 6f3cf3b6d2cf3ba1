//! Counters, resolved once per destination and worker, so that a request touches nothing but cells
//! that no other thread writes.

mod cell;
mod destination;
mod exemplar;
mod latency;
mod outcome;
mod process_wide;
mod reason;

pub use destination::DestinationMetrics;
pub(crate) use destination::Totals;
pub use exemplar::Exemplars;
pub(crate) use exemplar::OfBuckets;
pub(crate) use latency::bucket_of_bound;
pub use process_wide::{IdleUpstream, Metrics};
