//! What routes are decided on.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    index::{Name, PathPart, Probe},
    path::{self, split_query},
};

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

impl dyn Headers + '_ {
    /// The value of the header `name`; of several lines, all of them joined by commas.
    pub fn joined(&self, name: &str) -> Option<Vec<u8>> {
        let mut joined: Option<Vec<u8>> = None;
        self.each(name, &mut |value| match &mut joined {
            None => joined = Some(value.to_vec()),
            Some(joined) => {
                joined.push(b',');
                joined.extend_from_slice(value);
            }
        });
        joined
    }
}

impl Subject<'_> {
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

/// A subject in the form that is compared.
pub(super) struct View<'a> {
    /// A v4 address in v6 clothes is a v4 address.
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    pub(super) host: Option<Cow<'a, str>>,
    pub(super) sni: Option<Cow<'a, str>>,
    pub(super) alpn: &'a [Box<str>],
    pub(super) path: Option<Cow<'a, [u8]>>,
    pub(super) request: Option<HttpRequest<'a>>,
}

impl<'a> View<'a> {
    pub(super) fn of(subject: &Subject<'a>, asks_path: bool) -> Self {
        let request = subject.request;
        let path = request.filter(|_| asks_path).and_then(|r| r.path);
        Self {
            ip: subject.destination.ip().to_canonical(),
            port: subject.destination.port(),
            host: request.and_then(|r| r.host).map(normal_name),
            sni: subject.sni.map(normal_name),
            alpn: subject.alpn,
            path: path.map(|p| path::normal(split_query(p).0)),
            request,
        }
    }

    pub(super) fn probe(&self) -> Probe<'_> {
        Probe {
            host: self.host.as_deref().map(Name::Exact),
            sni: self.sni.as_deref().map(Name::Exact),
            path: self.path.as_deref().map(PathPart::Whole),
            headers: self.request.map(|r| r.headers),
            network: Some(self.ip.into()),
            port: Some(self.port),
        }
    }
}

/// In lower case, without the root's dot.
pub(super) fn normal_name(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}
