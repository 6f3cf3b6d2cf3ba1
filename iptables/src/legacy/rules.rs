//! From the plan to iptables rules, one family at a time, in the words and the order of
//! `iptables-save`, so that what is loaded can be compared with what is found.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use outrigger_config::control::application_probe_addresses;

use super::{IptablesError, MAX_RULES, lease, ruleset::State};
use crate::plan::{Chain, Elements, Family, Intervals, Match, Plan, Rule, Table, Verdict};

/// The match extensions that the rules use.
pub(super) const MATCHES: [&str; 7] = [
    "tcp", "udp", "owner", "recent", "addrtype", "mark", "cgroup",
];

/// See [`Match::PureSyn`].
const PURE_SYN: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";

/// Longer than the gate's probes of both families may take, in seconds.
const PROBE_LEASE: u64 = 45;

/// The chain that captures.
pub(super) fn capture_name(port: u16) -> String {
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
    format!("outrigger_{port}_{}", number(family))
}

fn probe_lease_name(port: u16, family: Family) -> String {
    format!("outrigger_{port}_probe_{}", number(family))
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// Table nat: redirects while the lease is fresh; the proxy's probes always, which it sends as itself and
/// as an application.
pub(super) fn capture(plan: &Plan, family: Family) -> Result<State, IptablesError> {
    let listener = SocketAddr::new(family.loopback(), plan.port);
    let probe = |target: SocketAddr| {
        let condition = Conditions::default().to(target.ip().into());
        let condition = condition.at_port(target.port().to_string());
        format!("{condition}-j REDIRECT --to-ports {}", plan.port)
    };
    let mut rules = Vec::from(application_probe_addresses(listener).map(probe));
    rules.push(return_unless_fresh(
        &lease_name(plan.port, family),
        lease::seconds(plan),
        family,
    ));
    let chains = plan.capture.chains.iter();
    rules.extend(
        chains
            .filter(|chain| chain.name == "capture")
            .flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)))
            .flat_map(|(chain, rule)| encode(rule, chain, &plan.capture, family))
            .take(MAX_RULES + 1),
    );
    if rules.len() > MAX_RULES {
        return Err(IptablesError::TooManyRules { family });
    }
    Ok(State::new(&capture_name(plan.port), rules, PURE_SYN))
}

/// Table mangle: the proxy's beat renews the lease. The drop makes its `send` fail, which tells it
/// that the rules are there.
pub(super) fn beat(plan: &Plan, family: Family) -> State {
    let from_proxy = match (plan.proxy.excluded_uid, plan.proxy.mark) {
        (Some(uid), _) => format!(" -m owner --uid-owner {uid}"),
        (None, mark) => format!(" -m mark --mark {:#x}", mark.unwrap_or_default()),
    };
    let beat = SocketAddr::new(family.loopback(), plan.port);
    State::new(
        &beat_name(plan.port),
        vec![renew(&lease_name(plan.port, family), family)],
        &(datagram_to(beat) + &from_proxy),
    )
}

/// Table nat: redirects the gate's probes, for no longer than they may take, should the installer
/// be killed before it takes the rule back.
pub(super) fn probe(plan: &Plan, target: SocketAddr) -> State {
    let family = Family::of(target.ip());
    let mut rules = vec![return_unless_fresh(
        &probe_lease_name(plan.port, family),
        PROBE_LEASE,
        family,
    )];
    let table = plan.canary(&[target]);
    let chain = table.chains.iter().filter(|chain| chain.name == "probe");
    rules.extend(
        chain
            .flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)))
            .flat_map(|(chain, rule)| encode(rule, chain, &table, family)),
    );
    State::new(&probe_name(plan.port), rules, PURE_SYN)
}

/// Table mangle: a datagram of the installer starts the probe's lease.
pub(super) fn probe_beat(port: u16, target: SocketAddr) -> State {
    let family = Family::of(target.ip());
    State::new(
        &probe_name(port),
        vec![renew(&probe_lease_name(port, family), family)],
        &datagram_to(probe_beat_address(target)),
    )
}

