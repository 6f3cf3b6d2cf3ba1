//! Netlink messages and attributes, read without trust: whatever does not fit ends the reading.

use std::{io, os::fd::BorrowedFd};

use rustix::net::{RecvFlags, SocketAddrAny, netlink::SocketAddrNetlink, recvfrom};

/// A message of the netfilter subsystems, without its two headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// Subsystem in the high byte, message in the low.
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) family: u8,
    pub(super) attributes: &'a [u8],
}

const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// Reads a datagram into `buffer`; `None`: it is not from the kernel, and nobody else is heard.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let (length, _, from) = recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT)?;
    let kernel = from.is_some_and(|from: SocketAddrAny| {
        SocketAddrNetlink::try_from(from).is_ok_and(|from| from.pid() == 0)
    });
    Ok(kernel.then_some(length))
}

pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.first_chunk().copied()?) as usize;
        let message = bytes.get(..length)?;
        let body = message.get(HEADER + NETFILTER_HEADER..)?;
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind,
            flags: u16::from_ne_bytes([message[6], message[7]]),
            family: message[HEADER],
            attributes: body,
        })
    })
}

/// Types without the two flag bits, and values.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let [a, b, c, d] = bytes.first_chunk().copied()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE, value))
    })
}

pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(of, _)| *of == kind)
        .map(|(_, value)| value)
}

pub(super) fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(bytes, kind)?.try_into().ok()?))
}

/// A name of the kernel's, which others chose: fit for a log line and for a terminal.
pub(super) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let bytes = attribute(bytes, kind)?;
    let bytes = bytes.split(|&byte| byte == 0).next()?;
    let text = String::from_utf8_lossy(bytes);
    Some(text.chars().filter(|c| !c.is_control()).take(128).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes) {
                attributes(message.attributes).for_each(drop);
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len());
            prop_assert!(messages(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn a_length_beyond_the_end_ends_the_reading() {
        assert_eq!(attributes(&[9, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 5]).count(), 0);
        let mut message = [0; 20];
        message[0] = 21;
        assert_eq!(messages(&message).count(), 0);
    }
}
