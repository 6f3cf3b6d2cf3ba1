//! Tells which of some files may have changed, however it is replaced: written anew, renamed over, or behind
//! a symbolic link that is swapped (Kubernetes links a mounted file to `..data/FILE`, and `..data` to
//! a directory that changes). So directories are watched, not the files.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    hash::Hash,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// After an event, so that a burst of them is one change. A change of endpoints has 50 ms to take
/// effect.
const SETTLE: Duration = Duration::from_millis(10);

/// A file that is written all the time must not keep the others' changes waiting.
const LONGEST_SETTLE: Duration = Duration::from_millis(30);

/// Symbolic links followed one by one; the kernel follows 40.
const MAX_LINKS: usize = 40;

/// Files, each under a key of the caller's, watched through one inotify instance: a user may have
/// 128 of these and no more (`fs.inotify.max_user_instances`).
#[derive(Debug)]
pub(crate) struct Watch<K> {
    inotify: AsyncFd<OwnedFd>,
    names: RefCell<Names<K>>,
}

/// Names in the watched directories, and the files that they lead to; of ten thousand files one is
/// found and changed as soon as of ten.
#[derive(Debug)]
struct Names<K> {
    /// By directory, which the number of its watch stands for.
    files: HashMap<i32, HashMap<OsString, HashSet<K>>>,
    of_file: HashMap<K, Vec<(i32, OsString)>>,
}

impl<K: Copy + Eq + Hash> Watch<K> {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Ok(Self {
            inotify: sys::readiness_of(inotify::init(flags)?)?,
            names: RefCell::default(),
        })
    }

    /// Watches every directory that has a part in where `path` leads now; to be called again after
    /// each change. Directories of before stay watched until they are gone.
    ///
    /// # Errors
    /// When the last of them, the one that is sure to be of use, cannot be watched.
    pub(crate) fn follow(&self, key: K, path: &Path) -> io::Result<()> {
        self.forget(key);
        let mut outcome = Ok(());
        for step in steps(path) {
            let (Some(directory), Some(name)) = (step.parent(), step.file_name()) else {
                continue;
            };
            let directory = match directory.as_os_str().is_empty() {
                true => Path::new("."),
                false => directory,
            };
            let events = inotify::WatchFlags::CLOSE_WRITE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::CREATE;
            outcome = inotify::add_watch(&self.inotify, directory, events)
                .map(|watch| self.names.borrow_mut().add(watch, name, key))
                .map_err(|error| {
                    let error = io::Error::from(error);
                    io::Error::new(
                        error.kind(),
                        format!("cannot watch {}: {error}", directory.display()),
                    )
                });
        }
        outcome
    }

    pub(crate) fn forget(&self, key: K) {
        self.names.borrow_mut().forget(key);
    }

    /// The files to which something has happened, once no more does; each at least once.
    ///
    /// # Errors
    /// When nothing can be learned any more.
    pub(crate) async fn changed(&self) -> io::Result<Vec<K>> {
        let mut changed = Vec::new();
        while changed.is_empty() {
            self.happened(&mut changed).await?;
        }
        let settling = async {
            while let Ok(more) = tokio::time::timeout(SETTLE, self.happened(&mut changed)).await {
                more?;
            }
            Ok(())
        };
        match tokio::time::timeout(LONGEST_SETTLE, settling).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(_) => Ok(changed),
        }
    }

    /// Waits for events and adds the files that they are about.
    async fn happened(&self, to: &mut Vec<K>) -> io::Result<()> {
        let mut ready = self.inotify.readable().await?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut space);
        let names = self.names.borrow();
        let mut add = |key: &K| {
            if !to.contains(key) {
                to.push(*key);
            }
        };
        loop {
            match events.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) => {
                    names.of_file.keys().for_each(&mut add);
                }
                Ok(event) => {
                    let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
                    let keys = name.and_then(|name| names.get(event.wd(), name));
                    keys.into_iter().flatten().for_each(&mut add);
                }
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<K: Copy + Eq + Hash> Names<K> {
    fn add(&mut self, watch: i32, name: &OsStr, key: K) {
        let names = self.files.entry(watch).or_default();
        if names.entry(name.to_owned()).or_default().insert(key) {
            let places = self.of_file.entry(key).or_default();
            places.push((watch, name.to_owned()));
        }
    }

    fn get(&self, watch: i32, name: &OsStr) -> Option<&HashSet<K>> {
        self.files.get(&watch)?.get(name)
    }

    fn forget(&mut self, key: K) {
        for (watch, name) in self.of_file.remove(&key).unwrap_or_default() {
            let Some(names) = self.files.get_mut(&watch) else {
                continue;
            };
            if let Some(keys) = names.get_mut(&name) {
                keys.remove(&key);
                if keys.is_empty() {
                    names.remove(&name);
                }
            }
            if names.is_empty() {
                self.files.remove(&watch);
            }
        }
    }
}

impl<K> Default for Names<K> {
    fn default() -> Self {
        Self {
            files: HashMap::new(),
            of_file: HashMap::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_files_with_one_name_in_many_directories_only_the_changed_one_is_told() {
        let directory =
            std::env::temp_dir().join(format!("outrigger-watch-{}", std::process::id()));
        let watch = Watch::new().expect("an inotify instance");
        let file = |n: u8| directory.join(n.to_string()).join("endpoints.yaml");
        for n in 1..=3 {
            std::fs::create_dir_all(file(n).parent().expect("a parent")).expect("a directory");
            watch.follow(n, &file(n)).expect("watched");
        }
        std::fs::write(file(2), "").expect("written");
        assert_eq!(watch.changed().await.expect("seen"), [2]);
        watch.forget(2);
        std::fs::write(file(2), "").expect("written");
        std::fs::write(file(3), "").expect("written");
        assert_eq!(watch.changed().await.expect("seen"), [3]);
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
