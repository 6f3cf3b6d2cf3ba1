//! Applications that keep asking: each on a thread, one request after the other, until told to stop.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{SOON, Speak, World};

pub struct Load<'scope> {
    stop: Arc<AtomicBool>,
    succeeded: Arc<AtomicUsize>,
    last_error: Arc<Mutex<Option<String>>>,
    clients: Vec<thread::ScopedJoinHandle<'scope, Vec<Failed>>>,
}

/// A request that did not get its 200.
#[derive(Debug)]
pub struct Failed {
    /// When its connection was dialled.
    pub began: Instant,
    pub ended: Instant,
    pub error: io::Error,
}

impl<'scope> Load<'scope> {
    /// `clients` threads that ask `to` for `/hello`, each time over a new connection.
    pub fn start<'env>(
        scope: &'scope thread::Scope<'scope, 'env>,
        world: &'env World,
        clients: usize,
        to: impl Into<SocketAddr>,
    ) -> Self {
        let to = to.into();
        let stop = Arc::new(AtomicBool::new(false));
        let succeeded = Arc::new(AtomicUsize::new(0));
        let last_error = Arc::new(Mutex::new(None));
        let clients = (0..clients)
            .map(|_| {
                let (stop, succeeded) = (stop.clone(), succeeded.clone());
                let last_error = last_error.clone();
                scope.spawn(move || {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        match ask(world, to) {
                            Ok(()) => {
                                succeeded.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => {
                                let said = error.to_string();
                                *last_error.lock().expect("no panic") = Some(said);
                                failed.push(Failed {
                                    began,
                                    ended: Instant::now(),
                                    error,
                                });
                            }
                        }
                    }
                    failed
                })
            })
            .collect();
        Self {
            stop,
            succeeded,
            last_error,
            clients,
        }
    }

    pub fn succeeded(&self) -> usize {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Waits until `count` more requests have succeeded.
    #[track_caller]
    pub fn flows(&self, count: usize) {
        let goal = self.succeeded() + count;
        let begun = Instant::now();
        while self.succeeded() < goal {
            assert!(
                begun.elapsed() < SOON,
                "not within {SOON:?}: requests succeed; the last failure: {:?}",
                self.last_error.lock().expect("no panic")
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops, and tells every request that failed.
    pub fn stop(mut self) -> Vec<Failed> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients
            .drain(..)
            .flat_map(|client| client.join().expect("a client does not panic"))
            .collect()
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        // Where the test panicked, its scope would wait for these for ever.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask(world: &World, to: SocketAddr) -> io::Result<()> {
    let mut client = world.app.try_connect(to)?;
    client.say("GET /hello HTTP/1.1\r\nHost: svc\r\nConnection: close\r\n\r\n")?;
    let (head, _) = client.hear_response()?;
    if head.starts_with("HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(io::Error::other(head))
    }
}
