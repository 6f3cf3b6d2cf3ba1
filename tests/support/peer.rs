//! A scripted peer on a thread of the test.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::namespace::limit_waiting;

/// Longer than any client waits, so that a client never takes a peer that gave up for a proxy that
/// let go.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Peer {
    listener: TcpListener,
    accepted: Arc<AtomicUsize>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl Peer {
    pub(super) fn start(
        listener: TcpListener,
        answer: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let accepted = Arc::new(AtomicUsize::new(0));
        let acceptor = {
            let (listener, accepted) = (listener.try_clone(), accepted.clone());
            let listener = listener.expect("descriptors are left");
            let answer = Arc::new(answer);
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    accepted.fetch_add(1, Ordering::Relaxed);
                    let answer = answer.clone();
                    thread::spawn(move || {
                        let outcome = stream
                            .set_nodelay(true)
                            .and_then(|()| limit_waiting(&stream, LIMIT))
                            .and_then(|()| answer(stream));
                        // The client's side of the test is what judges; this is for its reader.
                        if let Err(error) = outcome {
                            eprintln!("a peer's connection ended with: {error}");
                        }
                    });
                }
            })
        };
        Self {
            listener,
            accepted,
            acceptor: Some(acceptor),
        }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn port(&self) -> u16 {
        self.listener
            .local_addr()
            .as_ref()
            .map_or(0, SocketAddr::port)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Wakes the acceptor, whose `accept` then fails.
        let _ = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}
