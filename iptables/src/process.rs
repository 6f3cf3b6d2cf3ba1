//! From a socket's inode to the processes that hold it, for messages that name names.

use std::{collections::HashSet, fmt, fs};

use procfs::process::{FDTarget, all_processes};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub name: String,
    pub uid: u32,
    pub user: Option<String>,
    /// As in `ps`: R running, S sleeping, T stopped…
    pub state: char,
}

impl Process {
    /// `None` when there is none of that number, or it is hidden.
    pub fn of(pid: i32) -> Option<Self> {
        Self::read(&procfs::process::Process::new(pid).ok()?)
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    fn read(process: &procfs::process::Process) -> Option<Self> {
        let stat = process.stat().ok()?;
        let uid = process.uid().ok()?;
        Some(Self {
            pid: process.pid,
            name: stat.comm,
            uid,
            user: user_name(uid),
            state: stat.state,
        })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pid, uid, .. } = self;
        match &self.user {
            Some(user) => write!(f, "{name} (pid {pid}, user {user})"),
            None => write!(f, "{name} (pid {pid}, user {uid})"),
        }
    }
}

/// The processes that hold one of the sockets `inodes`; what `/proc` does not show is left out.
pub(crate) fn holders(inodes: &HashSet<u64>) -> Vec<Process> {
    let Ok(processes) = all_processes() else {
        return Vec::new();
    };
    processes
        .filter_map(Result::ok)
        .filter(|process| holds(process, inodes))
        .filter_map(|process| Process::read(&process))
        .collect()
}

fn holds(process: &procfs::process::Process, inodes: &HashSet<u64>) -> bool {
    process.fd().is_ok_and(|descriptors| {
        descriptors
            .filter_map(Result::ok)
            .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
    })
}

/// The holders of the netfilter netlink socket whose port number is `port`.
pub(crate) fn netlink_holders(port: u32) -> Vec<Process> {
    let inodes = fs::read_to_string("/proc/net/netlink")
        .map(|table| netlink_inodes(&table, port))
        .unwrap_or_default();
    if inodes.is_empty() {
        return Vec::new();
    }
    holders(&inodes)
}

/// The columns are: sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; Eth is the protocol.
fn netlink_inodes(table: &str, port: u32) -> HashSet<u64> {
    let netfilter = netlink_sys::protocols::NETLINK_NETFILTER.to_string();
    table
        .lines()
        .filter_map(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let is_it =
                columns.get(1) == Some(&netfilter.as_str()) && columns.get(2)?.parse() == Ok(port);
            is_it.then(|| columns.get(9)?.parse().ok()).flatten()
        })
        .collect()
}

fn user_name(uid: u32) -> Option<String> {
    fs::read_to_string("/etc/passwd")
        .ok()?
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_inode_of_a_netlink_port() {
        let table = "\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 12  4100       00000000 0        0        0     2        0        777
0000000000000000 0   4100       00000000 0        0        0     2        0        778
";
        assert_eq!(netlink_inodes(table, 4100), HashSet::from([777]));
        assert!(netlink_inodes(table, 4101).is_empty());
    }

    #[test]
    fn this_process_is_seen_with_its_name() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let process = Process::of(pid).unwrap();
        assert_eq!(process.pid, pid);
        assert!(!process.is_stopped());
    }
}
