//! `doctor` and `explain` end to end: what they say is compared with what really happens.

mod experiment;
mod incident;
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/proxyctl.rs"]
mod proxyctl;
