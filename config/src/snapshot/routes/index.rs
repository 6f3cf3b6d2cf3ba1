//! Routes, filed so that few of them have to be looked at.
//!
//! A route is filed once, under one thing that it asks for: of all of them the one that the fewest
//! other routes ask for too. A file that is still large is an index of its own, by the other things.
//! What cannot be looked up (expressions, ranges, negations) is filed apart and looked at each time.

use std::{collections::BTreeMap, hash::Hash};

use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;

use super::subject::Headers;
use crate::{Match, PathMatch};

/// Routes in one file that are as soon looked at as looked up.
const FEW: usize = 8;

/// Headers by whose value routes are filed: each costs a lookup a request.
const MAX_HEADERS: usize = 16;

/// Positions of routes, in the order of the routes.
#[derive(Debug)]
enum File {
    List(Vec<usize>),
    Index(Box<Index>),
}

/// Files by what is asked for.
type Files<K> = HashMap<K, File>;
type FilesByBytes = Files<Box<[u8]>>;

#[derive(Debug, Default)]
pub(super) struct Index {
    hosts: Names,
    snis: Names,
    paths: FilesByBytes,
    /// By length, shortest first.
    prefixes: Vec<(usize, FilesByBytes)>,
    /// By name, in lower case.
    headers: Vec<(Box<str>, FilesByBytes)>,
    /// By prefix length.
    networks: Vec<(u8, Files<IpNet>)>,
    ports: Files<u16>,
    others: Vec<usize>,
}

#[derive(Debug, Default)]
struct Names {
    exact: Files<Box<str>>,
    /// `*.internal` under `internal`.
    below: Files<Box<str>>,
}

/// What is looked up: a subject, or another route, for which every route is found that may hold for
/// all that it holds for.
pub(super) struct Probe<'a> {
    pub(super) host: Option<Name<'a>>,
    pub(super) sni: Option<Name<'a>>,
    pub(super) path: Option<PathPart<'a>>,
    pub(super) headers: Option<&'a dyn Headers>,
    pub(super) network: Option<IpNet>,
    pub(super) port: Option<u16>,
}