/// The probed port is the installer's own, so that nobody else beats there.
pub(super) fn probe_beat_address(target: SocketAddr) -> SocketAddr {
    (Family::of(target.ip()).loopback(), target.port()).into()
}

fn datagram_to(address: SocketAddr) -> String {
    format!(
        "-d {} -o lo -p udp -m udp --dport {}",
        host(address.ip()),
        address.port()
    )
}

fn renew(list: &str, family: Family) -> String {
    let mask = everything(family);
    format!("-m recent --set --name {list} --mask {mask} --rdest -j DROP")
}

fn return_unless_fresh(list: &str, seconds: u64, family: Family) -> String {
    let mask = everything(family);
    format!(
        "-m recent ! --rcheck --seconds {seconds} --name {list} --mask {mask} --rdest -j RETURN"
    )
}

/// Masks every address to the same one: the list is used as a single cell.
fn everything(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0",
        Family::V6 => "::",
    }
}

fn host(ip: IpAddr) -> IpNet {
    ip.into()
}

/// What the conditions of a rule come to, sorted as `iptables-save` sorts them.
#[derive(Clone, Default)]
struct Conditions {
    destination: Option<IpNet>,
    is_out_loopback: bool,
    is_tcp: bool,
    extensions: Vec<String>,
}

/// One rule of the plan is as many here as its sets have elements; none if it is the other
/// family's.
fn encode(rule: &Rule, chain: &Chain, table: &Table, family: Family) -> Vec<String> {
    let verdict = match rule.verdict {
        Verdict::RedirectTo(port) => format!("REDIRECT --to-ports {port}"),
        Verdict::Return => "RETURN".into(),
        Verdict::Accept => "ACCEPT".into(),
        Verdict::RejectWithReset => "REJECT --reject-with tcp-reset".into(),
        // Chains and leases are of another make here, and a list of xt_recent has no ports.
        Verdict::Jump(_)
        | Verdict::LeaveAlone(_)
        | Verdict::Log { .. }
        | Verdict::Renew { .. }
        | Verdict::RenewAndDrop { .. }
        | Verdict::NoteSourceAndDrop { .. }
        | Verdict::NoteSource { .. }
        | Verdict::ForgetSource { .. }
        | Verdict::SetTimeout(_) => {
            return Vec::new();
        }
    };
    let unconditional = vec![Conditions::default()];
    let redirects = matches!(rule.verdict, Verdict::RedirectTo(_));
    scope_of(chain, table)
        .iter()
        .filter(|_| redirects)
        .chain(&rule.matches)
        .fold(unconditional, |so_far, condition| {
            so_far
                .into_iter()
                .flat_map(|before| before.and(condition, table, family))
                // One more than will be accepted.
                .take(MAX_RULES + 1)
                .collect()
        })
        .iter()
        .map(|conditions| format!("{conditions}-j {verdict}"))
        .collect()
}

/// On what condition the plan comes to `chain` at all. There are no sets here for one rule to ask, so
/// each rule that redirects asks it itself.
fn scope_of<'a>(chain: &Chain, table: &'a Table) -> &'a [Match] {
    let mut rules = table.chains.iter().flat_map(|chain| &chain.rules);
    let jump = rules.find(|rule| rule.verdict == Verdict::Jump(chain.name));
    jump.map_or(&[], |jump| &jump.matches)
}

