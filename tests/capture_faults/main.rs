//! Faults of a captured proxy, of its installer and of its operator, each with the figures that the
//! promise "capture cannot hurt" stands on. `--nocapture` prints them; `make soak` runs each to its
//! full length.

mod crowd;
mod hanging;
mod killed;
mod live;
mod slipping;
mod storm;
#[path = "../support/mod.rs"]
mod support;
