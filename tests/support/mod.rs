//! What end-to-end tests stand on: private network namespaces, real peers, and a proxy in them.
//!
//! A test owns a [`World`]. All that it starts dies with it, panics included, and a namespace is
//! held by nothing but a descriptor, so even a killed test run leaves nothing behind.

// Every test file compiles this module for itself and uses a part of it; `pub` marks what is for
// the tests.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod load;
mod namespace;
mod nginx;
pub mod pattern;
mod peer;
mod process;
pub mod proxy;
mod speak;
mod sys;
mod world;

use std::time::{Duration, Instant};

pub use load::{Failed, Load};
pub use namespace::Namespace;
pub use nginx::Nginx;
pub use peer::Peer;
pub use process::{Memory, Process};
pub use proxy::Proxy;
pub use speak::Speak;
pub use sys::spin;
pub use world::{APP, BEYOND, SVC, SVC4, SVC6, World};

/// The longest that anything which should happen at once may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits until `condition` holds; past `limit` the test fails and says what it waited for.
#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(limit, what, || condition().then_some(()));
}

/// Waits until `probe` finds something.
#[track_caller]
pub fn wait_for<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Prints one measured number in the form that `make figures` collects.
pub fn figure(what: &str, value: impl std::fmt::Display, bar: &str) {
    // On a line of its own: the test harness has written half a line before.
    println!("\nfigure: {what}: {value} ({bar})");
}

/// How often to repeat something: `short` in an ordinary run, `full` under `make soak`.
pub fn rounds(short: usize, full: usize) -> usize {
    if std::env::var_os("OUTRIGGER_SOAK").is_some() {
        full
    } else {
        short
    }
}
