//! From settings to rules: which connections are left alone, which are redirected, in which order.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::Ipv6Net;
use outrigger_config::{
    IpNet, PortRange, Scope, Settings,
    control::{Lease, probe_address},
};

use super::{
    CGROUP_NAT_PRIORITY, Chain, Elements, Family, GID_NAT_PRIORITY, Hook, Intervals, Match,
    ProxyIdentity, Rule, Set, Table, Timeout, UID_NAT_PRIORITY, Verdict, anchor_name, closed_name,
    table_name,
};
use crate::{
    cgroup::Cgroup,
    error::Refusal,
    host::{Host, Neighbour},
};

/// Rules exclude by uid, and by mark where one is set. By mark alone where the installer, who
/// stands for the applications, has the proxy's uid: in a rootless namespace there is no other.
pub(super) fn identify(settings: &Settings, host: &Host) -> Result<ProxyIdentity, Refusal> {
    let mark = settings.capture.proxy_mark;
    let uid = host.only_uid.unwrap_or(settings.capture.proxy_uid);
    let shared = uid == host.uid;
    match (shared, mark) {
        (true, None) if host.only_uid.is_some() => Err(Refusal::OnlyOneUid { uid }),
        (true, None) => Err(Refusal::InstallerIsProxy { uid }),
        _ => Ok(ProxyIdentity {
            uid,
            excluded_uid: (!shared).then_some(uid),
            mark,
        }),
    }
}

pub(super) fn captured_families(
    settings: &Settings,
    host: &Host,
) -> Result<(Vec<Family>, Vec<String>), Refusal> {
    let mut notes = Vec::new();
    let mut families = Vec::new();
    for family in Family::ALL {
        let name = family.name();
        let listens = settings.listen.iter().any(|a| Family::of(a.ip()) == family);
        let included = settings
            .capture
            .include
            .cidrs
            .iter()
            .any(|net| Family::of(net.addr()) == family);
        if !included {
            notes.push(format!(
                "{name} is not captured: capture.include.cidrs has no {name} network"
            ));
        } else if !listens {
            notes.push(format!(
                "{name} is not captured: listen has no {name} address"
            ));
        } else if family == Family::V6 && !host.ipv6_on_loopback {
            notes.push("IPv6 is not captured: the loopback interface has no ::1 here".into());
        } else {
            families.push(family);
        }
    }
    if families.is_empty() || settings.capture.include.ports.is_empty() {
        return Err(Refusal::NothingToCapture { notes });
    }
    Ok((families, notes))
}

/// The scope as the rules will have it, with a cgroup by its full path.
pub(super) fn scope(
    settings: &Settings,
    host: &Host,
    proxy: &ProxyIdentity,
) -> Result<Scope, Refusal> {
    let scope = &settings.capture.scope;
    match scope {
        Scope::Uids(ids) => {
            if let Some(only) = host.only_uid
                && *ids != [only]
            {
                return Err(Refusal::ScopeUnmapped {
                    scope: scope.to_string(),
                    only,
                });
            }
            match proxy.excluded_uid.filter(|own| ids.contains(own)) {
                Some(uid) => Err(Refusal::ScopeHasProxy { uid }),
                None => Ok(scope.clone()),
            }
        }
        Scope::Cgroup(_) => Ok(match &host.cgroup {
            Some(cgroup) => Scope::Cgroup(cgroup.path().into()),
            None => scope.clone(),
        }),
        Scope::Netns | Scope::Gids(_) => Ok(scope.clone()),
    }
}

pub(super) fn scope_note(host: &Host) -> Option<String> {
    let cgroup = host.cgroup.as_ref()?;
    Some(format!(
        "cgroup {cgroup} is captured as it is now (number {}): of one that is made again under this path nothing is, until install-rules runs again",
        cgroup.id()
    ))
}

const SCOPE_UIDS: &str = "scope_uids";
const SCOPE_GIDS: &str = "scope_gids";

/// Empty: everybody.
pub(super) fn in_scope(scope: &Scope, cgroup: Option<&Cgroup>) -> Option<Match> {
    match scope {
        Scope::Netns => None,
        Scope::Uids(_) => Some(Match::SocketUidIn(SCOPE_UIDS)),
        Scope::Gids(_) => Some(Match::SocketGidIn(SCOPE_GIDS)),
        Scope::Cgroup(path) => Some(Match::SocketCgroup {
            path: path.clone(),
            // Nothing has the number 0.
            id: cgroup.map_or(0, Cgroup::id),
            level: cgroup.map_or(0, Cgroup::level),
        }),
    }
}

