//! Where requests go: destinations and, later, clusters of endpoints.

mod registry;

pub use registry::{Destination, Registry};
