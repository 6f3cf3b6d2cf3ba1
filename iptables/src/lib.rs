//! Outrigger's capture: which rules ([`plan`]), what a proxy must prove first (`gate`), and how
//! the rules are bound to its life ([`install`], [`remove`]). Rules are loaded over netlink
//! ([`nft`]); no other program runs.

mod conntrack;
mod control;
mod error;
mod gate;
mod host;
pub mod listeners;
mod lock;
pub mod nft;
pub mod plan;
mod process;
mod sys;
mod tether;

pub use error::{CanaryFailure, Leftover, Refusal};
pub use host::Host;
pub use process::Process;
pub use tether::{Installed, Removed, dry_run, install, remove, status};
