//! Taking captured connections from the kernel and learning where they were going.

mod listener;
mod original_destination;
mod queue;

pub use listener::{BindError, Listeners, bind, inherited};
pub use original_destination::original_destination;
pub use queue::{Queue, refuse, reset, reset_when_dropped};
