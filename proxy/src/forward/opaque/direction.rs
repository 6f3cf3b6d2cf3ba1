//! One direction of a tunnel: takes what its source has received and gives it to its sink, through
//! a buffer, or through a pipe once the source has shown that it sends in bulk.

use std::{
    cell::Cell,
    io, mem,
    net::Shutdown,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::{
    buffer::{self, Buffer},
    forward::splice::LentPipe,
    worker::Worker,
};

/// Bytes in full reads, one after the other, after which a direction takes to `splice`: a short
/// answer never pays for a pipe, and a long one has lost little.
const SPLICE_AFTER: usize = 128 * 1024;

/// Bytes moved before other connections of the worker get their turn: about 100 us.
const TURN: u64 = 1024 * 1024;

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its source closed, everything was delivered, and its sink was told.
    Closed,
    /// Its source was reset or vanished.
    SourceLost,
    /// Its sink takes no more.
    SinkLost,
}

#[derive(Debug)]
pub(super) struct Direction<'a> {
    worker: &'a Worker,
    from: &'a TcpStream,
    to: &'a TcpStream,
    /// Bytes that the sink has taken.
    moved: &'a Cell<u64>,
    /// Without an allocation while there is nothing to hold.
    held: Buffer,
    pipe: Option<LentPipe<'a>>,
    /// Bytes taken in full reads, one after the other.
    bulk: usize,
    /// The source has closed; to be passed on once all is delivered.
    source_closed: bool,
    /// The source was seen to be reset by a write to it. The kernel tells that once, and from then
    /// on calls it the end of the stream, which must not be passed on as an orderly close.
    source_reset: bool,
    /// An error of the source has been told and need not be waited for again.
    source_error_seen: bool,
    is_reading: bool,
    end: Option<End>,
}

impl<'a> Direction<'a> {
    /// `first` goes ahead of what the source sends.
    pub(super) fn new(
        worker: &'a Worker,
        from: &'a TcpStream,
        to: &'a TcpStream,
        first: Buffer,
        moved: &'a Cell<u64>,
    ) -> Self {
        Self {
            worker,
            from,
            to,
            moved,
            held: first,
            pipe: None,
            bulk: 0,
            source_closed: false,
            source_reset: false,
            source_error_seen: false,
            is_reading: false,
            end: None,
        }
    }

    pub(super) fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether it would not notice that its source was reset: its sink is slow, or it has ended.
    pub(super) fn is_deaf(&self) -> bool {
        !self.is_reading && !self.source_error_seen
    }

    /// Moves what can be moved now, until it has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, opposite: &mut Self) {
        if self.end.is_some() {
            return;
        }
        let Poll::Ready(end) = self.poll_end(cx) else {
            return;
        };
        self.is_reading = false;
        self.rest();
        self.end = Some(match end {
            Ok(()) => End::Closed,
            Err(Lost::Source) => End::SourceLost,
            Err(Lost::Sink(error)) => {
                opposite.source_reset |= !is_after_close(&error);
                End::SinkLost
            }
        });
    }

    /// Takes note that the source, which is not being read, reports an error.
    pub(super) fn source_failed(&mut self, opposite: &mut Self) {
        self.source_error_seen = true;
        let error = self.from.take_error();
        let is_after_close = error.is_ok_and(|e| e.is_some_and(|e| is_after_close(&e)));
        if is_after_close || self.end == Some(End::Closed) {
            // All that it said can still be read.
            opposite.end.get_or_insert(End::SinkLost);
        } else {
            self.end = Some(End::SourceLost);
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        self.is_reading = false;
        let turn_ends = self.moved.get() + TURN;
        loop {
            ready!(self.poll_deliver(cx)).map_err(Lost::Sink)?;
            if self.source_closed {
                return Poll::Ready(self.pass_close_on());
            }
            if self.moved.get() >= turn_ends {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_take(cx)).map_err(|_| Lost::Source)?;
        }
    }

    /// Gives the sink all that is held.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let given = match &mut self.pipe {
                Some(pipe) if !pipe.is_empty() => {
                    self.to.try_io(Interest::WRITABLE, || pipe.drain(self.to))
                }
                _ if self.held.is_empty() => return Poll::Ready(Ok(())),
                _ => self.held.try_write(self.to),
            };
            match given {
                Ok(given) => self.moved.set(self.moved.get() + given as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.to.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Takes what the source has received; waits, holding nothing, when that is nothing.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.from.poll_read_ready(cx)?.is_pending() {
                self.rest();
                self.is_reading = true;
                return Poll::Pending;
            }
            match self.take() {
                Ok(0) => self.source_closed = true,
                Ok(taken) if taken >= buffer::SIZE => self.bulk += taken,
                Ok(_) => self.bulk = 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn take(&mut self) -> io::Result<usize> {
        if self.bulk >= SPLICE_AFTER {
            if self.pipe.is_none() {
                self.pipe = self.worker.pipes.lend();
            }
            if let Some(pipe) = &mut self.pipe {
                let taken = self
                    .from
                    .try_io(Interest::READABLE, || pipe.fill(self.from, usize::MAX));
                if !taken.as_ref().is_err_and(is_would_block) {
                    return taken;
                }
                // Nothing is there, or an urgent byte, which no splice takes. The read tells, also
                // the event loop, which would wait for an event that has been.
                self.pipe = None;
                self.bulk = 0;
            }
        }
        let buffers = &self.worker.buffers;
        let capacity = self.held.capacity();
        if self.bulk > 0 && capacity < buffer::LARGE {
            buffers.give(mem::replace(&mut self.held, buffers.take_large()));
        } else if capacity < buffer::SIZE {
            self.held = buffers.take();
        }
        self.held.try_read_urgent_too(self.from)
    }

    fn pass_close_on(&self) -> Result<(), Lost> {
        if self.source_reset {
            return Err(Lost::Source);
        }
        SockRef::from(self.to)
            .shutdown(Shutdown::Write)
            .map_err(Lost::Sink)
    }

    /// Gives back what an idle direction has no use for.
    fn rest(&mut self) {
        self.pipe = None;
        if self.held.capacity() > 0 {
            self.worker.buffers.give(mem::take(&mut self.held));
        }
    }
}

impl Drop for Direction<'_> {
    fn drop(&mut self) {
        self.rest();
    }
}

/// Which side a direction lost.
enum Lost {
    Source,
    Sink(io::Error),
}

fn is_would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether a socket's error means that its peer refused bytes after it had closed in an orderly
/// way; any other means that the peer was lost out of an open connection.
fn is_after_close(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
    )
}