pub(super) fn scope_sets(scope: &Scope) -> Vec<Set> {
    let (name, elements) = match scope {
        Scope::Netns | Scope::Cgroup(_) => return Vec::new(),
        Scope::Uids(ids) => (SCOPE_UIDS, Elements::Uids(ids.clone())),
        Scope::Gids(ids) => (SCOPE_GIDS, Elements::Gids(ids.clone())),
    };
    vec![Set { name, elements }]
}

const fn nat_hook(scope: &Scope) -> Hook {
    let priority = match scope {
        Scope::Netns => return Hook::NAT,
        Scope::Cgroup(_) => CGROUP_NAT_PRIORITY,
        Scope::Uids(_) => UID_NAT_PRIORITY,
        Scope::Gids(_) => GID_NAT_PRIORITY,
    };
    Hook {
        priority,
        ..Hook::NAT
    }
}

pub(super) const EXCLUDED_UIDS: &str = "excluded_uids";
pub(super) const EXCLUDED_GIDS: &str = "excluded_gids";
pub(super) const EXCLUDED_PORTS: &str = "excluded_ports";
pub(super) const INCLUDED_PORTS: &str = "included_ports";

pub(super) const fn excluded(family: Family) -> &'static str {
    match family {
        Family::V4 => "excluded_v4",
        Family::V6 => "excluded_v6",
    }
}

pub(super) const fn included(family: Family) -> &'static str {
    match family {
        Family::V4 => "included_v4",
        Family::V6 => "included_v6",
    }
}

/// Only sets that restrict something: an absent set keeps a rule, and each connect, shorter.
fn sets(settings: &Settings, families: &[Family]) -> Vec<Set> {
    let capture = &settings.capture;
    let mut sets = Vec::new();
    let mut add = |name, elements| sets.push(Set { name, elements });
    for (name, ids, kind) in [
        (
            EXCLUDED_UIDS,
            &capture.exclude.uids,
            Elements::Uids as fn(_) -> _,
        ),
        (EXCLUDED_GIDS, &capture.exclude.gids, Elements::Gids),
    ] {
        let mut ids = ids.clone();
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            add(name, kind(ids));
        }
    }
    for &family in families {
        let excluded_nets = networks(&capture.exclude.cidrs, family);
        if !excluded_nets.is_empty() {
            add(excluded(family), family.elements(excluded_nets));
        }
        let included_nets = networks(&capture.include.cidrs, family);
        if !included_nets.is_everything() {
            add(included(family), family.elements(included_nets));
        }
    }
    let excluded_ports = ports(&capture.exclude.ports);
    if !excluded_ports.is_empty() {
        add(EXCLUDED_PORTS, Elements::Ports(excluded_ports));
    }
    if !has_every_port(&capture.include.ports) {
        add(
            INCLUDED_PORTS,
            Elements::Ports(ports(&capture.include.ports)),
        );
    }
    sets
}

/// The families whose lease runs.
pub(crate) const LEASES: &str = "leases";

/// Where connections came from that cannot take the redirect.
pub(super) const fn bound(family: Family) -> &'static str {
    match family {
        Family::V4 => "bound_to_device",
        Family::V6 => "bound_to_device_v6",
    }
}
/// Longer than until the first retransmission and the second.
const BOUND_MILLIS: u64 = 5000;

pub(super) fn lease(settings: &Settings, families: &[Family]) -> Lease {
    let loopback = |family: &Family| (family.loopback(), settings.port()).into();
    Lease {
        millis: u64::try_from(settings.capture.lease.0.as_millis()).unwrap_or(u64::MAX),
        beats: families.iter().map(loopback).collect(),
    }
}

pub(super) fn capture(
    settings: &Settings,
    host: &Host,
    proxy: &ProxyIdentity,
    families: &[Family],
    lease: &Lease,
    generation: u64,
) -> Table {
    let port = settings.port();
    let scope = &settings.capture.scope;
    let mut sets = sets(settings, families);
    sets.extend(scope_sets(scope));
    sets.push(Set {
        name: LEASES,
        elements: Elements::Leases,
    });
    sets.extend(families.iter().map(|&family| Set {
        name: bound(family),
        elements: Elements::Sources(family),
    }));
    let chains = vec![
        heartbeat_chain(proxy, lease, generation),
        output_chain(scope, host, proxy, lease, port),
        capture_chain(settings, host, proxy, families, port),
        astray_chain(families, port),
    ];
    Table {
        name: table_name(port, generation),
        comment: format!("Outrigger: captured for the proxy on port {port}, gone when it is gone"),
        outlives_owner: false,
        timeout: None,
        sets,
        chains,
    }
}

