//! The network namespaces that a command looks at.

use std::{collections::BTreeMap, fs, fs::File, io, os::fd::AsFd, path::PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Enters it for the rest of this thread. `place` is a path, or the number of a process in it.
///
/// # Errors
/// When there is no such namespace, or the privilege to enter it is missing.
pub(crate) fn enter(place: &str) -> io::Result<()> {
    let file = File::open(path(place))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Whether it is that of the calling thread.
pub(crate) fn is_here(place: &str) -> bool {
    let here = fs::read_link("/proc/thread-self/ns/net");
    matches!((here, fs::read_link(path(place))), (Ok(a), Ok(b)) if a == b)
}

pub(crate) fn path(place: &str) -> PathBuf {
    match place.parse::<u32>() {
        Ok(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        Err(_) => PathBuf::from(place),
    }
}

/// A process of every network namespace that one lives in, the oldest of each; and how many
/// processes do not show theirs.
pub(crate) fn all() -> (Vec<u32>, usize) {
    let mut found = BTreeMap::new();
    let mut hidden = 0;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        match fs::read_link(path(&pid.to_string())) {
            Ok(name) => drop(found.entry(name).or_insert(pid)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden += 1,
            // It has ended.
            Err(_) => {}
        }
    }
    (found.into_values().collect(), hidden)
}
