//! cgroup2: which one a path means, and a cgroup of one's own to run something in.
//!
//! Hierarchies of both versions may be mounted at once (a "hybrid" host), so that the place of
//! version 2 is always looked up. A cgroup's identity is its number, not its path: one that is
//! removed and made again under the same path is another.

mod error;
mod mount;
#[cfg(test)]
mod tests;

use std::{
    ffi::{CString, OsString},
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, kill_process},
};

pub use error::CgroupError;
use error::Reason;
use mount::Mount;

use crate::sys::{self, Helper};

/// One cgroup of version 2, as it was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    directory: PathBuf,
    path: String,
    id: u64,
}

impl Cgroup {
    /// The cgroup that `path` means: `self` is this process' own, `/a/b` counts from the root of this
    /// process' cgroup namespace (as in `/proc/self/cgroup`), and a directory below the mount point
    /// (`/sys/fs/cgroup/a/b`) is understood too.
    ///
    /// # Errors
    /// When there is no cgroup2 here, or no such cgroup.
    pub fn find(path: &str) -> Result<Self, CgroupError> {
        let doing = || format!("looking up cgroup {path}");
        let mounts = mount::all().map_err(|e| CgroupError::new(doing(), Reason::Io(e)))?;
        if mounts.is_empty() {
            return Err(CgroupError::new(doing(), Reason::NoHierarchy));
        }
        let path = match path {
            "self" => own_path().map_err(|reason| CgroupError::new(doing(), reason))?,
            _ => normal(path, &mounts).map_err(|reason| CgroupError::new(doing(), reason))?,
        };
        // A writable mount of the same place comes first.
        let shown = mounts.iter().filter_map(|m| m.directory_of(&path));
        let Some(directory) = shown.clone().find(|d| d.is_dir()) else {
            let reason = match shown.into_iter().next() {
                Some(directory) => Reason::Missing { directory },
                None => Reason::Hidden,
            };
            return Err(CgroupError::new(doing(), reason));
        };
        Self::at(directory, path)
    }

