//! What a TLS ClientHello asks for: for the logs, and for routes.

use rustls::server::Acceptor;

/// What a client asks for in the clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// None if it is not sent, or cannot be parsed.
    pub server_name: Option<Box<str>>,
    /// The protocols that it offers (ALPN), but for those that are no text; looked at only where a
    /// route may ask.
    pub alpn: Box<[Box<str>]>,
}

/// What `bytes`, which begin with a ClientHello, ask for; none if more of it is to come.
pub(super) fn client_hello(mut bytes: &[u8], asks_alpn: bool) -> Option<ClientHello> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Some(ClientHello::default());
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let offered = hello.alpn().filter(|_| asks_alpn).into_iter().flatten();
                let text = offered.filter_map(|name| Some(std::str::from_utf8(name).ok()?.into()));
                return Some(ClientHello {
                    server_name: hello.server_name().map(Into::into),
                    alpn: text.collect(),
                });
            }
            Err(_) => return Some(ClientHello::default()),
        }
    }
    None
}