/// A socket bound to a device cannot reach the proxy on `lo`. Its first packet is lost, but its source is
/// noted, so that its retransmission a second later goes direct.
///
/// Over IPv4 the redirected packet would leave by that device, for nowhere: it is dropped and noted
/// here. Over IPv6 the kernel finds no route for it and drops it before any hook sees it: so whatever
/// is redirected was noted before, and what arrives on `lo` is no such packet after all.
fn astray_chain(families: &[Family], port: u16) -> Chain {
    let rule = |&family: &Family| {
        let set = bound(family);
        let destination = [
            Match::Destination(family.loopback().into()),
            Match::Port(port),
        ];
        let (place, verdict) = match family {
            Family::V4 => (
                vec![Match::OutElsewhere],
                Verdict::NoteSourceAndDrop {
                    family,
                    set,
                    millis: BOUND_MILLIS,
                },
            ),
            Family::V6 => (
                vec![Match::OutLoopback, Match::PureSyn],
                Verdict::ForgetSource { family, set },
            ),
        };
        Rule::new(place.into_iter().chain(destination), verdict)
    };
    Chain {
        name: "astray",
        hook: Some(Hook::LEAVING),
        rules: families.iter().map(rule).collect(),
    }
}

/// A dead man's switch: the capture applies to a family only while the proxy's beats renew its lease.
/// Two generations stand side by side for a moment, each with beats of its own.
fn heartbeat_chain(proxy: &ProxyIdentity, lease: &Lease, generation: u64) -> Chain {
    let renew = |beat: &SocketAddr| {
        Rule::new(
            [
                is_from(proxy),
                Match::OutLoopback,
                Match::Destination(beat.ip().into()),
                Match::UdpPort(beat.port()),
                Match::Payload(generation),
            ],
            Verdict::RenewAndDrop {
                set: LEASES,
                millis: lease.millis,
            },
        )
    };
    Chain {
        name: super::HEARTBEAT,
        hook: Some(Hook::HEARTBEAT),
        rules: lease.beats.iter().map(renew).collect(),
    }
}

/// The proxy's probes are redirected lease or no lease, or it could never prove itself again.
fn output_chain(
    scope: &Scope,
    host: &Host,
    proxy: &ProxyIdentity,
    lease: &Lease,
    port: u16,
) -> Chain {
    let probe = |beat: &SocketAddr| {
        let target = probe_address(*beat);
        Rule::new(
            [
                Match::PureSyn,
                is_from(proxy),
                Match::Destination(target.ip().into()),
                Match::Port(target.port()),
            ],
            Verdict::RedirectTo(port),
        )
    };
    let mut rules: Vec<_> = lease.beats.iter().map(probe).collect();
    let scope_match = in_scope(scope, host.cgroup.as_ref());
    rules.push(Rule::new(
        [Match::PureSyn, Match::FamilyIn(LEASES)]
            .into_iter()
            .chain(scope_match),
        Verdict::Jump("capture"),
    ));
    Chain {
        name: "output",
        hook: Some(nat_hook(scope)),
        rules,
    }
}

/// The surer of the two where both are known: an application may have been given a mark.
fn is_from(proxy: &ProxyIdentity) -> Match {
    match (proxy.excluded_uid, proxy.mark) {
        (Some(uid), _) => Match::SocketUid(uid),
        (None, mark) => Match::Mark(mark.unwrap_or_default()),
    }
}

