//! One request on its way upstream, and then an eye on the client until it is answered.

use std::{convert::Infallible, future::pending, mem, net::Shutdown};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::{
    body::Body,
    io::{read, write_some},
    progress::Progress,
};
use crate::{
    buffer::Buffer,
    forward::splice::{self, splice_exact},
    worker::Worker,
};

/// A body with this much to come by known length is spliced: measured cheaper from there on.
pub(super) const SPLICE_FROM: u64 = 64 * 1024;

pub(super) struct Upload<'a> {
    pub(super) worker: &'a Worker,
    pub(super) client: &'a TcpStream,
    pub(super) upstream: &'a TcpStream,
    /// Begins with the request and keeps it, as far as it fits, so that it can be sent again.
    pub(super) input: &'a mut Buffer,
    /// What of a body no longer fits the input goes through here.
    pub(super) overflow: &'a mut Buffer,
    pub(super) body: Body,
    /// Bytes of the request that are worth keeping in the input, beyond what fits it anyway.
    pub(super) keeps: usize,
    /// What is in the input has been sent already.
    pub(super) is_sent: bool,
    pub(super) progress: &'a Progress,
}

/// Why there is no more to do for a request before its answer is complete.
#[derive(Debug)]
pub(super) enum UploadEnd {
    /// The client closed its side in an orderly way; the upstream has been told.
    ClientClosed,
    ClientLost,
    /// The upstream takes no more; it may have answered nevertheless.
    Refused,
    /// The body is not what it should be.
    Malformed(&'static str),
}

impl From<&'static str> for UploadEnd {
    fn from(how: &'static str) -> Self {
        Self::Malformed(how)
    }
}

impl Upload<'_> {
    pub(super) async fn run(mut self) -> UploadEnd {
        let Err(end) = self.send().await;
        end
    }

    async fn send(&mut self) -> Result<Infallible, UploadEnd> {
        self.note_received();
        if self.is_sent {
            self.progress.add_written(self.progress.in_input.get());
        } else {
            self.write_input(0).await?;
        }
        while !self.body.is_done() && self.has_space() {
            self.receive().await?;
            let start = self.progress.in_input.get();
            let taken = self.body.take(&self.input.filled()[start..])?;
            self.progress.in_input.set(start + taken);
            self.note_received();
            self.write_input(start).await?;
        }
        while !self.body.is_done() {
            self.progress.has_streamed.set(true);
            match &mut self.body {
                Body::Length { left } if *left >= SPLICE_FROM && self.overflow.is_empty() => {
                    let left = mem::take(left);
                    // Large while under way; a connection that never splices must not pay for it.
                    Box::pin(self.splice(left)).await?;
                }
                _ => self.stream().await?,
            }
        }
        self.note_received();
        self.progress.is_request_complete.set(true);
        loop {
            // What comes now belongs to the next request, or is the client's end.
            self.receive().await?;
        }
    }

    /// Whether more of the request can stay in the input, which grows to what is worth keeping.
    fn has_space(&mut self) -> bool {
        if self.input.space().is_empty() && self.input.len() < self.keeps {
            let doubled = self.input.capacity() * 2;
            self.input.grow(doubled.min(self.keeps));
        }
        !self.input.space().is_empty()
    }

    fn note_received(&self) {
        if self.body.is_done() {
            self.progress.is_request_received.set(true);
        }
    }

    /// Moves all that is left of the body, inside the kernel.
    async fn splice(&mut self, left: u64) -> Result<(), UploadEnd> {
        self.worker.buffers.give(mem::take(self.overflow));
        let written = &self.progress.written;
        match splice_exact(self.worker, self.client, self.upstream, left, written).await {
            // What follows must not be taken for a part of the input's request.
            splice::End::Complete => *self.overflow = self.worker.buffers.take(),
            splice::End::SourceClosed => return Err(self.client_closed()),
            splice::End::SourceFailed(_) => return Err(UploadEnd::ClientLost),
            splice::End::SinkFailed(_) => return Err(UploadEnd::Refused),
        }
        Ok(())
    }

    /// Moves on some of a body that does not fit the input.
    async fn stream(&mut self) -> Result<(), UploadEnd> {
        if self.overflow.capacity() == 0 {
            *self.overflow = self.worker.buffers.take();
        }
        self.receive().await?;
        let mut taken = self.body.take(self.overflow.filled())?;
        while taken > 0 {
            let written = write_some(self.upstream, &self.overflow.filled()[..taken]).await;
            let written = written.map_err(|_| UploadEnd::Refused)?;
            self.progress.add_written(written);
            self.overflow.consume(written);
            taken -= written;
        }
        Ok(())
    }

    /// Writes what of the request is in the input, from `start` on.
    async fn write_input(&self, mut start: usize) -> Result<(), UploadEnd> {
        let end = self.progress.in_input.get();
        while start < end {
            let written = write_some(self.upstream, &self.input.filled()[start..end]).await;
            let written = written.map_err(|_| UploadEnd::Refused)?;
            self.progress.add_written(written);
            start += written;
        }
        Ok(())
    }

    /// Reads more from the client; waits for ever when there is no space.
    async fn receive(&mut self) -> Result<(), UploadEnd> {
        let buffer = if self.overflow.capacity() > 0 {
            &mut *self.overflow
        } else {
            &mut *self.input
        };
        if buffer.space().is_empty() {
            return pending().await;
        }
        match read(self.client, buffer).await {
            Ok(0) => Err(self.client_closed()),
            Ok(_) => Ok(()),
            Err(_) => Err(UploadEnd::ClientLost),
        }
    }

    fn client_closed(&self) -> UploadEnd {
        self.progress.has_client_closed.set(true);
        // A socket that is gone already needs no end.
        let _ = SockRef::from(self.upstream).shutdown(Shutdown::Write);
        UploadEnd::ClientClosed
    }
}
