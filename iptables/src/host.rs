//! What this process can see of the host that it would capture on.

use std::{
    fs, io,
    net::{Ipv6Addr, UdpSocket},
};

use crate::{
    cgroup::Cgroup,
    nft::{self, NetlinkSocket},
    plan,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The user that this process runs as.
    pub uid: u32,
    /// The one uid there is, in a user namespace that maps no other.
    pub only_uid: Option<u32>,
    /// Without ::1 on `lo` a redirected IPv6 connection leads nowhere.
    pub ipv6_on_loopback: bool,
    /// Whether connection tracking takes a timeout of ours.
    pub can_shorten_timeouts: bool,
    /// Whether a table may stay, owned by nobody, once its owner is gone (Linux 6.9).
    pub can_outlive_owner: bool,
    /// The one that the scope names, if it names one.
    pub cgroup: Option<Cgroup>,
    /// Other instances that capture here.
    pub neighbours: Vec<Neighbour>,
}

/// Another proxy of ours in this network namespace, and how its own connections are told. They are
/// not captured: two that captured each other's would send a connection round for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub port: u16,
    pub uid: u32,
    pub mark: Option<u32>,
}

impl Host {
    /// Asks the kernel by `socket`, where there is one, what it can.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn look(mut socket: Option<&mut NetlinkSocket>) -> io::Result<Self> {
        let mut is_possible = |with_timeout, outlives_owner| {
            let trial = plan::trial(with_timeout, outlives_owner);
            socket
                .as_mut()
                .is_some_and(|socket| nft::is_possible(socket, &trial))
        };
        let both = is_possible(true, true);
        Ok(Self {
            uid: rustix::process::geteuid().as_raw(),
            only_uid: only_uid(&fs::read_to_string("/proc/self/uid_map")?),
            ipv6_on_loopback: UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok(),
            can_shorten_timeouts: both || is_possible(true, false),
            can_outlive_owner: both || is_possible(false, true),
            cgroup: None,
            neighbours: Vec::new(),
        })
    }
}

/// `uid_map` has a line per range: first uid inside, first uid outside, count.
fn only_uid(uid_map: &str) -> Option<u32> {
    let mut ranges = uid_map.lines().map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        (numbers.next().flatten(), numbers.nth(1).flatten())
    });
    match (ranges.next(), ranges.next()) {
        (Some((Some(first), Some(1))), None) => Some(first),
        _ => None,
    }
}

/// The uid that stands for every user that this user namespace does not map.
pub(crate) fn overflow_uid() -> u32 {
    fs::read_to_string("/proc/sys/kernel/overflowuid")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65534)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_of_one_uid_is_told_from_others() {
        assert_eq!(only_uid("         0       1000          1\n"), Some(0));
        assert_eq!(only_uid("         0          0 4294967295\n"), None);
        assert_eq!(only_uid("0 1000 1\n1 100000 65536\n"), None);
        assert_eq!(only_uid(""), None);
    }
}