impl Conditions {
    /// The alternatives.
    fn and(self, condition: &Match, table: &Table, family: Family) -> Vec<Self> {
        match condition {
            // The jump to the chain has it.
            Match::PureSyn | Match::FamilyIn(_) => vec![self],
            Match::Family(of) if *of == family => vec![self],
            Match::Tcp => vec![Self {
                is_tcp: true,
                ..self
            }],
            Match::OutLoopback => vec![Self {
                is_out_loopback: true,
                ..self
            }],
            Match::DestinationLocal => vec![self.extended("addrtype --dst-type LOCAL")],
            Match::Established => vec![self.extended("conntrack --ctstate ESTABLISHED")],
            Match::SocketCgroup { path, .. } => {
                vec![self.extended(format!("cgroup --path \"{path}\""))]
            }
            Match::Mark(mark) => vec![self.extended(format!("mark --mark {mark:#x}"))],
            Match::SocketUid(uid) => vec![self.of_user(*uid)],
            Match::Port(port) => vec![self.at_port(port.to_string())],
            Match::Destination(net) if Family::of(net.addr()) == family => vec![self.to(*net)],
            Match::DestinationIn(of, set) if *of == family => self.in_set(table, set),
            Match::SocketUidIn(set) | Match::SocketGidIn(set) | Match::PortIn(set) => {
                self.in_set(table, set)
            }
            Match::Family(_) | Match::Destination(_) | Match::DestinationIn(..) => Vec::new(),
            // Of the beats, which are of another make here, and of lists with ports.
            Match::Translated
            | Match::ReplyPort(_)
            | Match::FamilyNotIn(_)
            | Match::OriginallyAt(_)
            | Match::OriginallyTo { .. }
            | Match::OriginalPort { .. }
            | Match::UdpPort(_)
            | Match::Payload(_)
            | Match::SourceIn(..)
            | Match::Untracked
            | Match::OutElsewhere => Vec::new(),
        }
    }

    fn in_set(self, table: &Table, name: &str) -> Vec<Self> {
        let set = table.sets.iter().find(|set| set.name == name);
        let each = |nets: &Intervals, split: fn(u128, u128) -> Vec<IpNet>| {
            nets.iter()
                .flat_map(|(first, last)| split(first, last))
                .map(|net| self.clone().to(net))
                .collect()
        };
        match set.map(|set| &set.elements) {
            Some(Elements::V4(nets)) => each(nets, v4_networks),
            Some(Elements::V6(nets)) => each(nets, v6_networks),
            Some(Elements::Ports(ports)) => ports
                .iter()
                .map(|(first, last)| {
                    self.clone().at_port(if first == last {
                        first.to_string()
                    } else {
                        format!("{first}:{last}")
                    })
                })
                .collect(),
            Some(Elements::Uids(ids)) => ids.iter().map(|id| self.clone().of_user(*id)).collect(),
            Some(Elements::Gids(ids)) => ids
                .iter()
                .map(|id| self.clone().extended(format!("owner --gid-owner {id}")))
                .collect(),
            Some(Elements::Leases | Elements::Sources(_)) | None => Vec::new(),
        }
    }

    fn to(self, net: IpNet) -> Self {
        Self {
            destination: Some(net),
            ..self
        }
    }

    fn at_port(self, ports: String) -> Self {
        Self {
            is_tcp: true,
            ..self.extended(format!("tcp --dport {ports}"))
        }
    }

    fn of_user(self, uid: u32) -> Self {
        self.extended(format!("owner --uid-owner {uid}"))
    }

    fn extended(mut self, extension: impl Into<String>) -> Self {
        self.extensions.push(extension.into());
        self
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(net) = self.destination.filter(|net| net.prefix_len() > 0) {
            write!(f, "-d {net} ")?;
        }
        if self.is_out_loopback {
            f.write_str("-o lo ")?;
        }
        if self.is_tcp {
            f.write_str("-p tcp ")?;
        }
        self.extensions
            .iter()
            .try_for_each(|extension| write!(f, "-m {extension} "))
    }
}

fn v4_networks(first: u128, last: u128) -> Vec<IpNet> {
    let address = |number: u128| Ipv4Addr::from(number as u32);
    let subnets = Ipv4Subnets::new(address(first), address(last), 0);
    subnets.map(IpNet::V4).collect()
}

fn v6_networks(first: u128, last: u128) -> Vec<IpNet> {
    let subnets = Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0);
    subnets.map(IpNet::V6).collect()
}

#[cfg(test)]
mod tests {
    use outrigger_config::parse;

    use super::*;
    use crate::{host::Host, legacy::change::Tables};

    fn plan(settings: &str) -> Plan {
        let host = Host {
            ipv6_on_loopback: true,
            can_shorten_timeouts: true,
            can_outlive_owner: true,
            ..Host::default()
        };
        Plan::new(&parse(settings).unwrap(), &host, 1).unwrap()
    }

