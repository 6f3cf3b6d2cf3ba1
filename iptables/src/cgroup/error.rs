//! What could not be done with a cgroup, why, and what would help.

use std::{fmt, io, path::PathBuf};

#[derive(Debug)]
pub struct CgroupError {
    doing: String,
    reason: Reason,
}

#[derive(Debug)]
pub(super) enum Reason {
    /// cgroup2 is not mounted.
    NoHierarchy,
    Missing {
        directory: PathBuf,
    },
    /// No mount shows this part of the hierarchy.
    Hidden,
    /// This process is not below the root of its own cgroup namespace.
    Outside,
    Relative,
    BadName,
    Exists,
    ReadOnly,
    NotDelegated,
    /// The rule of cgroup2 that processes live in the leaves.
    Internal,
    Threaded,
    TooMany,
    Inhabited,
    Gone,
    Io(io::Error),
}

impl CgroupError {
    pub(super) fn new(doing: String, reason: Reason) -> Self {
        Self { doing, reason }
    }

    /// What the kernel's numbers mean for cgroups (`Documentation/admin-guide/cgroup-v2.rst`).
    pub(super) fn of(doing: String, error: io::Error) -> Self {
        let reason = match error.raw_os_error() {
            Some(libc::EROFS) => Reason::ReadOnly,
            Some(libc::EACCES | libc::EPERM) => Reason::NotDelegated,
            Some(libc::EBUSY) => Reason::Internal,
            Some(libc::EOPNOTSUPP) => Reason::Threaded,
            Some(libc::EEXIST) => Reason::Exists,
            Some(libc::EAGAIN) => Reason::TooMany,
            Some(libc::ENOENT | libc::ENODEV) => Reason::Gone,
            _ => Reason::Io(error),
        };
        Self { doing, reason }
    }

    /// Whether there is no cgroup of that path, where there could be one.
    pub fn is_absent(&self) -> bool {
        matches!(self.reason, Reason::Missing { .. } | Reason::Gone)
    }

    /// Whether it takes no process because it divides resources among those below.
    pub(crate) fn is_internal(&self) -> bool {
        matches!(self.reason, Reason::Internal)
    }

    /// What to do next.
    pub fn advice(&self) -> String {
        match &self.reason {
            Reason::NoHierarchy => {
                "mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`; in a container, ask for the host's cgroup namespace or a mounted /sys/fs/cgroup), or use another scope, such as `uid:1000`".into()
            }
            Reason::Missing { directory } => format!(
                "create it and start the application in it (`mkdir {}`), or take the path from /proc/PID/cgroup, after `0::`",
                directory.display()
            ),
            Reason::Hidden | Reason::Outside => {
                "run this command where the cgroup is visible: in the host's cgroup namespace, or in that of the container in question".into()
            }
            Reason::Relative => "write it as in /proc/PID/cgroup after `0::`, beginning with `/` and without `..`; or `self`".into(),
            Reason::BadName => "use a plain name without `/`".into(),
            Reason::Exists => "use another name, or remove it with `rmdir` once nothing runs in it".into(),
            Reason::ReadOnly => "remount it writable (`mount -o remount,rw`; in a container: run it privileged, or mount /sys/fs/cgroup rw)".into(),
            Reason::NotDelegated => "run this as root, or have the cgroup delegated to this user (systemd: `Delegate=yes`, or `systemd-run --user --scope`)".into(),
            Reason::Internal => "put the process into a cgroup below it: one whose `cgroup.subtree_control` names controllers holds no processes itself".into(),
            Reason::Threaded => "use a cgroup whose `cgroup.type` is `domain`".into(),
            Reason::TooMany => "remove cgroups that are no longer used, or raise `cgroup.max.descendants` or `cgroup.max.depth` above it".into(),
            Reason::Inhabited => "end what runs in it and below (`cat cgroup.procs`), then remove the cgroups below it first".into(),
            Reason::Gone => "look whether it, or the process, has ended meanwhile; then try again".into(),
            Reason::Io(_) => "check that /proc and the cgroup file system are mounted and readable".into(),
        }
    }
}

impl fmt::Display for CgroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.doing)?;
        match &self.reason {
            Reason::NoHierarchy => f.write_str("no cgroup2 file system is mounted here"),
            Reason::Missing { directory } => {
                write!(f, "there is none (no directory {})", directory.display())
            }
            Reason::Hidden => f.write_str("no cgroup2 mount shows it here"),
            Reason::Outside => {
                f.write_str("this process is outside of its own cgroup namespace's root")
            }
            Reason::Relative => f.write_str("this is no full path"),
            Reason::BadName => f.write_str("this is no name for a cgroup"),
            Reason::Exists => f.write_str("there is one of that name"),
            Reason::ReadOnly => f.write_str("the cgroup2 file system is mounted read-only"),
            Reason::NotDelegated => {
                f.write_str("permission denied: it is not delegated to this user")
            }
            Reason::Internal => f.write_str(
                "it distributes resources to cgroups below it and so takes no process of its own",
            ),
            Reason::Threaded => f.write_str("it is, or is part of, a threaded cgroup"),
            Reason::TooMany => f.write_str("a limit on the number or depth of cgroups is reached"),
            Reason::Inhabited => {
                f.write_str("something still runs in it, or there are cgroups below it")
            }
            Reason::Gone => f.write_str("it is gone"),
            Reason::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CgroupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::Io(error) => Some(error),
            _ => None,
        }
    }
}
