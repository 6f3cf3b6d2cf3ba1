//! Where requests go: destinations, and clusters of endpoints.
//!
//! The way of a request asks a cluster for one thing, an endpoint, and tells it one thing, how it
//! went:
//!
//! ```text
//! let picked = cluster.pick(&context, &rng, now)?;   // Picked { endpoint, .. } or PickError
//! … connect to picked.endpoint.address, with cluster.thresholds().connection().await if a new
//!   connection is needed, forward …
//! picked.report(Outcome::of_status(status), now);    // or dropped: the client gave up
//! ```
//!
//! A pick takes part of `max_requests`, of adaptive concurrency and of the endpoint's breaker;
//! reporting or dropping gives all of it back. A retry first takes `cluster.thresholds().retry()` and
//! names what it tried in `PickContext::tried`.
//!
//! Where the endpoints are the original destinations (`original_destination`, `defaults`), a request
//! asks [`Cluster::at`] first: each destination has a cluster of its own.
//!
//! Picking takes no lock. It reads a host set, which is immutable: priorities, zones, panic,
//! health, ejections and weights are worked out when one is made (on the thread of [`Keeper`]), not when
//! one is picked from. What changes with every request hangs on the `Endpoint`s, which outlive host
//! sets. Time and chance are arguments.

mod adaptive_concurrency;
mod balance;
mod breaker;
mod discovery;
mod endpoint;
mod health;
mod host_set;
mod keeper;
mod manager;
mod outcome;
mod outlier;
mod outlook;
mod per_destination;
mod pick;
mod registry;
mod report;
mod rng;
mod thresholds;

pub use breaker::State as BreakerState;
pub use discovery::{DiscoveryState, DiscoveryStatus};
pub use endpoint::{Counts, Endpoint};
pub use keeper::Keeper;
pub use manager::{Clusters, Manager};
pub use outcome::Outcome;
pub use pick::{Cluster, ClusterCounts, PickContext, PickError, Picked, Subset};
pub use registry::{Destination, Registry};
pub(crate) use report::{ClusterReport, EndpointReport};
pub use rng::Rng;
pub use thresholds::{Overflow, Permit, Thresholds, Usage};

/// The hash of a header's or cookie's value, or of an address: XXH64, as Envoy, so that both send a
/// key to the same endpoint of a ring.
pub fn hash_of(key: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(key, 0)
}