fn capture_chain(
    settings: &Settings,
    host: &Host,
    proxy: &ProxyIdentity,
    families: &[Family],
    port: u16,
) -> Chain {
    let capture = &settings.capture;
    let mut rules = exclude_proxy(proxy);
    rules.extend(exclude_neighbours(proxy, &host.neighbours));
    let mut leave = |condition| rules.push(Rule::new([condition], Verdict::Return));
    leave(Match::OutLoopback);
    leave(Match::DestinationLocal);
    for &family in families {
        leave(Match::SourceIn(family, bound(family)));
    }
    if families.contains(&Family::V6) {
        // Link-local destinations need their interface, which the proxy's dial would not have.
        leave(Match::Destination(LINK_LOCAL_V6));
    }
    rules.extend(exclude_users(settings));
    let mut leave = |condition| rules.push(Rule::new([condition], Verdict::Return));
    for &family in families {
        if !networks(&capture.exclude.cidrs, family).is_empty() {
            leave(Match::DestinationIn(family, excluded(family)));
        }
    }
    if !capture.exclude.ports.is_empty() {
        leave(Match::PortIn(EXCLUDED_PORTS));
    }
    for &family in families {
        let destination = if networks(&capture.include.cidrs, family).is_everything() {
            Match::Family(family)
        } else {
            Match::DestinationIn(family, included(family))
        };
        let port_condition = if has_every_port(&capture.include.ports) {
            Match::Tcp
        } else {
            Match::PortIn(INCLUDED_PORTS)
        };
        let conditions = [destination, port_condition];
        if family == Family::V6 {
            rules.push(Rule::new(
                conditions.clone(),
                Verdict::NoteSource {
                    family,
                    set: bound(family),
                    millis: BOUND_MILLIS,
                },
            ));
        }
        rules.push(Rule::new(conditions, Verdict::RedirectTo(port)));
    }
    Chain {
        name: "capture",
        hook: None,
        rules,
    }
}

pub(super) const LINK_LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    10,
));

pub(super) fn exclude_proxy(proxy: &ProxyIdentity) -> Vec<Rule> {
    let uid = proxy.excluded_uid.map(Match::SocketUid);
    let mark = proxy.mark.map(Match::Mark);
    uid.into_iter()
        .chain(mark)
        .map(|own| Rule::new([own], Verdict::Return))
        .collect()
}

/// By mark where it has one: in a namespace of one uid everybody has its user's.
pub(super) fn exclude_neighbours(proxy: &ProxyIdentity, neighbours: &[Neighbour]) -> Vec<Rule> {
    let mut own: Vec<_> = neighbours
        .iter()
        .map(|neighbour| match neighbour.mark {
            Some(mark) => Match::Mark(mark),
            None => Match::SocketUid(neighbour.uid),
        })
        .filter(|own| match own {
            Match::SocketUid(uid) => proxy.excluded_uid.is_some_and(|ours| ours != *uid),
            other => proxy.mark.map(Match::Mark).as_ref() != Some(other),
        })
        .collect();
    own.dedup();
    own.into_iter()
        .map(|own| Rule::new([own], Verdict::Return))
        .collect()
}

fn exclude_users(settings: &Settings) -> Vec<Rule> {
    let exclude = &settings.capture.exclude;
    let uids = (!exclude.uids.is_empty()).then_some(Match::SocketUidIn(EXCLUDED_UIDS));
    let gids = (!exclude.gids.is_empty()).then_some(Match::SocketGidIn(EXCLUDED_GIDS));
    uids.into_iter()
        .chain(gids)
        .map(|users| Rule::new([users], Verdict::Return))
        .collect()
}

const fn closed_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "closed_v4",
        Family::V6 => "closed_v6",
    }
}

