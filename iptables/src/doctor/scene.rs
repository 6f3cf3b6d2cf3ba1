//! What the kinds of findings look at: the redirects, who takes their connections, and a connection
//! that each would catch.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
};

use super::redirects::{self, Redirect};
use crate::{
    LiveSurroundings,
    listeners::{self, Listener},
    ruleset::{Base, Expression, Ruleset, TableFamily, XtMatch},
    verdict::{Connection, judge},
};

/// The listeners on a port; `Err`: why the kernel could not be asked.
type Asked = Result<Rc<[Listener]>, String>;

pub(super) struct Scene<'r> {
    pub(super) ruleset: &'r Ruleset,
    pub(super) redirects: Vec<Redirect>,
    pub(super) surroundings: LiveSurroundings,
    on_ports: RefCell<HashMap<u16, Asked>>,
}

impl<'r> Scene<'r> {
    pub(super) fn of(ruleset: &'r Ruleset) -> Self {
        Self {
            ruleset,
            redirects: redirects::to_this_host(ruleset),
            surroundings: LiveSurroundings::default(),
            on_ports: RefCell::default(),
        }
    }

    /// Who takes the connections of `redirect`; `Err`: the kernel could not be asked.
    pub(super) fn listeners(&self, redirect: &Redirect) -> Result<Vec<Listener>, String> {
        let Some(port) = redirect.port else {
            return Ok(Vec::new());
        };
        let takes = |listener: &&Listener| match redirect.address {
            None => listener.takes_redirected(),
            Some(ip) => listener.address.ip() == ip || listener.address.ip().is_unspecified(),
        };
        let mut known = self.on_ports.borrow_mut();
        let found = known.entry(port).or_insert_with(|| {
            let found = listeners::on_port(port).map_err(|error| error.to_string())?;
            Ok(found.into_iter().map(Listener::name_owners).collect())
        });
        found
            .clone()
            .map(|found| found.iter().filter(takes).cloned().collect())
    }

    /// A connection of an ordinary user that `redirect` catches, if one of the likely ones is.
    pub(super) fn sample(&self, redirect: &Redirect) -> Option<Connection> {
        let (table, _, rule) = self.ruleset.rule(redirect.at);
        let is_v6 = table.family == TableFamily::Ip6;
        let (mut ips, mut ports) = likely(&rule.expressions, is_v6);
        ips.push(if is_v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into()
        } else {
            Ipv4Addr::new(198, 51, 100, 7).into()
        });
        ports.extend([80, 443]);
        let candidates = ips
            .iter()
            .flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
        let mut connections = candidates.map(|to| connection(to, NOBODY));
        connections.find(|connection| self.is_caught(connection, redirect))
    }

    /// For certain.
    pub(super) fn is_caught(&self, connection: &Connection, redirect: &Redirect) -> bool {
        let verdict = judge(self.ruleset, connection, &self.surroundings);
        verdict.certain().is_some()
            && verdict
                .ways
                .iter()
                .all(|way| way.redirected_by == Some(redirect.at))
    }
}

/// A user that no rule is about.
const NOBODY: u32 = 54_321;

pub(super) fn connection(destination: SocketAddr, uid: u32) -> Connection {
    Connection {
        destination,
        source: None,
        source_port: None,
        uid,
        gid: uid,
        groups: Vec::new(),
        mark: 0,
        cgroup: None,
    }
}

/// Addresses and ports that the rule speaks of.
fn likely(expressions: &[Expression], is_v6: bool) -> (Vec<IpAddr>, Vec<u16>) {
    let (mut ips, mut ports) = (Vec::new(), Vec::new());
    let mut loaded = None;
    for expression in expressions {
        match expression {
            Expression::Ip(of) => ips.push(of.destination.0),
            Expression::XtMatch(XtMatch::Tcp { destination, .. }) => ports.push(destination.low),
            Expression::XtMatch(XtMatch::MultiPort { ranges, .. }) => {
                ports.extend(ranges.iter().map(|range| range.0));
            }
            Expression::Payload { base, offset, .. } => loaded = Some((*base, *offset)),
            Expression::Cmp { value, .. } => match loaded {
                Some((Base::Transport, 2)) => {
                    ports.extend(value.first_chunk().map(|b| u16::from_be_bytes(*b)));
                }
                Some((Base::Network, 16)) if !is_v6 => {
                    // A prefix is compared by its whole bytes only.
                    let mut octets = [0; 4];
                    let length = value.len().min(4);
                    octets[..length].copy_from_slice(&value[..length]);
                    ips.push(octets.into());
                }
                Some((Base::Network, 24)) if is_v6 => {
                    let mut octets = [0; 16];
                    let length = value.len().min(16);
                    octets[..length].copy_from_slice(&value[..length]);
                    ips.push(octets.into());
                }
                _ => {}
            },
            _ => {}
        }
    }
    // A network's own address is followed by its first host.
    let next = |ip: &IpAddr| match *ip {
        IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from(u32::from(ip).saturating_add(1))),
        IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from(u128::from(ip).saturating_add(1))),
    };
    ips.retain(|ip| !ip.is_unspecified());
    let hosts: Vec<IpAddr> = ips.iter().map(next).collect();
    ips.splice(..0, hosts);
    (ips, ports)
}