    fn script(settings: &str, family: Family) -> String {
        let tables = Tables::planned(&plan(settings), family).unwrap();
        tables.to_string()
    }

    #[test]
    fn the_defaults_capture_while_the_lease_is_fresh() {
        assert_eq!(
            script("", Family::V4),
            "\
*mangle
:OUTRIGGER_15001_BEAT - [0:0]
-A OUTRIGGER_15001_BEAT -m recent --set --name outrigger_15001_4 --mask 0.0.0.0 --rdest -j DROP
-I OUTPUT 1 -d 127.0.0.1/32 -o lo -p udp -m udp --dport 15001 -m owner --uid-owner 1337 -j OUTRIGGER_15001_BEAT
COMMIT
*nat
:OUTRIGGER_15001 - [0:0]
-A OUTRIGGER_15001 -d 192.0.2.3/32 -p tcp -m tcp --dport 47769 -j REDIRECT --to-ports 15001
-A OUTRIGGER_15001 -d 127.192.0.3/32 -p tcp -m tcp --dport 47769 -j REDIRECT --to-ports 15001
-A OUTRIGGER_15001 -m recent ! --rcheck --seconds 2 --name outrigger_15001_4 --mask 0.0.0.0 --rdest -j RETURN
-A OUTRIGGER_15001 -m owner --uid-owner 1337 -j RETURN
-A OUTRIGGER_15001 -o lo -j RETURN
-A OUTRIGGER_15001 -m addrtype --dst-type LOCAL -j RETURN
-A OUTRIGGER_15001 -p tcp -m tcp --dport 22 -j RETURN
-A OUTRIGGER_15001 -p tcp -j REDIRECT --to-ports 15001
-I OUTPUT 1 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j OUTRIGGER_15001
COMMIT
"
        );
    }

    #[test]
    fn a_set_becomes_a_rule_for_each_of_its_elements() {
        let settings = r#"
capture:
  proxy_mark: 7
  lease: 1500ms
  include: { cidrs: ["10.0.0.0/9", "fd00::/8"], ports: [80, 8000-8100] }
  exclude: { cidrs: ["10.9.0.0/31", "10.9.0.2/32"], uids: [5, 33], gids: [6], ports: [] }
"#;
        let v4 = script(settings, Family::V4);
        for rule in [
            "-m recent ! --rcheck --seconds 2 ",
            "-m owner --uid-owner 1337 -j RETURN",
            "-m mark --mark 0x7 -j RETURN",
            "-m owner --uid-owner 5 -j RETURN",
            "-m owner --uid-owner 33 -j RETURN",
            "-m owner --gid-owner 6 -j RETURN",
            "-d 10.9.0.0/31 -j RETURN",
            "-d 10.9.0.2/32 -j RETURN",
            "-d 10.0.0.0/9 -p tcp -m tcp --dport 80 -j REDIRECT",
            "-d 10.0.0.0/9 -p tcp -m tcp --dport 8000:8100 -j REDIRECT",
        ] {
            assert_eq!(v4.matches(rule).count(), 1, "{rule}: {v4}");
        }
        assert!(!v4.contains("fd00") && !v4.contains("fe80"), "{v4}");
        let v6 = script(settings, Family::V6);
        assert!(v6.contains("-d fe80::/10 -j RETURN"), "{v6}");
        assert!(!v6.contains("10."), "{v6}");
    }

    #[test]
    fn lists_that_multiply_beyond_reason_are_refused_before_they_are_written_out() {
        let nets: Vec<_> = (0..500)
            .map(|n| format!("'10.0.{}.{}/32'", n / 100, n % 100 * 2))
            .collect();
        let ports: Vec<_> = (1..2000).map(|n| (2 * n).to_string()).collect();
        let settings = format!(
            "capture: {{ include: {{ cidrs: [{}], ports: [{}] }} }}",
            nets.join(", "),
            ports.join(", ")
        );
        let refused = capture(&plan(&settings), Family::V4);
        assert!(matches!(
            refused,
            Err(IptablesError::TooManyRules { family: Family::V4 })
        ));
    }
}
