//! A netlink socket that speaks to nftables: transactions and dumps.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::NfTablesMessage, none::ControlMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force,
    set_socket_timeout,
};

use super::NftError;

/// The kernel answers at once or, holding the transaction lock for another program, soon.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Holds the largest transaction that [`super::encode`] makes, and what the kernel says to it.
const BUFFER: usize = 4 << 20;
/// A dump is repeated when a change of rules fell into it.
const DUMP_TRIES: usize = 10;
/// The subsystem a batch is for, in the header's resource id.
const NFTABLES: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;

/// One change within a transaction.
pub(super) struct Step {
    /// What it does, as in "adding chain output", for the error message.
    pub(super) doing: String,
    pub(super) message: NfTablesMessage,
    /// Beyond `NLM_F_REQUEST`.
    pub(super) flags: u16,
}

/// A table of ours belongs to the socket that made it, and dies with its last copy.
pub struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
}

impl NetlinkSocket {
    /// # Errors
    /// When the kernel has no netfilter netlink.
    pub fn open() -> Result<Self, NftError> {
        Self::bind().map_err(|e| NftError::new("opening a netlink socket", e))
    }

    fn bind() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        // Without the privilege the plain size stays, and the first request names the lack.
        let _ = set_socket_send_buffer_size_force(&socket, BUFFER);
        let _ = set_socket_recv_buffer_size_force(&socket, BUFFER);
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    pub(super) fn subscribe(&mut self, group: u32) -> io::Result<()> {
        self.socket.add_membership(group)
    }

    /// All of `steps` or none of them.
    pub(super) fn transact(&mut self, steps: Vec<Step>) -> Result<(), NftError> {
        self.transact_in(NetfilterProtoFamily::Inet, steps)
    }

    /// For tables that are not ours, and so of another family.
    pub(super) fn transact_in(
        &mut self,
        family: NetfilterProtoFamily,
        steps: Vec<Step>,
    ) -> Result<(), NftError> {
        let mut bytes = Vec::new();
        let control = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
        let begin = NetfilterMessage::new(control.clone(), ControlMessage::BatchBegin);
        let first = self.put(&mut bytes, begin, NLM_F_REQUEST);
        let last_step = steps.len() - 1;
        let mut doing = Vec::with_capacity(steps.len());
        for (index, step) in steps.into_iter().enumerate() {
            // One acknowledgement, of the last step, tells that all were committed.
            let ack = if index == last_step { NLM_F_ACK } else { 0 };
            self.put(
                &mut bytes,
                of(family, step.message),
                NLM_F_REQUEST | ack | step.flags,
            );
            doing.push(step.doing);
        }
        let last = self.sequence;
        let end = NetfilterMessage::new(control, ControlMessage::BatchEnd);
        self.put(&mut bytes, end, NLM_F_REQUEST);

        // An error of the batch itself, such as a lack of privilege, names its first message.
        let name = |sequence: u32| {
            let index = sequence.saturating_sub(first + 1) as usize;
            doing[index.min(last_step)].clone()
        };
        self.send(&bytes)
            .map_err(|e| NftError::new(name(first), e))?;
        loop {
            for message in self.receive().map_err(|e| NftError::new(name(last), e))? {
                let message = message.map_err(|e| NftError::malformed(&name(last), &e))?;
                let sequence = message.header.sequence_number;
                if !(first..=last + 1).contains(&sequence) {
                    continue;
                }
                if let NetlinkPayload::Error(error) = message.payload {
                    match error.code {
                        Some(_) => return Err(NftError::new(name(sequence), error.to_io())),
                        None if sequence == last => return Ok(()),
                        None => {}
                    }
                }
            }
        }
    }

    /// Every object that a `Get…` message names.
    pub(super) fn dump(
        &mut self,
        doing: &str,
        request: &NfTablesMessage,
    ) -> Result<Vec<NfTablesMessage>, NftError> {
        let found = self.dump_all(doing, &inet(request.clone()))?;
        Ok(found.into_iter().filter_map(of_nftables).collect())
    }

    /// Every object that a `Get…` message of any subsystem names.
    pub(crate) fn dump_all(
        &mut self,
        doing: &str,
        request: &NetfilterMessage,
    ) -> Result<Vec<NetfilterMessageInner>, NftError> {
        for _ in 0..DUMP_TRIES {
            if let Some(found) = self.ask(doing, request, NLM_F_DUMP)? {
                return Ok(found);
            }
        }
        Err(NftError::new(
            doing,
            io::Error::from_raw_os_error(libc::EBUSY),
        ))
    }

    /// Has one thing done that needs no transaction.
    pub(crate) fn tell(&mut self, doing: &str, order: &NetfilterMessage) -> Result<(), NftError> {
        self.ask(doing, order, NLM_F_ACK).map(drop)
    }

    /// The one object that a `Get…` message names.
    pub(super) fn find(
        &mut self,
        doing: &str,
        request: &NfTablesMessage,
    ) -> Result<Option<NfTablesMessage>, NftError> {
        match self.ask(doing, &inet(request.clone()), NLM_F_ACK) {
            Ok(found) => Ok(found
                .and_then(|mut found| found.pop())
                .and_then(of_nftables)),
            Err(error) if error.cause.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `None` when a change of rules fell into the dump.
    fn ask(
        &mut self,
        doing: &str,
        request: &NetfilterMessage,
        flags: u16,
    ) -> Result<Option<Vec<NetfilterMessageInner>>, NftError> {
        let mut bytes = Vec::new();
        let sequence = self.put(&mut bytes, request.clone(), NLM_F_REQUEST | flags);
        self.send(&bytes).map_err(|e| NftError::new(doing, e))?;
        let mut found = Vec::new();
        let mut consistent = true;
        loop {
            for message in self.receive().map_err(|e| NftError::new(doing, e))? {
                let message = message.map_err(|e| NftError::malformed(doing, &e))?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => found.push(object.inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(NftError::new(doing, error.to_io()));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        return Ok(consistent.then_some(found));
                    }
                    _ => {}
                }
            }
        }
    }

    fn put(&mut self, bytes: &mut Vec<u8>, inner: NetfilterMessage, flags: u16) -> u32 {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(inner));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes, 0).map(drop)
    }

    /// The messages of one datagram; foreign objects that this crate cannot decode are errors of
    /// their own.
    fn receive(
        &self,
    ) -> io::Result<
        impl Iterator<Item = Result<NetlinkMessage<NetfilterMessage>, netlink_packet_core::DecodeError>>
        + use<>,
    > {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = 0;
        Ok(std::iter::from_fn(move || {
            let length = u32::from_ne_bytes(bytes.get(rest..rest + 4)?.try_into().ok()?) as usize;
            let message = bytes.get(rest..)?;
            rest += length.max(16).next_multiple_of(4);
            Some(NetlinkMessage::deserialize(message))
        }))
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn of_nftables(object: NetfilterMessageInner) -> Option<NfTablesMessage> {
    match object {
        NetfilterMessageInner::NfTables(object) => Some(object),
        _ => None,
    }
}

fn inet(message: NfTablesMessage) -> NetfilterMessage {
    of(NetfilterProtoFamily::Inet, message)
}

fn of(family: NetfilterProtoFamily, message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}
