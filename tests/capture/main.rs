//! Capture end to end: real commands, a real kernel, private network namespaces.

mod backends;
mod bound;
mod conntrack_full;
mod counting;
mod drift;
mod exclusions;
mod exhaustion;
mod fail_closed;
mod interrupted;
mod lease;
mod lifecycle;
mod matrix;
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/proxyctl.rs"]
mod proxyctl;
mod refusals;
mod scope_closed;
mod scoped;
mod scopes;
mod slipping;
mod status;
mod versions;
mod watch;
#[path = "../support/wire.rs"]
mod wire;

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

const INSTALL: &str = "install-rules --json";
const STATUS: &str = "status --json";
const REMOVE: &str = "remove-rules --json";

static CONFIGS: AtomicU32 = AtomicU32::new(0);

/// A configuration file that ends with the test process' target directory.
fn config(text: &str) -> String {
    let number = CONFIGS.fetch_add(1, Ordering::Relaxed);
    let name = format!("capture-{}-{number}.yaml", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}
