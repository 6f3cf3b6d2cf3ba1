//! Moving bytes from socket to socket through a pipe, inside the kernel: large bodies and bulk
//! transfers cost half of what reading and writing them does.
//!
//! Pipes are two descriptors and some kernel memory each, so a worker keeps a few and lends them;
//! a caller that gets none copies through a buffer instead.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream};

use crate::worker::Worker;

/// Bytes a pipe is asked to hold. The kernel refuses more to a user who owns too many already
/// (`pipe-user-pages-soft`, 64 MiB by default); such a pipe stays smaller and serves all the same.
const PIPE_SIZE: usize = 256 * 1024;

/// Pipes of one worker, lent or not: two descriptors each.
const MAX_PIPES: usize = 16;

/// How [`splice_exact`] ended.
#[derive(Debug)]
pub enum End {
    /// All that was asked for.
    Complete,
    /// The source closed in an orderly way before that.
    SourceClosed,
    SourceFailed(io::Error),
    SinkFailed(io::Error),
}

/// Moves `count` bytes from one socket to another, or fewer if either ends before; those that the
/// sink takes are added to `moved` as they go. Dropped half way, it loses what has been taken and not
/// yet delivered: neither socket is of use then.
pub async fn splice_exact(
    worker: &Worker,
    from: &TcpStream,
    to: &TcpStream,
    count: u64,
    moved: &Cell<u64>,
) -> End {
    match worker.pipes.lend() {
        Some(mut pipe) => through_pipe(&mut pipe, from, to, count, moved).await,
        None => through_buffer(worker, from, to, count, moved).await,
    }
}

async fn through_pipe(
    pipe: &mut Pipe,
    from: &TcpStream,
    to: &TcpStream,
    count: u64,
    moved: &Cell<u64>,
) -> End {
    let mut left = count;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        match from
            .async_io(Interest::READABLE, || pipe.fill(from, wanted))
            .await
        {
            Ok(0) => return End::SourceClosed,
            Ok(taken) => left -= taken as u64,
            Err(error) => return End::SourceFailed(error),
        }
        while !pipe.is_empty() {
            match to.async_io(Interest::WRITABLE, || pipe.drain(to)).await {
                Ok(taken) => moved.set(moved.get() + taken as u64),
                Err(error) => return End::SinkFailed(error),
            }
        }
    }
    End::Complete
}

async fn through_buffer(
    worker: &Worker,
    from: &TcpStream,
    to: &TcpStream,
    count: u64,
    moved: &Cell<u64>,
) -> End {
    let mut left = count;
    let mut buffer = worker.buffers.take();
    let end = loop {
        if left == 0 {
            break End::Complete;
        }
        let space = buffer.space();
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        let wanted = wanted.min(space.len());
        let read = from
            .async_io(Interest::READABLE, || {
                Ok(rustix::io::read(from, &mut space[..wanted])?)
            })
            .await;
        match read {
            Ok(0) => break End::SourceClosed,
            Ok(read) => {
                buffer.fill(read);
                left -= read as u64;
            }
            Err(error) => break End::SourceFailed(error),
        }
        while !buffer.is_empty() {
            let written = to
                .async_io(Interest::WRITABLE, || to.try_write(buffer.filled()))
                .await;
            match written {
                Ok(written) => {
                    buffer.consume(written);
                    moved.set(moved.get() + written as u64);
                }
                Err(error) => return End::SinkFailed(error),
            }
        }
    };
    worker.buffers.give(buffer);
    end
}

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    outlet: OwnedFd,
    inlet: OwnedFd,
    length: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (outlet, inlet) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused: it keeps the size that the kernel gave it.
        let _ = fcntl_setpipe_size(&inlet, PIPE_SIZE);
        Ok(Self {
            outlet,
            inlet,
            length: 0,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes up to `wanted` bytes that `from` has received. 0 means the peer has closed.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there or the pipe is full; else the socket's error.
    pub(crate) fn fill(&mut self, from: &TcpStream, wanted: usize) -> io::Result<usize> {
        let taken = splice(
            from,
            None,
            &self.inlet,
            None,
            wanted.min(PIPE_SIZE),
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        )?;
        self.length += taken;
        Ok(taken)
    }

    /// Gives what it holds to `to`, as far as that takes it.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing now; else the socket's error.
    pub(crate) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let given = splice(
            &self.outlet,
            None,
            to,
            None,
            self.length,
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        )?;
        self.length -= given;
        Ok(given)
    }
}

/// A worker's pipes.
#[derive(Debug, Default)]
pub struct PipePool(RefCell<Pipes>);

#[derive(Debug, Default)]
struct Pipes {
    idle: Vec<Pipe>,
    lent: usize,
}

impl PipePool {
    /// An empty pipe; none when all are lent or the process is out of descriptors.
    pub(crate) fn lend(&self) -> Option<LentPipe<'_>> {
        let mut pipes = self.0.borrow_mut();
        let pipe = match pipes.idle.pop() {
            Some(pipe) => pipe,
            None if pipes.lent < MAX_PIPES => Pipe::new().ok()?,
            None => return None,
        };
        pipes.lent += 1;
        Some(LentPipe {
            pipe: Some(pipe),
            pool: self,
        })
    }
}