#[derive(Clone, Copy)]
pub(super) enum Name<'a> {
    Exact(&'a str),
    /// All names below this one.
    Below(&'a str),
}

#[derive(Clone, Copy)]
pub(super) enum PathPart<'a> {
    Whole(&'a [u8]),
    /// All paths that begin with this.
    Prefix(&'a [u8]),
}

/// What a route may be filed under, the most telling first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key<'m> {
    Host(&'m str),
    Path(&'m [u8]),
    Prefix(&'m [u8]),
    Header(&'m str, &'m [u8]),
    Sni(&'m str),
    Network(IpNet),
    Port(u16),
}

/// Of a key: what is no use within its file, where all routes have it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind<'m> {
    Host,
    Path,
    Header(&'m str),
    Sni,
    Network,
    Port,
}

impl<'m> Key<'m> {
    fn kind(self) -> Kind<'m> {
        match self {
            Self::Host(_) => Kind::Host,
            Self::Path(_) | Self::Prefix(_) => Kind::Path,
            Self::Header(name, _) => Kind::Header(name),
            Self::Sni(_) => Kind::Sni,
            Self::Network(_) => Kind::Network,
            Self::Port(_) => Kind::Port,
        }
    }

    fn all_of(matches: &'m Match) -> impl Iterator<Item = Self> {
        let name = |name: &'m Option<String>| name.as_deref().filter(|n| can_be_looked_up(n));
        let path = matches.path.as_ref().and_then(|path| match path {
            PathMatch::Exact(path) => Some(Self::Path(path.as_bytes())),
            PathMatch::Prefix(path) => Some(Self::Prefix(path.as_bytes())),
            PathMatch::SeparatedPrefix(path) => {
                let path = path.as_bytes();
                Some(Self::Prefix(path.strip_suffix(b"/").unwrap_or(path)))
            }
            PathMatch::Regex(_) => None,
        });
        let headers = matches.headers.iter().filter(|c| !c.invert);
        let headers = headers.filter_map(|c| {
            let exact = c.exact.as_ref()?;
            Some(Self::Header(&c.name, exact.as_bytes()))
        });
        let port = matches.port.filter(|p| p.first == p.last);
        name(&matches.host)
            .map(Self::Host)
            .into_iter()
            .chain(path)
            .chain(headers)
            .chain(name(&matches.sni).map(Self::Sni))
            .chain(matches.destination.map(|network| Self::Network(network.0)))
            .chain(port.map(|port| Self::Port(port.first)))
    }
}

/// Whether a pattern is a name, or all names below one.
fn can_be_looked_up(pattern: &str) -> bool {
    !pattern.strip_prefix("*.").unwrap_or(pattern).contains('*')
}

impl Index {
    /// Of routes by position, in their order and in their normal form.
    pub(super) fn of<'m>(routes: impl Iterator<Item = (usize, &'m Match)>) -> Self {
        Self::within(&routes.collect::<Vec<_>>(), &[])
    }

    /// Of routes that all have one key of each kind in `used`.
    fn within<'m>(routes: &[(usize, &'m Match)], used: &[Kind<'m>]) -> Self {
        let keys =
            |matches: &'m Match| Key::all_of(matches).filter(|key| !used.contains(&key.kind()));
        let mut counts: HashMap<Key<'_>, usize> = HashMap::new();
        for key in routes.iter().flat_map(|(_, matches)| keys(matches)) {
            *counts.entry(key).or_default() += 1;
        }
        let mut index = Self::default();
        // In the order of keys, so that the same routes always make the same index.
        let mut files: BTreeMap<Key<'_>, Vec<(usize, &'m Match)>> = BTreeMap::new();
        let mut header_names: Vec<&str> = Vec::new();
        for &(position, matches) in routes {
            let mut may_file = |key: &Key<'m>| match key {
                Key::Header(name, _) if !header_names.contains(name) => {
                    header_names.len() < MAX_HEADERS && {
                        header_names.push(name);
                        true
                    }
                }
                _ => true,
            };
            let rarest = keys(matches)
                .filter(|key| may_file(key))
                .min_by_key(|key| counts[key]);
            match rarest {
                Some(key) => files.entry(key).or_default().push((position, matches)),
                None => index.others.push(position),
            }
        }
        for (key, routes) in files {
            let mut used = used.to_vec();
            used.push(key.kind());
            index.file(key, File::of(&routes, &used));
        }
        index.prefixes.sort_unstable_by_key(|(length, _)| *length);
        index
    }

    fn file(&mut self, key: Key<'_>, file: File) {
        match key {
            Key::Host(pattern) => self.hosts.file(pattern, file),
            Key::Sni(pattern) => self.snis.file(pattern, file),
            Key::Path(path) => {
                self.paths.insert(path.into(), file);
            }
            Key::Prefix(path) => {
                under(&mut self.prefixes, path.len()).insert(path.into(), file);
            }
            Key::Header(name, value) => {
                under(&mut self.headers, name.into()).insert(value.into(), file);
            }
            Key::Network(network) => {
                under(&mut self.networks, network.prefix_len()).insert(network, file);
            }
            Key::Port(port) => {
                self.ports.insert(port, file);
            }
        }
    }

    /// Shows every file in which a route for what is looked up may be.
    pub(super) fn look_up(&self, probe: &Probe<'_>, show: &mut dyn FnMut(&[usize])) {
        let mut show_file = |file: Option<&File>| match file {
            Some(File::List(list)) => show(list),
            Some(File::Index(index)) => index.look_up(probe, show),
            None => {}
        };
        if let Some(host) = probe.host {
            self.hosts.look_up(host, &mut show_file);
        }
        if let Some(sni) = probe.sni {
            self.snis.look_up(sni, &mut show_file);
        }
        if let Some(path) = probe.path {
            let (PathPart::Whole(bytes) | PathPart::Prefix(bytes)) = path;
            if let PathPart::Whole(_) = path {
                show_file(self.paths.get(bytes));
            }
            for (length, files) in &self.prefixes {
                let Some(start) = bytes.get(..*length) else {
                    break;
                };
                show_file(files.get(start));
            }
        }
        if let Some(headers) = probe.headers {
            for (name, files) in &self.headers {
                show_file(headers.joined(name).and_then(|value| files.get(&*value)));
            }
        }
        if let Some(network) = probe.network {
            for (length, files) in &self.networks {
                let wider = IpNet::new(network.addr(), *length);
                let wider = wider.ok().filter(|_| *length <= network.prefix_len());
                show_file(wider.and_then(|wider| files.get(&wider.trunc())));
            }
        }
        if let Some(port) = probe.port {
            show_file(self.ports.get(&port));
        }
        show(&self.others);
    }
}

impl File {
    fn of<'m>(routes: &[(usize, &'m Match)], used: &[Kind<'m>]) -> Self {
        if routes.len() > FEW {
            let index = Index::within(routes, used);
            if index.others.len() < routes.len() {
                return Self::Index(Box::new(index));
            }
        }
        Self::List(routes.iter().map(|(position, _)| *position).collect())
    }
}

impl Names {
    fn file(&mut self, pattern: &str, file: File) {
        match pattern.strip_prefix("*.") {
            Some(suffix) => self.below.insert(suffix.into(), file),
            None => self.exact.insert(pattern.into(), file),
        };
    }

    fn look_up(&self, name: Name<'_>, show: &mut impl FnMut(Option<&File>)) {
        let (Name::Exact(mut rest) | Name::Below(mut rest)) = name;
        match name {
            Name::Exact(name) => show(self.exact.get(name)),
            Name::Below(name) => show(self.below.get(name)),
        }
        if self.below.is_empty() {
            return;
        }
        while let Some((_, above)) = rest.split_once('.') {
            show(self.below.get(above));
            rest = above;
        }
    }
}

/// The map under `key`, of a few.
fn under<K: PartialEq, V: Eq + Hash>(maps: &mut Vec<(K, Files<V>)>, key: K) -> &mut Files<V> {
    let at = maps.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
        maps.push((key, HashMap::new()));
        maps.len() - 1
    });
    &mut maps[at].1
}
