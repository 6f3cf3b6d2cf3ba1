//! From the plan to iptables rules, one family at a time, in the words of `iptables-save`, so that
//! what is loaded can be compared with what is found.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::{IptablesError, MAX_RULES, ruleset::State};
use crate::plan::{Elements, Family, Intervals, Match, Plan, Rule, Table, Verdict};

/// The match extensions that the rules use.
pub(super) const MATCHES: [&str; 6] = ["tcp", "udp", "owner", "recent", "addrtype", "mark"];

/// Only the first packet of a connection: see [`Match::PureSyn`].
const PURE_SYN: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";

/// The chain that captures.
pub(crate) fn capture_name(port: u16) -> String {
    format!("OUTRIGGER_{port}")
}

pub(super) fn probe_name(port: u16) -> String {
    format!("OUTRIGGER_{port}_PROBE")
}

fn beat_name(port: u16) -> String {
    format!("OUTRIGGER_{port}_BEAT")
}

/// The list of xt_recent whose one entry is the lease.
pub(super) fn lease_name(port: u16, family: Family) -> String {
    let number = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("outrigger_{port}_{number}")
}

/// Table nat: redirects while the lease is fresh.
pub(super) fn capture(plan: &Plan, family: Family) -> Result<State, IptablesError> {
    let chain = capture_name(plan.port);
    let mut rules = Vec::new();
    let planned = plan.capture.chains.iter().flat_map(|c| &c.rules);
    for rule in planned.filter(|rule| !matches!(rule.verdict, Verdict::Jump(_))) {
        let is_first_redirect = matches!(rule.verdict, Verdict::RedirectTo(_))
            && !rules.iter().any(|r: &String| r.contains("-m recent"));
        if is_first_redirect {
            rules.push(unless_fresh(plan, family));
        }
        rules.extend(encode(rule, &plan.capture, family));
        if rules.len() > MAX_RULES {
            return Err(IptablesError::TooManyRules {
                family,
                count: rules.len(),
            });
        }
    }
    Ok(State::new(&chain, rules, PURE_SYN))
}

/// Table nat: redirects one probe address, and no longer than the proxy beats, should this process
/// be killed before it takes the rule back.
pub(super) fn probe(plan: &Plan, family: Family, target: std::net::SocketAddr) -> State {
    let chain = probe_name(plan.port);
    let own = crate::plan::exclude_proxy(&plan.proxy);
    let mut rules: Vec<_> = own
        .iter()
        .flat_map(|rule| encode(rule, &plan.capture, family))
        .collect();
    rules.push(unless_fresh(plan, family));
    rules.push(format!(
        "-d {} -p tcp -m tcp --dport {} -j REDIRECT --to-ports {}",
        IpNet::from(target.ip()),
        target.port(),
        plan.port
    ));
    State::new(&chain, rules, PURE_SYN)
}

/// Table mangle: the proxy's beat renews the lease. The drop makes its `send` fail, which tells it
/// that capture is on.
pub(super) fn beat(plan: &Plan, family: Family) -> State {
    let renew = format!(
        "-m recent --set --name {} --mask {} --rdest -j DROP",
        lease_name(plan.port, family),
        everything(family)
    );
    let from_proxy = match (plan.proxy.excluded_uid, plan.proxy.mark) {
        (Some(uid), _) => format!(" -m owner --uid-owner {uid}"),
        (None, Some(mark)) => format!(" -m mark --mark {mark:#x}"),
        (None, None) => String::new(),
    };
    let condition = format!(
        "-d {} -o lo -p udp -m udp --dport {}{from_proxy}",
        IpNet::from(family.loopback()),
        plan.port
    );
    State::new(&beat_name(plan.port), vec![renew], &condition)
}

fn unless_fresh(plan: &Plan, family: Family) -> String {
    format!(
        "-m recent ! --rcheck --seconds {} --name {} --mask {} --rdest -j RETURN",
        super::LEASE.as_secs(),
        lease_name(plan.port, family),
        everything(family)
    )
}

/// Masks every address to the same one: the list is used as a single cell.
fn everything(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0",
        Family::V6 => "::",
    }
}

