//! Addresses that must not be mistaken for one another, each a type of its own.

use std::{fmt, net::SocketAddr};

/// The application's end of a captured connection, as the proxy sees it. Its port may differ from
/// the one the application bound: the redirect may have had to pick another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// The address that the application dialled, as the kernel remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// An address that this process listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerAddr(pub SocketAddr);

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ListenerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
