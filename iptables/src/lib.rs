//! Outrigger's capture: which rules ([`plan`]), what a proxy must prove first (`gate`), and how
//! the rules are bound to its life ([`install`], [`remove`]). Rules are loaded over netlink
//! ([`nft`]) without any program, or where that is asked for by the iptables programs (`legacy`).

mod backend;
pub mod cgroup;
mod conntrack;
mod control;
pub mod doctor;
mod error;
mod gate;
mod host;
mod inquiry;
mod legacy;
pub mod listeners;
mod lock;
mod neighbours;
pub mod nft;
pub mod peers;
pub mod plan;
mod process;
pub mod repair;
pub mod ruleset;
mod surroundings;
mod sys;
mod tether;
pub mod verdict;

pub use backend::{Backend, dry_run, install, install_after, install_and_anchor};
pub use conntrack::forget_dead_proxy;
pub use error::{CanaryFailure, Leftover, Refusal};
pub use host::Host;
pub use inquiry::{Explained, explain, traffic};
pub use legacy::{IptablesError, Variant};
pub use neighbours::{Overlap, Winner, other_ports, overlaps};
pub use process::Process;
pub use surroundings::LiveSurroundings;
pub use tether::{
    Anchor, Installed, Removed, backend_of, closed, remove, reopen, scope_problem, status,
    status_within,
};
