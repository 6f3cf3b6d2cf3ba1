//! Counters, resolved once per destination and worker, so that a request touches nothing but cells
//! that no other thread writes.

mod cell;
mod exemplar;
mod latency;
mod native;
mod outcome;
mod process_wide;
mod reason;
mod traffic;

pub use exemplar::Exemplars;
pub(crate) use exemplar::OfBuckets;
pub(crate) use latency::{Latency, SharedLatency, bucket_of_bound};
pub(crate) use native::{Native, SCHEMA, ZERO_THRESHOLD};
pub use process_wide::{IdleUpstream, Metrics};
pub(crate) use traffic::Totals;
pub use traffic::Traffic;
