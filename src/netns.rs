//! The network namespace that a command looks at.

use std::{fs::File, io, os::fd::AsFd, path::PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Enters it for the rest of this process. `place` is a path, or the number of a process in it.
///
/// # Errors
/// When there is no such namespace, or the privilege to enter it is missing.
pub(crate) fn enter(place: &str) -> io::Result<()> {
    let path = match place.parse::<u32>() {
        Ok(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        Err(_) => PathBuf::from(place),
    };
    let file = File::open(path)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}
