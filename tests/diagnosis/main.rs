//! `doctor` and `explain` end to end: what they say is compared with what really happens.

mod experiment;
mod findings;
mod incident;
mod live;
#[path = "../support/netns.rs"]
#[allow(dead_code, reason = "shared with the tests of capture")]
mod netns;
mod onward;
#[path = "../support/proxyctl.rs"]
#[allow(dead_code, reason = "shared with the tests of capture")]
mod proxyctl;
mod robust;
mod scale;
mod staged;
mod traffic;
mod usage;
