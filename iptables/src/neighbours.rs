//! Who else takes part: other instances of ours in this network namespace, the proxy's place in the
//! scope, and applications that the proxy's own exclusion leaves out.

use std::{cmp::Ordering, collections::BTreeSet, fs, os::unix::fs::MetadataExt};

use outrigger_config::{
    Scope,
    control::{Identity, Tether, TetherKind},
};
use procfs::process::all_processes;

use serde::Serialize;

use crate::{control::Proxy, host::Neighbour, plan::Plan, process::Process, tether::backend_of};

/// The proxies on other ports, by their control sockets, which this namespace lists by name. One that
/// does not answer is left out: it captures nothing either, for lack of a beat.
pub(crate) fn of(port: u16) -> Vec<Neighbour> {
    other_ports(port)
        .into_iter()
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

/// The ports of the other proxies in this network namespace, which it lists to everybody.
pub fn other_ports(port: u16) -> BTreeSet<u16> {
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    let mut found = ports(&sockets);
    found.remove(&port);
    found
}

/// The capture of another proxy in this network namespace that may be for the same connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overlap {
    pub port: u16,
    pub pid: u32,
    pub uid: u32,
    pub scope: Scope,
    pub backend: String,
    pub wins: Winner,
}

/// Who gets the connections that both are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Winner {
    This,
    Other,
    /// Whichever was installed last.
    Latest,
}

/// The captures that overlap with those of the proxy on `port`. What this user may not ask is left out.
pub fn overlaps(port: u16, proxy: &Identity) -> Vec<Overlap> {
    let mut found = Vec::new();
    for other in other_ports(port) {
        let Some(identity) = Proxy::connect(other)
            .ok()
            .flatten()
            .and_then(|mut proxy| proxy.hello().ok())
        else {
            continue;
        };
        for theirs in captures(&identity) {
            for ours in captures(proxy).filter(|ours| may_share(&ours.scope, &theirs.scope)) {
                found.push(Overlap {
                    port: other,
                    pid: identity.pid,
                    uid: identity.uid,
                    scope: theirs.scope.clone(),
                    backend: backend_of(theirs).into(),
                    wins: match precedence(ours).cmp(&precedence(theirs)) {
                        Ordering::Less => Winner::This,
                        Ordering::Equal => Winner::Latest,
                        Ordering::Greater => Winner::Other,
                    },
                });
            }
        }
    }
    found
}

fn captures(identity: &Identity) -> impl Iterator<Item = &Tether> {
    let is_on = identity.captured_since.is_some();
    let is_capture = move |tether: &&Tether| is_on && tether.kind == TetherKind::Capture;
    identity.tethers.iter().filter(is_capture)
}

/// Whether a connection can be in both.
fn may_share(one: &Scope, other: &Scope) -> bool {
    match (one, other) {
        (Scope::Uids(one), Scope::Uids(other)) | (Scope::Gids(one), Scope::Gids(other)) => {
            one.iter().any(|id| other.contains(id))
        }
        (Scope::Cgroup(one), Scope::Cgroup(other)) => {
            is_within(one, other) || is_within(other, one)
        }
        _ => true,
    }
}

/// The lower comes first: nftables' priorities are below that of iptables, in which the narrower scope
/// has no advantage.
fn precedence(tether: &Tether) -> u8 {
    match &tether.scope {
        _ if tether.outlives => 4,
        Scope::Cgroup(_) => 0,
        Scope::Uids(_) => 1,
        Scope::Gids(_) => 2,
        Scope::Netns => 3,
    }
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
    fn of_two_captures_the_narrower_wins_and_nft_before_iptables() {
        let of = |scope: &str, outlives| Tether {
            kind: TetherKind::Capture,
            table: "t".into(),
            generation: 1,
            fingerprint: String::new(),
            lease: None,
            outlives,
            scope: scope.parse().unwrap(),
            cgroup_id: None,
        };
        let in_order = ["cgroup:/a", "uid:1", "gid:1", "netns"].map(|scope| of(scope, false));
        assert!(in_order.is_sorted_by(|a, b| precedence(a) < precedence(b)));
        assert!(precedence(&in_order[3]) < precedence(&of("cgroup:/a", true)));
        for (one, other, expected) in [
            ("uid:1,2", "uid:2", true),
            ("uid:1", "uid:2", false),
            ("gid:1", "uid:2", true),
            ("cgroup:/a", "cgroup:/a/b", true),
            ("cgroup:/a", "cgroup:/ab", false),
            ("cgroup:/a", "netns", true),
        ] {
            let [one, other] = [one, other].map(|scope| of(scope, false).scope);
            assert_eq!(may_share(&one, &other), expected, "{one} {other}");
            assert_eq!(may_share(&other, &one), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another_cgroup() {
        assert!(is_within("/app", "/app") && is_within("/app/web", "/app"));
        assert!(is_within("/app", "/"));
        assert!(!is_within("/application", "/app") && !is_within("/", "/app"));
    }
}