    /// The cgroup of this process.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn own() -> Result<Self, CgroupError> {
        Self::find("self")
    }

    /// The path, counted from the root of this process' cgroup namespace.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the kernel knows it by; never given again while the host runs.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How far below the namespace's root: 0 is the root itself.
    pub fn level(&self) -> u32 {
        let names = self.path.split('/').filter(|name| !name.is_empty());
        u32::try_from(names.count()).unwrap_or(u32::MAX)
    }

    /// Makes a cgroup below this one.
    ///
    /// # Errors
    /// When one of that name is there, or this one is not this user's to divide.
    pub fn create_child(&self, name: &str) -> Result<Self, CgroupError> {
        let doing = || format!("creating cgroup {name} below {self}");
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(CgroupError::new(doing(), Reason::BadName));
        }
        let directory = self.directory.join(name);
        fs::create_dir(&directory).map_err(|e| CgroupError::of(doing(), e))?;
        Self::at(
            directory,
            format!("{}/{name}", self.path.trim_end_matches('/')),
        )
    }

    /// Moves a process here, with all its threads; its open sockets stay where they were made.
    ///
    /// # Errors
    /// When the kernel refuses it, most often for lack of delegation.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        let doing = || format!("moving process {pid} into cgroup {self}");
        self.entrance()
            .and_then(|mut entrance| entrance.write_all(pid.to_string().as_bytes()))
            .map_err(|e| CgroupError::of(doing(), e))
    }

    /// A copy of this process that begins here, or is moved here where the kernel does no such thing: see
    /// [`sys::fork`].
    pub(crate) fn fork(&self, action: &mut impl FnMut()) -> Result<Helper, CgroupError> {
        if let Ok(directory) = File::open(&self.directory)
            && let Ok(helper) = sys::fork(Some(directory.as_fd()), action)
        {
            return Ok(helper);
        }
        let doing = || format!("starting a process for cgroup {self}");
        let helper = sys::fork(None, action).map_err(|e| CgroupError::of(doing(), e))?;
        self.add(helper.pid())?;
        Ok(helper)
    }

    /// Starts the program `words[0]`, looked for as a shell would, with the words after it; it begins here, and
    /// no signal is blocked for it. `None`: the kernel starts nothing in another cgroup (before Linux 5.7, and
    /// where a container's seccomp filter knows no clone3); then [`contain`](Self::contain) says why, or does it.
    ///
    /// # Errors
    /// The program's, such as that there is none.
    pub fn spawn(&self, words: &[OsString]) -> Option<io::Result<u32>> {
        let words: Result<Vec<_>, _> = words
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect();
        let words = words.ok().filter(|words| !words.is_empty())?;
        let directory = File::open(&self.directory).ok()?;
        sys::spawn(directory.as_fd(), &words).ok()
    }

    /// Has what `command` starts begin here: it joins before it runs, so that every socket of it is
    /// of this cgroup. If it cannot join, `spawn` fails with the kernel's error.
    ///
    /// # Errors
    /// When this process may not move another here.
    pub fn contain(&self, command: &mut Command) -> Result<(), CgroupError> {
        let entrance = self
            .entrance()
            .map_err(|e| CgroupError::of(format!("opening cgroup {self}"), e))?;
        sys::before_exec(command, move || (&entrance).write_all(b"0"));
        Ok(())
    }

    /// The processes in it, not counting those in cgroups below. One of another pid namespace is 0.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let listed = self.read("cgroup.procs")?;
        Ok(listed
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect())
    }

    /// Whether no process is in it, nor below.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn is_empty(&self) -> Result<bool, CgroupError> {
        Ok(!says_populated(&self.read("cgroup.events")?))
    }

    /// Kills every process in it and below, forks in flight included. It does not wait.
    ///
    /// # Errors
    /// When this user may not.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let doing = || format!("killing what runs in cgroup {self}");
        match fs::write(self.directory.join("cgroup.kill"), "1") {
            // Linux before 5.14 has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.directory.is_dir() => {
                self.kill_one_by_one()
            }
            done => done.map_err(|e| CgroupError::of(doing(), e)),
        }
    }

    /// Waits until nothing runs in it; false: something still does after `limit`.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn wait_until_empty(&self, limit: Duration) -> Result<bool, CgroupError> {
        let doing = || format!("waiting for the end of what runs in cgroup {self}");
        let deadline = Instant::now() + limit;
        // The kernel announces each change of this file as priority data, to whoever polls the very
        // descriptor by which it was read last.
        let events = File::open(self.directory.join("cgroup.events"))
            .map_err(|e| CgroupError::of(doing(), e))?;
        loop {
            if !is_populated(&events).map_err(|e| CgroupError::of(doing(), e))? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let pause = left.min(Duration::from_secs(3600));
            let pause = pause.try_into().expect("it is short");
            match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&pause)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(CgroupError::of(doing(), errno.into())),
            }
        }
    }

    /// Removes it; it must be empty and without cgroups below. One that is gone already is no error.
    ///
    /// # Errors
    /// When something still runs in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // For adding a process the same number means something else.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(CgroupError::new(
                format!("removing cgroup {self}"),
                Reason::Inhabited,
            )),
            done => done.map_err(|e| CgroupError::of(format!("removing cgroup {self}"), e)),
        }
    }

    /// Who writes 0 into this joins. It stays open to whoever inherits it.
    fn entrance(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.procs"))
    }

    fn at(directory: PathBuf, path: String) -> Result<Self, CgroupError> {
        // kernfs numbers its inodes by the cgroup's id (64-bit hosts, since Linux 5.5).
        let id = fs::metadata(&directory)
            .map_err(|e| CgroupError::of(format!("looking up cgroup {path}"), e))?
            .ino();
        Ok(Self {
            directory,
            path,
            id,
        })
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        fs::read_to_string(self.directory.join(file))
            .map_err(|e| CgroupError::of(format!("reading {file} of cgroup {self}"), e))
    }

    fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        let doing = || format!("killing what runs in cgroup {self}");
        for below in fs::read_dir(&self.directory).map_err(|e| CgroupError::of(doing(), e))? {
            let Ok(below) = below else { continue };
            if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = below.file_name().to_string_lossy().into_owned();
                let path = format!("{}/{name}", self.path.trim_end_matches('/'));
                Self::at(below.path(), path)?.kill_one_by_one()?;
            }
        }
        // A fork may have come between the list and the kill: until a list has nobody alive in it.
        for _ in 0..100 {
            let found = self.processes()?;
            let pids = found
                .iter()
                .filter_map(|pid| Pid::from_raw(pid.cast_signed()));
            for pid in pids {
                match kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(errno) => return Err(CgroupError::of(doing(), errno.into())),
                }
            }
            if self.wait_until_empty(Duration::from_millis(20))? {
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// By `cgroup.events`, from its beginning.
fn is_populated(events: &File) -> io::Result<bool> {
    // Two short lines, and what later kernels may add.
    let mut text = [0; 256];
    let length = events.read_at(&mut text, 0)?;
    Ok(says_populated(&String::from_utf8_lossy(&text[..length])))
}

fn says_populated(events: &str) -> bool {
    !events.contains("populated 0")
}

/// From the line `0::PATH` of `/proc/self/cgroup`, which every host with cgroup2 has.
fn own_path() -> Result<String, Reason> {
    let lines = fs::read_to_string("/proc/self/cgroup").map_err(Reason::Io)?;
    let path = lines.lines().find_map(|line| line.strip_prefix("0::"));
    match path {
        // The kernel says `/../x` for a process outside its own namespace's root.
        Some(path) if path.split('/').any(|name| name == "..") => Err(Reason::Outside),
        Some(path) => Ok(path.trim_end_matches(" (deleted)").into()),
        None => Err(Reason::NoHierarchy),
    }
}

/// As a path from the namespace's root, without anything to resolve in it.
fn normal(path: &str, mounts: &[Mount]) -> Result<String, Reason> {
    if !path.starts_with('/') {
        return Err(Reason::Relative);
    }
    let below_mount = mounts
        .iter()
        .find_map(|mount| mount.path_of(Path::new(path)));
    let path = below_mount.as_deref().unwrap_or(path);
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..")) {
        return Err(Reason::Relative);
    }
    Ok(format!("/{}", names.join("/")))
}
