//! The server name of a TLS ClientHello, for the logs only: nothing waits for it.

use rustls::server::Acceptor;

/// The server name in `bytes`; none if it is not all there, is not sent, or cannot be parsed.
pub(super) fn server_name(mut bytes: &[u8]) -> Option<Box<str>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return accepted.client_hello().server_name().map(Into::into);
        }
    }
    None
}