/// One rule of the plan is as many here as its sets have elements; none if it is the other
/// family's.
fn encode(rule: &Rule, table: &Table, family: Family) -> Vec<String> {
    let verdict = match rule.verdict {
        Verdict::Return => "-j RETURN".into(),
        Verdict::Accept => "-j ACCEPT".into(),
        Verdict::Jump(chain) => format!("-j {chain}"),
        Verdict::RedirectTo(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::RejectWithReset => "-j REJECT --reject-with tcp-reset".into(),
    };
    let mut sorted: Vec<_> = rule.matches.iter().collect();
    // The programs list a destination first, wherever it was written.
    sorted.sort_by_key(|condition| !is_destination(condition));
    let no_conditions = vec![String::new()];
    let combined = sorted.into_iter().fold(no_conditions, |so_far, condition| {
        let choices = choices(condition, table, family);
        so_far
            .iter()
            .flat_map(|before| choices.iter().map(move |choice| format!("{before}{choice}")))
            .collect()
    });
    combined
        .into_iter()
        .map(|conditions| format!("{conditions}{verdict}"))
        .collect()
}

fn is_destination(condition: &Match) -> bool {
    matches!(
        condition,
        Match::Destination(_) | Match::DestinationIn(..) | Match::Family(_)
    )
}

/// The alternatives of a condition, each ending with a space.
fn choices(condition: &Match, table: &Table, family: Family) -> Vec<String> {
    let one = |text: &str| vec![text.to_owned()];
    match condition {
        Match::Family(of) if *of == family => one(""),
        Match::Family(_) => Vec::new(),
        Match::Tcp => one("-p tcp "),
        Match::PureSyn => vec![format!("{PURE_SYN} ")],
        Match::SocketUid(uid) => vec![format!("-m owner --uid-owner {uid} ")],
        Match::SocketUidIn(set) | Match::SocketGidIn(set) | Match::PortIn(set) => {
            members(table, set)
        }
        Match::Mark(mark) => vec![format!("-m mark --mark {mark:#x} ")],
        Match::OutLoopback => one("-o lo "),
        Match::DestinationLocal => one("-m addrtype --dst-type LOCAL "),
        Match::Destination(net) if Family::of(net.addr()) == family => {
            vec![format!("-d {net} ")]
        }
        Match::Destination(_) => Vec::new(),
        Match::DestinationIn(of, set) if *of == family => members(table, set),
        Match::DestinationIn(..) => Vec::new(),
        Match::Port(port) => vec![format!("-p tcp -m tcp --dport {port} ")],
        Match::Established => one("-m conntrack --ctstate ESTABLISHED "),
    }
}

fn members(table: &Table, set: &str) -> Vec<String> {
    let elements = table.sets.iter().find(|s| s.name == set);
    match elements.map(|set| &set.elements) {
        None => Vec::new(),
        Some(Elements::V4(nets)) => nets.iter().flat_map(v4_networks).map(to).collect(),
        Some(Elements::V6(nets)) => nets.iter().flat_map(v6_networks).map(to).collect(),
        Some(Elements::Ports(ports)) => port_ranges(ports),
        Some(Elements::Uids(ids)) => ids
            .iter()
            .map(|id| format!("-m owner --uid-owner {id} "))
            .collect(),
        Some(Elements::Gids(ids)) => ids
            .iter()
            .map(|id| format!("-m owner --gid-owner {id} "))
            .collect(),
    }
}

fn to(net: IpNet) -> String {
    format!("-d {net} ")
}

fn v4_networks((first, last): (u128, u128)) -> impl Iterator<Item = IpNet> {
    let address = |number: u128| Ipv4Addr::from(number as u32);
    Ipv4Subnets::new(address(first), address(last), 0).map(IpNet::V4)
}

fn v6_networks((first, last): (u128, u128)) -> impl Iterator<Item = IpNet> {
    Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0).map(IpNet::V6)
}

fn port_ranges(ports: &Intervals) -> Vec<String> {
    ports
        .iter()
        .map(|(first, last)| {
            if first == last {
                format!("-p tcp -m tcp --dport {first} ")
            } else {
                format!("-p tcp -m tcp --dport {first}:{last} ")
            }
        })
        .collect()
}
