//! Raw netfilter dumps: foreign rules hold expressions that no crate decodes, so bytes are kept.

use std::{io, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};

const NLMSG_HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, resource id.
const GENERIC_HEADER: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Answers come at once, or after another program's transaction.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A dump of many elements comes in datagrams of up to 32 KiB, which wait here.
const BUFFER: usize = 4 << 20;

pub(crate) struct Dumper {
    socket: Socket,
    sequence: u32,
    /// Whether no change fell into any dump so far.
    pub(super) is_consistent: bool,
}

impl Dumper {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        // Without the privilege the plain size stays, which costs only speed.
        let _ = set_socket_recv_buffer_size_force(&socket, BUFFER);
        Ok(Self {
            socket,
            sequence: 0,
            is_consistent: true,
        })
    }

    /// Calls `each` with the family and the attributes of every object.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        each: impl FnMut(u8, &[u8]),
    ) -> io::Result<()> {
        self.ask(kind, family, attributes, NLM_F_DUMP, each)
    }

    /// Like [`dump`](Self::dump), of one object.
    pub(crate) fn find(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        each: impl FnMut(u8, &[u8]),
    ) -> io::Result<()> {
        self.ask(kind, family, attributes, NLM_F_ACK, each)
    }

    fn ask(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        flags: u16,
        mut each: impl FnMut(u8, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let length = NLMSG_HEADER + GENERIC_HEADER + attributes.len();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend([family, 0, 0, 0]);
        message.extend(attributes);
        self.socket.send(&message, 0)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while let Some((header, body, next)) = split(rest) {
                rest = next;
                if header.sequence != self.sequence {
                    continue;
                }
                self.is_consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = body
                            .get(..4)
                            .map_or([0; 4], |b| b.try_into().expect("four bytes"));
                        return match i32::from_ne_bytes(code) {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    _ => {
                        if let Some(attributes) = body.get(GENERIC_HEADER..) {
                            each(body[0], attributes);
                        }
                    }
                }
            }
        }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message, its body, and what follows.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let head: &[u8; NLMSG_HEADER] = bytes.get(..NLMSG_HEADER)?.try_into().ok()?;
    let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let header = Header {
        kind: u16::from_ne_bytes([head[4], head[5]]),
        flags: u16::from_ne_bytes([head[6], head[7]]),
        sequence: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]),
    };
    let body = bytes.get(NLMSG_HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, body, next))
}
