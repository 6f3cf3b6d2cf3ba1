//! Byte buffers of one size, taken from a worker's pool while bytes are under way and given back
//! while a connection is idle, so that an idle connection costs no buffer.

use std::{cell::RefCell, io, ops::Range};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::{io::Interest, net::TcpStream};

use crate::sys;

/// Bytes of an ordinary buffer: a read of this size already costs little beside the copy
/// (measured: 8 KiB is slower, 64 KiB gains less than 3 % before `splice` takes over).
pub const SIZE: usize = 16 * 1024;

/// Buffers a worker keeps for reuse; more are freed. 64 of them are 1 MiB.
const KEPT: usize = 64;

/// Bytes of a large buffer, for what is too much for an ordinary one and not yet worth a pipe.
pub const LARGE: usize = 64 * 1024;

/// Large buffers a worker keeps: 1 MiB too.
const KEPT_LARGE: usize = 16;

/// A window of filled bytes in a fixed allocation.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity],
            start: 0,
            end: 0,
        }
    }

    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Drops the first `count` filled bytes.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len());
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// The free space behind the filled bytes; moves these to the front when the space has run
    /// out. Empty only when the whole allocation is filled.
    pub fn space(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// Counts `count` bytes, written into [`Self::space`], as filled.
    pub fn fill(&mut self, count: usize) {
        debug_assert!(self.end + count <= self.bytes.len());
        self.end += count;
    }

    /// Enlarges the allocation to at least `capacity`.
    pub fn grow(&mut self, capacity: usize) {
        if capacity > self.bytes.len() {
            self.bytes.resize(capacity, 0);
        }
    }

    /// Appends, growing as needed.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.space().len() < bytes.len() {
            let needed = self.len() + bytes.len();
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            self.grow(needed);
        }
        self.space()[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// Replaces the filled bytes at `at`, moving whichever side costs less room.
    pub fn replace(&mut self, at: Range<usize>, with: &[u8]) {
        let (from, to) = (self.start + at.start, self.start + at.end);
        let shrink = at.len().checked_sub(with.len());
        let grow = with.len().saturating_sub(at.len());
        let place = if let Some(shrink) = shrink {
            self.bytes
                .copy_within(self.start..from, self.start + shrink);
            self.start += shrink;
            from + shrink
        } else if self.start >= grow {
            self.bytes.copy_within(self.start..from, self.start - grow);
            self.start -= grow;
            from - grow
        } else {
            self.grow(self.end + grow);
            self.bytes.copy_within(to..self.end, to + grow);
            self.end += grow;
            from
        };
        self.bytes[place..place + with.len()].copy_from_slice(with);
    }

    /// Reads once, without waiting, into the free space. A read that leaves space has emptied the
    /// socket, which then counts as unreadable until more arrives: that saves the read which would
    /// only have said so.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else the socket's error. 0 means the peer has closed.
    pub fn try_read(&mut self, stream: &TcpStream) -> io::Result<usize> {
        self.read_once(stream, |_| false)
    }

    /// [`Buffer::try_read`] of what may hold urgent data, before which a read ends although more is
    /// there.
    ///
    /// # Errors
    /// As [`Buffer::try_read`].
    pub fn try_read_urgent_too(&mut self, stream: &TcpStream) -> io::Result<usize> {
        self.read_once(stream, sys::is_at_urgent_mark)
    }

    fn read_once(
        &mut self,
        stream: &TcpStream,
        has_more: impl Fn(&TcpStream) -> bool,
    ) -> io::Result<usize> {
        let mut count = 0;
        let space = self.space();
        let result = stream.try_io(Interest::READABLE, || {
            // Not `read`, which goes through the file system's layer first.
            (_, count) = recv(stream, &mut *space, RecvFlags::empty())?;
            if 0 < count && count < space.len() && !has_more(stream) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match result {
            Err(error) if count == 0 => Err(error),
            _ => {
                self.fill(count);
                Ok(count)
            }
        }
    }

    /// Writes once, without waiting, and drops what was taken.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is taken now; else the socket's error.
    pub fn try_write(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let count = try_write(stream, self.filled())?;
        self.consume(count);
        Ok(count)
    }
}

/// Writes once, without waiting; by a bare system call, since the C library's wrapper makes each one
/// a place where a thread may be cancelled.
///
/// # Errors
/// `WouldBlock` when nothing is taken now; else the socket's error.
pub fn try_write(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    stream.try_io(Interest::WRITABLE, || {
        Ok(send(stream, bytes, SendFlags::NOSIGNAL)?)
    })
}

/// A worker's buffers of [`SIZE`], and a few of [`LARGE`].
#[derive(Debug, Default)]
pub struct BufferPool {
    ordinary: RefCell<Vec<Buffer>>,
    large: RefCell<Vec<Buffer>>,
}

impl BufferPool {
    pub fn take(&self) -> Buffer {
        let kept = self.ordinary.borrow_mut().pop();
        kept.unwrap_or_else(|| Buffer::with_capacity(SIZE))
    }

    /// For a peer that has shown that it sends more than an ordinary buffer at a time.
    pub fn take_large(&self) -> Buffer {
        let kept = self.large.borrow_mut().pop();
        kept.unwrap_or_else(|| Buffer::with_capacity(LARGE))
    }

    /// Takes a buffer back for reuse; one that has grown is freed instead.
    pub fn give(&self, mut buffer: Buffer) {
        let (pool, most) = match buffer.capacity() {
            SIZE => (&self.ordinary, KEPT),
            LARGE => (&self.large, KEPT_LARGE),
            _ => return,
        };
        let mut kept = pool.borrow_mut();
        if kept.len() < most {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
impl BufferPool {
    /// Buffers that wait for use.
    pub(crate) fn kept(&self) -> usize {
        self.ordinary.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_runs_out_only_when_all_of_it_is_filled() {
        let mut buffer = Buffer::with_capacity(8);
        buffer.extend(b"12345678");
        assert!(buffer.space().is_empty());
        buffer.consume(3);
        assert_eq!(buffer.space().len(), 3);
        assert_eq!(buffer.filled(), b"45678");
    }

    #[test]
    fn extending_beyond_the_capacity_keeps_every_byte() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.extend(b"abc");
        buffer.consume(1);
        buffer.extend(b"defgh");
        assert_eq!(buffer.filled(), b"bcdefgh");
    }

    #[test]
    fn replacing_keeps_what_is_around() {
        for consumed in [0, 1, 8] {
            let mut buffer = Buffer::with_capacity(16);
            buffer.extend(&b"........"[..consumed]);
            buffer.extend(b"abcdefgh");
            buffer.consume(consumed);
            buffer.replace(2..4, b"");
            assert_eq!(buffer.filled(), b"abefgh");
            buffer.replace(2..2, b"12345678");
            assert_eq!(buffer.filled(), b"ab12345678efgh");
            buffer.replace(0..2, b"AB");
            buffer.replace(14..14, b"end");
            assert_eq!(buffer.filled(), b"AB12345678efghend");
        }
    }

    #[test]
    fn a_grown_buffer_is_not_kept() {
        let pool = BufferPool::default();
        let mut buffer = pool.take();
        buffer.grow(2 * SIZE);
        pool.give(buffer);
        assert_eq!(pool.take().capacity(), SIZE);
    }
}
