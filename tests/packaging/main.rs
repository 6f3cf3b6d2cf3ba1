//! What `packaging/` holds, as far as it can be checked without a cluster or a booted systemd, and the
//! arrangements that it describes, played with namespaces.

mod manifests;
mod pod;
mod systemd;

#[path = "../support/mod.rs"]
mod support;

use std::{fs, path::Path};

/// A file of `packaging/`.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
