//! `proxyctl serve` as its operator meets it: starting and failing to, the admin listener, signals,
//! logs, privileges.

mod access_log;
mod admin;
#[path = "../support/netns.rs"]
#[allow(dead_code, reason = "shared with the tests of capture")]
mod netns;
mod reload;
mod server;
mod signals;
mod start;
