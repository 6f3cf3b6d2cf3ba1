//! Which route holds for a connection or request.
//!
//! The first route that holds decides. So that ten thousand of them cost what ten do, each is filed
//! once, under the most telling thing that it asks for; a lookup sees only the files that the
//! subject can be in, and takes the first route of all of them.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{Cluster, Match, ORIGINAL_DESTINATION, Route};

/// What is known of a connection or request.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The address that was dialled.
    pub destination: SocketAddr,
    /// Of TLS: the name asked for.
    pub sni: Option<&'a str>,
    /// Of TLS: the protocols offered (ALPN).
    pub alpn: &'a [Box<str>],
    pub request: Option<HttpRequest<'a>>,
}

/// One view of requests, whatever they came in.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// The host named, without its port.
    pub host: Option<&'a str>,
    pub method: &'a str,
    /// Path and query as they were sent; none where a request has none (CONNECT).
    pub path: Option<&'a [u8]>,
    pub headers: &'a dyn Headers,
}

/// The header lines of a request.
pub trait Headers: fmt::Debug {
    /// Shows each value of the header `name`, in whatever case either is written.
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]));
}

/// A request of which no header is known.
#[derive(Clone, Copy, Debug)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn each(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
}

impl<'a> Subject<'a> {
    /// Of what nothing is known but its destination.
    pub fn at(destination: SocketAddr) -> Self {
        Self {
            destination,
            sni: None,
            alpn: &[],
            request: None,
        }
    }
}

/// One route, ready for use. It is all that a request keeps of a snapshot.
#[derive(Debug, PartialEq)]
pub struct Decision {
    /// Which of the file's routes it is, from 0.
    pub index: usize,
    pub name: Arc<str>,
    /// As written, names in lower case: every policy that needs no compiling is read from here.
    pub settings: Route,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Cluster(Arc<Cluster>),
    OriginalDestination,
}

/// All routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Decision>>,
    hosts: Names,
    snis: Names,
    /// By prefix length, longest first, for each network.
    networks: Vec<(u8, HashMap<IpNet, Vec<usize>>)>,
    ports: HashMap<u16, Vec<usize>>,
    /// Ranges of ports, and what holds for everything.
    others: Vec<usize>,
}

/// Routes by name; lists are in the order of the file.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, Vec<usize>>,
    /// `*.internal` under `internal`.
    below: HashMap<Box<str>, Vec<usize>>,
}

impl RouteTable {
    /// A route whose cluster is not in `clusters` is left out; a checked file has none.
    pub(super) fn compile(routes: Vec<Route>, clusters: &HashMap<Arc<str>, Arc<Cluster>>) -> Self {
        let mut table = Self::default();
        for (index, mut route) in routes.into_iter().enumerate() {
            let target = match clusters.get(route.cluster.as_str()) {
                Some(cluster) => Target::Cluster(cluster.clone()),
                None if route.cluster == ORIGINAL_DESTINATION => Target::OriginalDestination,
                None => continue,
            };
            let matches = &mut route.matches;
            for name in [&mut matches.host, &mut matches.sni].into_iter().flatten() {
                *name = normal(name).into_owned();
            }
            let is_last = *matches == Match::default();
            table.file(matches);
            let name = match &route.name {
                Some(name) => name.as_str().into(),
                None => format!("route-{}", index + 1).into(),
            };
            table.routes.push(Arc::new(Decision {
                index,
                name,
                target,
                settings: route,
            }));
            // Nothing after it is ever reached.
            if is_last {
                break;
            }
        }
        table
            .networks
            .sort_unstable_by_key(|(length, _)| std::cmp::Reverse(*length));
        table
    }

    /// The route that holds for `subject`; none means where it was dialled.
    pub fn decide(&self, subject: &Subject<'_>) -> Option<&Arc<Decision>> {
        self.routes.get(self.position(subject)?)
    }

    /// The same, as its place in the order of [`Self::iter`].
    pub fn position(&self, subject: &Subject<'_>) -> Option<usize> {
        let host = subject.request.and_then(|r| r.host).map(normal);
        let sni = subject.sni.map(normal);
        let to = subject.destination;
        let mut first = self.routes.len();
        let mut consider = |filed: Option<&Vec<usize>>| {
            for &position in filed.into_iter().flatten().take_while(|p| **p < first) {
                if holds(
                    &self.routes[position].settings.matches,
                    to,
                    host.as_deref(),
                    sni.as_deref(),
                ) {
                    first = position;
                    return;
                }
            }
        };
        if let Some(host) = &host {
            self.hosts.each(host, &mut consider);
        }
        if let Some(sni) = &sni {
            self.snis.each(sni, &mut consider);
        }
        let ip = to.ip().to_canonical();
        for (length, networks) in &self.networks {
            consider(
                IpNet::new(ip, *length)
                    .ok()
                    .and_then(|net| networks.get(&net.trunc())),
            );
        }
        consider(self.ports.get(&to.port()));
        consider(Some(&self.others));
        (first < self.routes.len()).then_some(first)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Decision>> {
        self.routes.iter()
    }

    fn file(&mut self, matches: &Match) {
        let position = self.routes.len();
        let file = match matches {
            Match {
                host: Some(host), ..
            } => self.hosts.file(host),
            Match { sni: Some(sni), .. } => self.snis.file(sni),
            Match {
                destination: Some(network),
                ..
            } => {
                let length = network.0.prefix_len();
                let at = self
                    .networks
                    .iter()
                    .position(|(l, _)| *l == length)
                    .unwrap_or_else(|| {
                        self.networks.push((length, HashMap::new()));
                        self.networks.len() - 1
                    });
                self.networks[at].1.entry(network.0).or_default()
            }
            Match {
                port: Some(port), ..
            } if port.first == port.last => self.ports.entry(port.first).or_default(),
            _ => &mut self.others,
        };
        file.push(position);
    }
}

impl Names {
    fn file(&mut self, pattern: &str) -> &mut Vec<usize> {
        match pattern.strip_prefix("*.") {
            Some(suffix) => self.below.entry(suffix.into()).or_default(),
            None => self.exact.entry(pattern.into()).or_default(),
        }
    }

    fn each<'s>(&'s self, name: &str, consider: &mut impl FnMut(Option<&'s Vec<usize>>)) {
        consider(self.exact.get(name));
        if self.below.is_empty() {
            return;
        }
        let mut rest = name;
        while let Some((_, above)) = rest.split_once('.') {
            consider(self.below.get(above));
            rest = above;
        }
    }
}

fn holds(matches: &Match, to: SocketAddr, host: Option<&str>, sni: Option<&str>) -> bool {
    let Match {
        destination,
        port,
        host: host_wanted,
        sni: sni_wanted,
    } = matches;
    destination.is_none_or(|network| contains(network.0, to.ip()))
        && port.is_none_or(|port| port.contains(to.port()))
        && host_wanted
            .as_ref()
            .is_none_or(|wanted| host.is_some_and(|host| is_named(wanted, host)))
        && sni_wanted
            .as_ref()
            .is_none_or(|wanted| sni.is_some_and(|sni| is_named(wanted, sni)))
}

/// A v4 address in v6 clothes is a v4 address.
fn contains(network: IpNet, ip: IpAddr) -> bool {
    network.contains(&ip.to_canonical())
}

fn is_named(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(suffix) => name
            .strip_suffix(suffix)
            .is_some_and(|label| label.len() > 1 && label.ends_with('.')),
        None => name == pattern,
    }
}

/// In lower case, without the root's dot.
fn normal(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests;