/// A pipe on loan. Comes back when dropped, unless bytes are stuck in it: then it is closed.
#[derive(Debug)]
pub(crate) struct LentPipe<'a> {
    /// Always there until dropped.
    pipe: Option<Pipe>,
    pool: &'a PipePool,
}

impl std::ops::Deref for LentPipe<'_> {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        self.pipe.as_ref().expect("there until dropped")
    }
}

impl std::ops::DerefMut for LentPipe<'_> {
    fn deref_mut(&mut self) -> &mut Pipe {
        self.pipe.as_mut().expect("there until dropped")
    }
}

impl Drop for LentPipe<'_> {
    fn drop(&mut self) {
        let mut pipes = self.pool.0.borrow_mut();
        pipes.lent -= 1;
        pipes.idle.extend(self.pipe.take().filter(Pipe::is_empty));
    }
}

#[cfg(test)]
impl PipePool {
    pub(crate) fn lent(&self) -> usize {
        self.0.borrow().lent
    }

    pub(crate) fn kept(&self) -> usize {
        self.0.borrow().idle.len()
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::Settings;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::{pair, run, worker};

    /// Sends `sent` bytes, of which `wanted` are to be moved, and reads what arrives.
    async fn moved(worker: &Worker, sent: usize, wanted: u64) -> ((u64, End), Vec<u8>) {
        let (from, mut source) = pair().await;
        let (to, mut sink) = pair().await;
        let bytes: Vec<u8> = (0..sent).map(|i| (i % 251) as u8).collect();
        let send = async move {
            source.write_all(&bytes).await.unwrap();
            source
        };
        let splice = async {
            let moved = Cell::new(0);
            let end = splice_exact(worker, &from, &to, wanted, &moved).await;
            drop(to);
            (moved.get(), end)
        };
        let receive = async {
            let mut received = Vec::new();
            sink.read_to_end(&mut received).await.unwrap();
            received
        };
        let (_source, moved, received) = tokio::join!(send, splice, receive);
        for (i, &byte) in received.iter().enumerate() {
            assert_eq!(usize::from(byte), i % 251, "byte {i}");
        }
        (moved, received)
    }

    fn with_and_without_pipes(test: impl AsyncFn(&Worker)) {
        run(async {
            let worker = worker(Settings::default());
            test(&worker).await;
            assert_eq!(worker.pipes.lent(), 0);
            assert_eq!(worker.pipes.kept(), 1);
            let _lent: Vec<_> = std::iter::from_fn(|| worker.pipes.lend()).collect();
            test(&worker).await;
        });
    }

    #[test]
    fn exactly_the_count_is_moved_and_the_rest_left() {
        with_and_without_pipes(async |worker| {
            let ((count, end), received) = moved(worker, 3_000_100, 3_000_000).await;
            assert!(matches!(end, End::Complete));
            assert_eq!((count, received.len()), (3_000_000, 3_000_000));
        });
    }

    #[test]
    fn nothing_is_asked_of_the_sockets_for_no_bytes() {
        with_and_without_pipes(async |worker| {
            let ((_, end), _) = moved(worker, 0, 0).await;
            assert!(matches!(end, End::Complete));
        });
    }

    #[test]
    fn a_source_that_closes_early_is_told_with_what_came_before() {
        with_and_without_pipes(async |worker| {
            let (from, mut source) = pair().await;
            let (to, mut sink) = pair().await;
            source.write_all(b"half").await.unwrap();
            drop(source);
            let moved = Cell::new(0);
            let end = splice_exact(worker, &from, &to, 8, &moved).await;
            assert!(matches!(end, End::SourceClosed));
            assert_eq!(moved.get(), 4);
            let mut received = [0; 4];
            sink.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"half");
        });
    }

    #[test]
    fn the_largest_count_is_no_small_one() {
        with_and_without_pipes(async |worker| {
            let (from, mut source) = pair().await;
            let (to, _sink) = pair().await;
            source.write_all(b"half").await.unwrap();
            drop(source);
            let moved = Cell::new(100);
            let end = splice_exact(worker, &from, &to, u64::MAX, &moved).await;
            assert!(matches!(end, End::SourceClosed), "{end:?}");
            assert_eq!(moved.get(), 104);
        });
    }

    #[test]
    fn a_pipe_with_bytes_stuck_in_it_is_not_kept() {
        run(async {
            let worker = worker(Settings::default());
            let (from, mut source) = pair().await;
            let (to, sink) = pair().await;
            crate::accept::reset(sink);
            to.readable().await.unwrap();
            source.write_all(b"lost").await.unwrap();
            let moved = Cell::new(0);
            let end = splice_exact(&worker, &from, &to, 4, &moved).await;
            assert!(matches!(end, End::SinkFailed(_)));
            assert_eq!(moved.get(), 0);
            assert_eq!((worker.pipes.lent(), worker.pipes.kept()), (0, 0));
        });
    }
}
