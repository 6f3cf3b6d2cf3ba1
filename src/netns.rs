//! The network namespaces that a command looks at.

use std::{
    collections::BTreeMap,
    fs,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps those that it has given a name.
const NAMED: &str = "/run/netns";

/// Enters it for the rest of this thread. `place` is a name as of `ip netns`, a path, or the number of a
/// process in it.
///
/// # Errors
/// When there is no such namespace, or the privilege to enter it is missing; with what to do.
pub(crate) fn enter(place: &str) -> Result<(), String> {
    let path = path(place);
    let entered = File::open(&path).and_then(|file| {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    });
    entered.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound if is_number(place) => {
                format!("there is no process {place}")
            }
            io::ErrorKind::NotFound => format!(
                "there is no {}; `ip netns list` and `lsns -t net` show what there is",
                path.display()
            ),
            io::ErrorKind::PermissionDenied => format!("{error}; run it as root"),
            io::ErrorKind::InvalidInput => {
                format!("{} is no network namespace", path.display())
            }
            _ => error.to_string(),
        };
        format!("cannot enter the network namespace {place}: {why}")
    })
}

/// Whether it is that of the calling thread.
pub(crate) fn is_here(place: &str) -> bool {
    let here = fs::read_link("/proc/thread-self/ns/net");
    matches!((here, fs::read_link(path(place))), (Ok(a), Ok(b)) if a == b)
}

pub(crate) fn path(place: &str) -> PathBuf {
    if is_number(place) {
        PathBuf::from(format!("/proc/{place}/ns/net"))
    } else if place.contains('/') {
        PathBuf::from(place)
    } else {
        Path::new(NAMED).join(place)
    }
}

fn is_number(place: &str) -> bool {
    place.parse::<u32>().is_ok()
}

/// The name that `ip netns` has given to the namespace of a process.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    let its = fs::metadata(path(&pid.to_string())).ok()?;
    let entries = fs::read_dir(NAMED).ok()?.flatten();
    let mut names = entries.filter(|entry| {
        fs::metadata(entry.path()).is_ok_and(|of| (of.dev(), of.ino()) == (its.dev(), its.ino()))
    });
    names.next()?.file_name().into_string().ok()
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
