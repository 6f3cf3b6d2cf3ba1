//! Private namespaces in which the demo may do what only root may do, without touching the host.

use std::{fmt, fs, io};

use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{getegid, geteuid},
    thread::UnshareFlags,
};

use crate::sys;

/// Where the demo keeps its files: a file system in memory that only its own processes see.
pub(super) const DIRECTORY: &str = "/tmp";

/// Which users there are in the namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Users {
    /// As on the host: the proxy can have a user of its own, as in production.
    Many,
    /// Root alone, who is a plain user outside.
    One,
}

/// Moves this process into namespaces of its own (network, mounts, and users unless it is root).
///
/// # Errors
/// What the kernel forbids, and how to allow it.
pub(super) fn enter(proxy_uid: u32) -> Result<Users, Forbidden> {
    let private = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    if !geteuid().is_root() || sys::enter_new_namespaces(private).is_err() {
        enter_user_namespace(private)?;
    }
    mount_private_directory()
        .map_err(|error| Forbidden::new("mounting a private file system in memory", error))?;
    let uid_map = fs::read_to_string("/proc/self/uid_map")
        .map_err(|error| Forbidden::new("reading /proc/self/uid_map", error))?;
    Ok(if has_user(&uid_map, proxy_uid) {
        Users::Many
    } else {
        Users::One
    })
}

/// `uid_map` has a line per range: first uid inside, first uid outside, count.
fn has_user(uid_map: &str, uid: u32) -> bool {
    uid_map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
        let (first, count) = (numbers.next(), numbers.nth(1));
        matches!((first, count), (Some(first), Some(count)) if (first..first + count).contains(&u64::from(uid)))
    })
}

fn enter_user_namespace(private: UnshareFlags) -> Result<(), Forbidden> {
    // Outside ids, asked before the namespace hides them.
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    sys::enter_new_namespaces(private | UnshareFlags::NEWUSER)
        .map_err(|error| Forbidden::new("making private namespaces", error))?;
    let become_root = || -> io::Result<()> {
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        // Without privileges a group map is allowed only after groups can no longer be dropped.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    };
    become_root().map_err(|error| Forbidden::new("becoming root in the user namespace", error))
}

fn mount_private_directory() -> io::Result<()> {
    // Root's new mount namespace would otherwise pass the mount on to the host's.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("outrigger-demo", DIRECTORY, "tmpfs", flags, c"mode=1777")?;
    Ok(())
}

/// This host does not let the demo have namespaces.
#[derive(Debug)]
pub(super) struct Forbidden {
    doing: &'static str,
    error: io::Error,
    remedies: Vec<String>,
}

impl Forbidden {
    fn new(doing: &'static str, error: io::Error) -> Self {
        let remedies = remedies(|path| fs::read_to_string(path).ok(), geteuid().is_root());
        Self {
            doing,
            error,
            remedies,
        }
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: ", self.doing)?;
        match self.error.raw_os_error().map(Errno::from_raw_os_error) {
            // The kernel's word for it is "No space left on device".
            Some(Errno::NOSPC) => f.write_str("no more of them are allowed")?,
            _ => self.error.fmt(f)?,
        }
        f.write_str(
            "\nThe demo plays in network namespaces of its own, and this host does not let it have any:",
        )?;
        for remedy in &self.remedies {
            write!(f, "\n  - {remedy}")?;
        }
        Ok(())
    }
}

/// The switches that forbid user namespaces: file, the value that forbids, what to type.
const SWITCHES: [(&str, &str, &str); 3] = [
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "sysctl user.max_user_namespaces=10000",
    ),
    (
        // Debian's and Ubuntu's own.
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        // Ubuntu 23.10 and later.
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

fn remedies(read: impl Fn(&str) -> Option<String>, is_root: bool) -> Vec<String> {
    let mut remedies: Vec<_> = SWITCHES
        .iter()
        .filter(|(path, forbids, _)| read(path).is_some_and(|value| value.trim() == *forbids))
        .map(|(path, forbids, allow)| {
            format!("{path} is {forbids}, which forbids it; as root: {allow}")
        })
        .collect();
    if is_root {
        remedies.push(
            "in a container, root lacks CAP_SYS_ADMIN or a seccomp profile forbids unshare(2); \
             with Docker: docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt apparmor=unconfined …"
                .into(),
        );
    } else {
        remedies.push("or run it as root: sudo proxyctl demo".into());
    }
    remedies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_that_forbids_is_named_with_the_command_that_allows() {
        let ubuntu = |path: &str| path.contains("apparmor").then(|| "1\n".to_owned());
        let found = remedies(ubuntu, false);
        assert!(
            found[0].contains("sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
            "{found:?}"
        );
        assert!(found[1].contains("as root"), "{found:?}");
    }

    #[test]
    fn root_of_a_rootless_namespace_is_not_taken_for_the_hosts() {
        assert!(has_user("         0          0 4294967295\n", 1337));
        assert!(!has_user("         0       1000          1\n", 1337));
        assert!(has_user("0 1000 1\n1 100000 65536\n", 1337));
        assert!(!has_user("", 1337));
    }

    #[test]
    fn a_switch_that_allows_is_not_blamed() {
        let debian = |path: &str| path.contains("max_user").then(|| "96365\n".to_owned());
        assert_eq!(remedies(debian, false).len(), 1);
    }
}