/// Refuses what would be captured and was not. Filters see a connection after it was translated, so
/// that a captured one is on its way to the loopback address by then.
pub(super) fn closed(
    settings: &Settings,
    host: &Host,
    proxy: &ProxyIdentity,
    families: &[Family],
) -> Result<Option<Table>, Refusal> {
    let capture = &settings.capture;
    if capture.fail_closed.is_empty() {
        return Ok(None);
    }
    if !host.can_outlive_owner {
        return Err(Refusal::CannotFailClosed {
            reason: "tables that outlive their owner need Linux 6.9 or newer".into(),
        });
    }
    let left_out = |net: &&IpNet| !families.contains(&Family::of(net.addr()));
    if let Some(net) = capture.fail_closed.iter().find(left_out) {
        return Err(Refusal::CannotFailClosed {
            reason: format!(
                "{net} could not be reached at all: {} is not captured here",
                Family::of(net.addr()).name()
            ),
        });
    }
    let mut sets: Vec<_> = sets(settings, families)
        .into_iter()
        .filter(|set| !matches!(set.elements, Elements::V4(_) | Elements::V6(_)))
        .collect();
    sets.extend(scope_sets(&capture.scope));
    let mut rules = exclude_proxy(proxy);
    rules.extend(exclude_neighbours(proxy, &host.neighbours));
    let mut leave = |condition| rules.push(Rule::new([condition], Verdict::Return));
    leave(Match::OutLoopback);
    // What was captured too: its destination is the proxy's by now.
    leave(Match::DestinationLocal);
    if families.contains(&Family::V6) {
        leave(Match::Destination(LINK_LOCAL_V6));
    }
    let mut closed = Vec::new();
    for &family in families {
        let nets = networks(&capture.fail_closed, family);
        if nets.is_empty() {
            continue;
        }
        let set = closed_set(family);
        sets.push(Set {
            name: set,
            elements: family.elements(nets),
        });
        closed.push((family, set));
    }
    rules.extend(exclude_users(settings));
    if !capture.exclude.ports.is_empty() {
        rules.push(Rule::new([Match::PortIn(EXCLUDED_PORTS)], Verdict::Return));
    }
    for (family, set) in closed {
        for destination in [
            vec![Match::OriginallyTo {
                family,
                set,
                is_in: true,
            }],
            vec![Match::Untracked, Match::DestinationIn(family, set)],
        ] {
            let port =
                (!has_every_port(&capture.include.ports)).then_some(Match::PortIn(INCLUDED_PORTS));
            let conditions = port.into_iter().chain(destination);
            rules.push(Rule::new(conditions, Verdict::RejectWithReset));
        }
    }
    Ok(Some(Table {
        name: closed_name(settings.port(), 0),
        comment: "Outrigger: refuses what must not go past the proxy, remove-rules ends it".into(),
        outlives_owner: true,
        timeout: None,
        sets,
        chains: vec![
            Chain {
                name: "closed",
                hook: None,
                rules,
            },
            Chain {
                name: "output",
                hook: Some(Hook::FILTER),
                rules: vec![Rule::new(
                    std::iter::once(Match::PureSyn)
                        .chain(in_scope(&capture.scope, host.cgroup.as_ref())),
                    Verdict::Jump("closed"),
                )],
            },
        ],
    }))
}

/// Unanswered and reset connections. Shorter than TCP's first retransmission, so that each attempt is
/// decided on anew, and the least that the kernel counts.
pub(super) const PASSING: Timeout = Timeout {
    name: "passing",
    seconds: 1,
};

/// In a bare namespace the redirect is conntrack's only user: without these two chains (either
/// alone is not enough) conntrack unhooks with it, and live captured connections are reset or hang.
///
/// It is also what keeps connection tracking's memory short, while there is a capture and until the last
/// captured connection has ended: for the scope only, captured or not, and not for proxies.
pub(super) fn anchor(
    settings: &Settings,
    host: &Host,
    proxy: &ProxyIdentity,
    generation: u64,
) -> Table {
    let port = settings.port();
    let scope = &settings.capture.scope;
    let mut shorten = Vec::new();
    if host.can_shorten_timeouts {
        shorten = exclude_proxy(proxy);
        shorten.extend(exclude_neighbours(proxy, &host.neighbours));
        shorten.push(Rule::new(
            std::iter::once(Match::PureSyn).chain(in_scope(scope, host.cgroup.as_ref())),
            Verdict::SetTimeout(PASSING.name),
        ));
    }
    let sets = if host.can_shorten_timeouts {
        scope_sets(scope)
    } else {
        Vec::new()
    };
    Table {
        name: anchor_name(port, generation),
        comment: format!(
            "Outrigger: keeps live connections of the proxy on port {port} translated"
        ),
        outlives_owner: false,
        timeout: host.can_shorten_timeouts.then_some(PASSING),
        sets,
        chains: vec![
            Chain {
                name: "translate",
                hook: Some(Hook::BEFORE_NAT),
                rules: shorten,
            },
            Chain {
                name: "track",
                hook: Some(Hook::FILTER),
                rules: vec![Rule::new([Match::Established], Verdict::Accept)],
            },
        ],
    }
}

pub(super) fn networks(nets: &[IpNet], family: Family) -> Intervals {
    let bits = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let of_family = nets.iter().filter(|net| Family::of(net.addr()) == family);
    Intervals::new(
        bits,
        of_family.map(|net| (number(net.network()), number(net.broadcast()))),
    )
}

fn ports(ranges: &[PortRange]) -> Intervals {
    Intervals::new(
        16,
        ranges
            .iter()
            .map(|range| (range.first.into(), range.last.into())),
    )
}

/// Port 0 cannot be dialled, so 1 to 65535 is all.
pub(super) fn has_every_port(ranges: &[PortRange]) -> bool {
    ports(ranges).iter().eq([(1, u16::MAX.into())])
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}
