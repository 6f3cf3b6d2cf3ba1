//! The service manager's store of descriptors (`FileDescriptorStoreMax=` of a systemd unit). What is put there
//! outlives the process and comes back by name at the next start: the listeners with what is queued at
//! them, and the anchor, without which the queued connections would lose their translation meanwhile.

use std::{
    env,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{control::is_netfilter_socket, supervised::MAX_DESCRIPTORS, sys};

/// The name of the listeners there. An anchor has that of its table.
pub const LISTENER: &str = "outrigger-listener";

/// What a service manager has passed to this process (LISTEN_FDS).
#[derive(Debug, Default)]
pub struct Passed {
    /// Listeners that the manager has bound itself (socket activation).
    pub activated: Vec<OwnedFd>,
    /// Listeners of an earlier process of this service.
    pub stored: Vec<OwnedFd>,
    /// Its anchors, with the names of their tables.
    pub anchors: Vec<(String, OwnedFd)>,
}

impl Passed {
    /// Takes them over, once. To be called before any other thread is there.
    ///
    /// # Errors
    /// When the variables, or the descriptors that they speak of, are not what they should be.
    pub fn take() -> io::Result<Self> {
        let mut passed = Self::default();
        for (descriptor, name) in sys::take_inherited()? {
            if name == LISTENER {
                passed.stored.push(descriptor);
            } else if is_netfilter_socket(&descriptor) {
                passed.anchors.push((name, descriptor));
            } else {
                passed.activated.push(descriptor);
            }
        }
        Ok(passed)
    }

    /// The same where something of ours has been stored; else nothing is touched, since it may be for a
    /// program that this one starts.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_stored() -> io::Result<Self> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        if names.split(':').any(|name| name == LISTENER) {
            Self::take()
        } else {
            Ok(Self::default())
        }
    }

    /// The stored listeners, if they are where `wanted` says (in `any_port`, wherever their port is); others
    /// are given up.
    pub fn stored_at(&mut self, wanted: &[SocketAddr], any_port: bool) -> Vec<TcpListener> {
        let stored = std::mem::take(&mut self.stored).into_iter();
        let stored: Vec<_> = stored.map(TcpListener::from).collect();
        if !stored.is_empty() && !are_at(&stored, wanted, any_port) {
            tracing::warn!("the stored listeners are not where this process is to listen");
            forget(LISTENER);
            return Vec::new();
        }
        stored
    }
}

/// Puts `descriptors` into the store, where there is one; those that are there already are not doubled. A manager
/// without room drops them.
pub fn put(name: &str, descriptors: &[BorrowedFd<'_>]) {
    for some in descriptors.chunks(MAX_DESCRIPTORS) {
        // Not to be dropped by the manager because something has happened to one.
        let state = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
        tell(&state, some);
    }
}

/// Has the manager close its copies.
pub fn forget(name: &str) {
    tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]);
}

fn tell(state: &str, descriptors: &[BorrowedFd<'_>]) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = || -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let state = [IoSlice::new(state.as_bytes())];
        sendmsg(&socket, &state, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    };
    if let Err(error) = told() {
        tracing::warn!(%error, "the service manager's store of descriptors (NOTIFY_SOCKET) cannot be reached");
    }
}

/// IPv6 may be missing where this machine has none.
fn are_at(listeners: &[TcpListener], wanted: &[SocketAddr], any_port: bool) -> bool {
    let found: Option<Vec<_>> = listeners.iter().map(|l| l.local_addr().ok()).collect();
    let Some(found) = found else { return false };
    let port = found[0].port();
    let wanted: Vec<_> = wanted
        .iter()
        .map(|&address| {
            if any_port {
                (address.ip(), port).into()
            } else {
                address
            }
        })
        .collect();
    let has_ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    found.iter().all(|address| wanted.contains(address))
        && wanted
            .iter()
            .all(|address| found.contains(address) || (address.is_ipv6() && !has_ipv6))
}

/// For the store.
pub fn borrowed<T: AsFd>(sockets: &[T]) -> Vec<BorrowedFd<'_>> {
    sockets.iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_listeners_are_taken_where_they_are_wanted_only() {
        let listeners = ["127.0.0.1:0"; 2].map(|at| TcpListener::bind(at).expect("bound"));
        let [first, second] = listeners.each_ref().map(|l| l.local_addr().expect("bound"));
        assert!(are_at(&listeners, &[first, second], false));
        assert!(!are_at(&listeners, &[first], false), "one more");
        assert!(
            !are_at(&listeners[..1], &[first, second], false),
            "one less"
        );
        let moved: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        assert!(!are_at(&listeners[..1], &[moved], false));
        assert!(are_at(&listeners[..1], &[moved], true));
    }
}
