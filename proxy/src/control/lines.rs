//! Lines of JSON over a UNIX socket, with the descriptors that came beside them.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use outrigger_config::control::MAX_LINE;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::UnixStream,
};

/// A request carries one; a second is kept only to be refused.
const MAX_DESCRIPTORS: usize = 2;

#[derive(Debug)]
pub(super) struct Lines {
    stream: UnixStream,
    pending: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// One line, without its end, and what came with it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) text: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Lines {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// The next line; `None` at the end. Safe to cancel.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|&b| b == b'\n') {
                let rest = self.pending.split_off(searched + end + 1);
                let mut text = std::mem::replace(&mut self.pending, rest);
                text.pop();
                return Ok(Some(Line {
                    text,
                    descriptors: std::mem::take(&mut self.descriptors),
                }));
            }
            searched = self.pending.len();
            if searched > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the line is too long",
                ));
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    pub(super) async fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.stream.write_all(line).await
    }

    async fn fill(&mut self) -> io::Result<usize> {
        let Self {
            stream,
            pending,
            descriptors,
        } = self;
        let (length, chunk) = stream
            .async_io(Interest::READABLE, || receive(&*stream, descriptors))
            .await?;
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too many descriptors",
            ));
        }
        pending.extend_from_slice(&chunk[..length]);
        Ok(length)
    }
}

const CHUNK: usize = 4096;

fn receive(
    stream: &UnixStream,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<(usize, [u8; CHUNK])> {
    let mut chunk = [0; CHUNK];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut chunk)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    Ok((message.bytes, chunk))
}
