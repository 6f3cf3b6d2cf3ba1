//! The bytes of one HTTP/2 connection, between h2 and its socket.
//!
//! - What detection has read is read again.
//! - Writes are gathered: h2 flushes after every DATA frame of more than 256 bytes, which would be a
//!   system call each. Here they wait until the connection's turn is over ([`Wire::poll_send`]).
//! - A turn reads a bounded amount, so that the streams take their frames out of h2 in between.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{buffer::Buffer, upstream::Upstream, worker::Worker};

/// Bytes read per turn: four full DATA frames.
const READ_PER_TURN: usize = 64 * 1024;

/// h2 writes a frame's head and its payload.
const MAX_SLICES: usize = 4;

/// Cloned to be given to h2 and kept by whoever polls it.
#[derive(Clone, Debug)]
pub(super) struct Wire(Rc<RefCell<Inner>>);

#[derive(Debug)]
struct Inner {
    socket: Socket,
    worker: Rc<Worker>,
    read_before: Option<Buffer>,
    to_send: Option<Buffer>,
    read_this_turn: usize,
    /// Nothing more to read, as far as this turn knows. h2 tries again for every request it hands
    /// out, and the socket has the task's waker already.
    is_drained: bool,
    has_read: bool,
    /// Why sending failed, until h2 has been told.
    send_error: Option<io::Error>,
}

#[derive(Debug)]
enum Socket {
    Client(TcpStream),
    Upstream(Upstream),
}

impl Wire {
    pub(super) fn client(stream: TcpStream, read_before: Buffer, worker: &Rc<Worker>) -> Self {
        Self::new(Socket::Client(stream), Some(read_before), worker)
    }

    pub(super) fn upstream(upstream: Upstream, worker: &Rc<Worker>) -> Self {
        Self::new(Socket::Upstream(upstream), None, worker)
    }

    fn new(socket: Socket, read_before: Option<Buffer>, worker: &Rc<Worker>) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            socket,
            worker: worker.clone(),
            read_before: read_before.filter(|b| !b.is_empty()),
            to_send: None,
            read_this_turn: 0,
            is_drained: false,
            has_read: false,
            send_error: None,
        })))
    }

    pub(super) fn begin_turn(&self) {
        let mut inner = self.0.borrow_mut();
        inner.read_this_turn = 0;
        inner.is_drained = false;
    }

    /// Whether the peer has sent anything.
    pub(super) fn has_read(&self) -> bool {
        self.0.borrow().has_read
    }

    /// Sends what h2 has written in this turn; called at its end.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) {
        let mut inner = self.0.borrow_mut();
        if let Poll::Ready(Err(error)) = inner.poll_send(cx) {
            // h2 hears of it when it flushes next.
            inner.send_error = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl Inner {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(to_send) = &mut self.to_send else {
            return Poll::Ready(Ok(()));
        };
        while !to_send.is_empty() {
            let socket = Pin::new(self.socket.stream());
            let count = ready!(socket.poll_write(cx, to_send.filled()))?;
            to_send.consume(count);
        }
        if let Some(sent) = self.to_send.take() {
            self.worker.buffers.give(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl Socket {
    fn stream(&mut self) -> &mut TcpStream {
        match self {
            Self::Client(stream) => stream,
            Self::Upstream(upstream) => &mut upstream.stream,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        if let Some(read_before) = &mut inner.read_before {
            let count = read_before.len().min(target.remaining());
            target.put_slice(&read_before.filled()[..count]);
            read_before.consume(count);
            if read_before.is_empty()
                && let Some(empty) = inner.read_before.take()
            {
                inner.worker.buffers.give(empty);
            }
            return Poll::Ready(Ok(()));
        }
        if inner.is_drained {
            return Poll::Pending;
        }
        if inner.read_this_turn >= READ_PER_TURN {
            inner.is_drained = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = target.filled().len();
        let read = Pin::new(inner.socket.stream()).poll_read(cx, target);
        inner.is_drained = read.is_pending();
        ready!(read)?;
        inner.read_this_turn += target.filled().len() - before;
        inner.has_read = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        if let Some(error) = inner.send_error.take() {
            return Poll::Ready(Err(error));
        }
        let slices = &slices[..slices.len().min(MAX_SLICES)];
        let total = slices.iter().map(|s| s.len()).sum();
        loop {
            let to_send = inner
                .to_send
                .get_or_insert_with(|| inner.worker.buffers.take());
            if to_send.space().len() >= total {
                for slice in slices {
                    to_send.extend(slice);
                }
                return Poll::Ready(Ok(total));
            }
            // What waits and what comes leave together, without another copy.
            let waiting = to_send.len();
            let mut all = [IoSlice::new(&[]); MAX_SLICES + 1];
            all[0] = IoSlice::new(to_send.filled());
            all[1..=slices.len()].copy_from_slice(slices);
            let socket = Pin::new(inner.socket.stream());
            let count = ready!(socket.poll_write_vectored(cx, &all[..=slices.len()]))?;
            to_send.consume(count.min(waiting));
            if count > waiting {
                return Poll::Ready(Ok(count - waiting));
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Returns at once: what is written leaves at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.borrow_mut().send_error.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_send(cx))?;
        Pin::new(inner.socket.stream()).poll_shutdown(cx)
    }
}
