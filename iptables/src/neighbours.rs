//! Who else takes part: other instances of ours in this network namespace, the proxy's place in the
//! scope, and applications that the proxy's own exclusion leaves out.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt};

use outrigger_config::{Scope, control::Identity};
use procfs::process::all_processes;

use crate::{control::Proxy, host::Neighbour, plan::Plan, process::Process};

/// The proxies on other ports, by their control sockets, which this namespace lists by name. One that
/// does not answer is left out: it captures nothing either, for lack of a beat.
pub(crate) fn of(port: u16) -> Vec<Neighbour> {
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    ports(&sockets)
        .into_iter()
        .filter(|other| *other != port)
        .filter_map(|port| {
            let mut proxy = Proxy::connect(port).ok()??;
            let uid = proxy.uid();
            let mark = proxy.hello().ok()?.mark;
            Some(Neighbour { port, uid, mark })
        })
        .collect()
}

/// In `/proc/net/unix` an abstract name begins with `@`.
fn ports(sockets: &str) -> BTreeSet<u16> {
    sockets
        .lines()
        .filter_map(|line| line.rsplit_once(" @outrigger/")?.1.parse().ok())
        .collect()
}

/// What a user should know of them.
pub(crate) fn notes(plan: &Plan, identity: &Identity) -> Vec<String> {
    let mut notes = Vec::new();
    for Neighbour { port, uid, .. } in &plan.neighbours {
        notes.push(format!(
            "another Outrigger (port {port}, user {uid}) runs in this network namespace: its own connections are not captured here; where scopes overlap, the narrower one wins (cgroup, then uid, gid, netns), and of equal ones the one installed last"
        ));
    }
    if let Scope::Cgroup(scope) = &plan.scope
        && cgroup_of(identity.pid).is_some_and(|of_proxy| is_within(&of_proxy, scope))
    {
        notes.push(
            "the proxy itself runs in the captured cgroup; its connections are told apart by its user or mark"
                .into(),
        );
    }
    let namesakes = namesakes(plan, identity.pid);
    if let Some(first) = namesakes.first() {
        notes.push(format!(
            "not captured, since the proxy's user runs it: {first}{}; give the proxy a user of its own",
            match namesakes.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            }
        ));
    }
    notes
}

/// Programs that run as the proxy's user in this network namespace and in the scope.
fn namesakes(plan: &Plan, proxy: u32) -> Vec<Process> {
    let Some(uid) = plan.proxy.excluded_uid else {
        return Vec::new();
    };
    let network = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net")).map(|ns| ns.ino());
    let (Ok(here), Ok(processes)) = (network("thread-self"), all_processes()) else {
        return Vec::new();
    };
    let is_in_scope = |pid: u32| match &plan.scope {
        Scope::Cgroup(scope) => cgroup_of(pid).is_some_and(|path| is_within(&path, scope)),
        Scope::Netns | Scope::Uids(_) | Scope::Gids(_) => true,
    };
    processes
        .filter_map(Result::ok)
        .filter(|process| process.uid().is_ok_and(|of| of == uid))
        .filter(|process| process.pid.unsigned_abs() != proxy && proxy != 0)
        .filter(|process| network(&process.pid.to_string()).is_ok_and(|net| net == here))
        .filter(|process| is_in_scope(process.pid.unsigned_abs()))
        .filter_map(|process| Process::of(process.pid))
        // An end that nobody has waited for dials no more.
        .filter(|process| process.state != 'Z')
        .collect()
}

fn cgroup_of(pid: u32) -> Option<String> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = lines.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.to_owned())
}

fn is_within(path: &str, scope: &str) -> bool {
    path.strip_prefix(scope.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_known_by_their_control_sockets() {
        let sockets = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 777 @outrigger/15001
0000: 00000002 00000000 00000000 0001 03 778 @outrigger/15001
0000: 00000002 00000000 00010000 0001 01 779 @outrigger/15002/install
0000: 00000002 00000000 00010000 0001 01 780 @outrigger/15003
";
        assert_eq!(ports(sockets), BTreeSet::from([15001, 15003]));
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another_cgroup() {
        assert!(is_within("/app", "/app") && is_within("/app/web", "/app"));
        assert!(is_within("/app", "/"));
        assert!(!is_within("/application", "/app") && !is_within("/", "/app"));
    }
}
