//! The server name of a TLS ClientHello: for the logs, and for routes that ask for it.

use rustls::server::Acceptor;

/// What the bytes of a ClientHello tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerName {
    /// More of it is to come.
    Incomplete,
    /// None if it is not sent, or cannot be parsed.
    Known(Option<Box<str>>),
}

impl ServerName {
    pub(super) fn known(self) -> Option<Box<str>> {
        match self {
            Self::Incomplete => None,
            Self::Known(name) => name,
        }
    }
}

/// The server name in `bytes`, which begin with a ClientHello.
pub(super) fn server_name(mut bytes: &[u8]) -> ServerName {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return ServerName::Known(None);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                return ServerName::Known(accepted.client_hello().server_name().map(Into::into));
            }
            Err(_) => return ServerName::Known(None),
        }
    }
    ServerName::Incomplete
}
