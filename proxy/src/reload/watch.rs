//! Tells when a file may have changed, however it is replaced: written anew, renamed over, or behind
//! a symbolic link that is swapped (Kubernetes links a mounted file to `..data/FILE`, and `..data` to
//! a directory that changes). So directories are watched, not the file.

use std::{
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// After an event, so that a burst of them is one change; below what a person notices.
const SETTLE: Duration = Duration::from_millis(20);

/// Symbolic links followed one by one; the kernel follows 40.
const MAX_LINKS: usize = 40;

#[derive(Debug)]
pub(super) struct Watch {
    inotify: AsyncFd<OwnedFd>,
    /// Names in the watched directories that lead to the file.
    names: Vec<OsString>,
}

impl Watch {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let mut watch = Self {
            inotify: sys::readiness_of(inotify::init(flags)?)?,
            names: Vec::new(),
        };
        watch.follow(path);
        Ok(watch)
    }

    /// Watches every directory that has a part in where `path` leads now. Those of before stay
    /// watched until they are gone.
    pub(super) fn follow(&mut self, path: &Path) {
        self.names.clear();
        for step in steps(path) {
            let (Some(directory), Some(name)) = (step.parent(), step.file_name()) else {
                continue;
            };
            let directory = match directory.as_os_str().is_empty() {
                true => Path::new("."),
                false => directory,
            };
            self.names.push(name.to_owned());
            let events = inotify::WatchFlags::CLOSE_WRITE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::CREATE;
            if let Err(error) = inotify::add_watch(&self.inotify, directory, events) {
                tracing::warn!(%error, "cannot watch {}", directory.display());
            }
        }
    }

    /// Returns once something has happened to one of the names, and no more does.
    pub(super) async fn changed(&mut self) {
        loop {
            if self.happened().await {
                break;
            }
        }
        while tokio::time::timeout(SETTLE, self.happened()).await.is_ok() {}
    }

    /// Waits for events; whether one of them is about the file.
    async fn happened(&self) -> bool {
        let Ok(mut ready) = self.inotify.readable().await else {
            return std::future::pending().await;
        };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut space);
        let mut is_ours = false;
        loop {
            match events.next() {
                Ok(event) => {
                    let name = event.file_name().map(std::ffi::CStr::to_bytes);
                    is_ours |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW)
                        || name.is_some_and(|name| self.names.iter().any(|n| n.as_bytes() == name));
                }
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    return is_ours;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::warn!(%error, "the configuration file is watched no more; SIGHUP and POST /reload still reload it");
                    return std::future::pending().await;
                }
            }
        }
    }
}

/// `path` and every symbolic link, in any part of it, on the way to the file.
fn steps(path: &Path) -> Vec<PathBuf> {
    let mut steps = vec![path.to_owned()];
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let link = at
            .ancestors()
            .find_map(|part| Some((part.to_owned(), std::fs::read_link(part).ok()?)));
        let Some((link, target)) = link else { break };
        let rest = at.strip_prefix(&link).unwrap_or(Path::new("")).to_owned();
        let target = link.parent().unwrap_or(Path::new("/")).join(target);
        steps.push(link);
        at = match rest.as_os_str().is_empty() {
            true => target,
            false => target.join(rest),
        };
        steps.push(at.clone());
    }
    steps
}
