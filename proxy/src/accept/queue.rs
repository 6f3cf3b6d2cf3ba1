//! The accept loop's inner part: one connection at a time from a listener, through every error that
//! `accept` knows, and without dropping what is queued when the worker drains.

use std::{
    fs::File,
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

use crate::{address::ClientAddr, drain::Drain, failure::Failure, shared::Shared};

/// How long a draining listener waits for connections that were redirected just before capture
/// ended and whose handshake is still under way. It is part of the dialler's own `connect`, and takes
/// as long as that thread waits for a CPU in the middle of it: of 170,000 dials beside four busy loops
/// on two CPUs 162 took more than 20 ms in all, 12 more than 100 ms.
const DRAIN_QUIET: Duration = Duration::from_millis(100);

pub struct Queue {
    listener: Rc<TcpListener>,
    shared: Arc<Shared>,
    /// Closes what can be spared; whether there was any.
    make_room: Box<dyn Fn() -> bool>,
    /// Given up for a moment when descriptors run out, so that a connection can be accepted and
    /// refused instead of hanging in the queue.
    spare: Option<File>,
    /// Whether the last attempt failed for a reason that lasts, which is told once and not a hundred
    /// times a second.
    is_failing: bool,
}

impl Queue {
    pub fn new(
        listener: Rc<TcpListener>,
        shared: Arc<Shared>,
        make_room: impl Fn() -> bool + 'static,
    ) -> Self {
        Self {
            listener,
            shared,
            make_room: Box::new(make_room),
            spare: open_spare(),
            is_failing: false,
        }
    }

    /// The next connection; none once draining has begun and no more come.
    pub async fn next(&mut self, drain: &Drain) -> Option<(TcpStream, ClientAddr)> {
        loop {
            let accepted = if drain.has_started() {
                tokio::time::timeout(self.quiet(), self.listener.accept())
                    .await
                    .ok()?
            } else {
                tokio::select! {
                    biased;
                    accepted = self.listener.accept() => accepted,
                    () = drain.started() => continue,
                }
            };
            match accepted {
                Ok((stream, client)) => {
                    self.is_failing = false;
                    return Some((stream, ClientAddr(client)));
                }
                Err(error) => self.survive(&error).await,
            }
        }
    }

    fn quiet(&self) -> Duration {
        if self.shared.is_deserted.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            DRAIN_QUIET
        }
    }

    async fn survive(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            // The peer was gone before we looked; the next one is not.
            Some(libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::EPERM) => {}
            // A connection that is idle is worth less than one that is wanted.
            Some(libc::EMFILE | libc::ENFILE) if (self.make_room)() => {
                tokio::task::yield_now().await;
            }
            Some(libc::EMFILE | libc::ENFILE) if self.spare.is_some() => {
                self.spare = None;
                if let Some((stream, client)) = self.accept_at_once().await {
                    self.shared
                        .connection_refused(ClientAddr(client), Failure::OutOfResources);
                    reset(stream);
                }
                self.spare = open_spare();
            }
            _ => {
                if !self.is_failing {
                    tracing::error!(%error, "cannot accept; trying again every 10 ms");
                }
                self.is_failing = true;
                // Memory or descriptors of the whole system: nothing to do but let others free some.
                tokio::time::sleep(Duration::from_millis(10)).await;
                self.spare = self.spare.take().or_else(open_spare);
            }
        }
    }

    /// What is queued, if anything. Never yields: another task of this worker would take the
    /// descriptor just freed, for a dial, and the spare would be lost.
    async fn accept_at_once(&self) -> Option<(TcpStream, SocketAddr)> {
        poll_fn(|context| match self.listener.poll_accept(context) {
            Poll::Ready(Ok(accepted)) => Poll::Ready(Some(accepted)),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Turns away a connection over the process's limit.
pub fn refuse(shared: &Shared, stream: TcpStream, client: ClientAddr) {
    shared.connection_refused(client, Failure::ConnectionLimit);
    reset(stream);
}

/// Closes with a reset, which no client mistakes for an orderly end.
pub fn reset(stream: TcpStream) {
    reset_when_dropped(&stream);
    drop(stream);
}

/// Makes the eventual close of `stream` a reset.
pub fn reset_when_dropped(stream: &TcpStream) {
    // A socket that cannot linger is closed the ordinary way.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, rc::Rc};

    use outrigger_config::Settings;
    use tokio::{
        io::AsyncReadExt,
        task::{spawn_local, yield_now},
    };

    use super::*;
    use crate::testing::{self, listener, pair, run, shared};

    #[test]
    fn draining_takes_what_is_queued_and_ends() {
        run(async {
            let (listener, address) = listener().await;
            let mut queue = Queue::new(Rc::new(listener), shared(Settings::default()), || false);
            let drain = Drain::default();
            let queued = [
                TcpStream::connect(address).await.expect("connected"),
                TcpStream::connect(address).await.expect("connected"),
            ];
            drain.start();
            for client in &queued {
                let (_, from) = queue.next(&drain).await.expect("one that was queued");
                assert_eq!(from.0, client.local_addr().expect("bound"));
            }
            assert!(queue.next(&drain).await.is_none());
        });
    }

    #[test]
    fn draining_reaches_a_queue_that_waits() {
        run(async {
            let (listener, _) = listener().await;
            let mut queue = Queue::new(Rc::new(listener), shared(Settings::default()), || false);
            let drain = Rc::new(Drain::default());
            let waiting = spawn_local({
                let drain = drain.clone();
                async move { queue.next(&drain).await.is_none() }
            });
            yield_now().await;
            drain.start();
            assert!(waiting.await.expect("no panic"));
        });
    }

    /// In a process of its own, since no other test could open a file meanwhile.
    #[test]
    fn out_of_descriptors_a_connection_is_reset_and_the_next_is_served() {
        if !testing::is_again() {
            return testing::again(
                "accept::queue::tests::out_of_descriptors_a_connection_is_reset_and_the_next_is_served",
                "ip link set lo up; ulimit -n 64; exec \"$@\"",
            );
        }
        run(async {
            let (listener, address) = listener().await;
            let shared = shared(Settings::default());
            let mut queue = Queue::new(Rc::new(listener), shared.clone(), || false);
            let drain = Drain::default();
            let (mut first, mut byte) =
                (TcpStream::connect(address).await.expect("connected"), [0]);
            let mut taken: Vec<_> = std::iter::from_fn(open_spare).collect();
            tokio::select! {
                _ = queue.next(&drain) => panic!("there was no descriptor for it"),
                read = first.read(&mut byte) => {
                    assert_eq!(read.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
                }
            }
            let label = Failure::OutOfResources.label();
            let refused = shared
                .metrics
                .refused()
                .find(|(reason, _)| *reason == label);
            assert_eq!(refused, Some((label, 1)));
            // Room for the two ends of another.
            taken.truncate(taken.len() - 2);
            let _second = TcpStream::connect(address).await.expect("connected");
            assert!(queue.next(&drain).await.is_some());
        });
    }

    #[test]
    fn a_connection_reset_by_us_is_no_orderly_close() {
        run(async {
            let (ours, mut app) = pair().await;
            reset(ours);
            let error = app.read(&mut [0]).await.expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        });
    }
}
