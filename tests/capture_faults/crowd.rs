//! Many connections that live at once, and what has become of them.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::support::{Peer, SVC, Speak, World};

const PORT: u16 = 7;
/// Threads that keep the busy ones busy.
const HANDS: usize = 4;

/// Repeats what it hears, whatever that is.
pub(crate) fn echo(world: &World) -> Peer {
    world.peer(PORT, |mut stream| {
        let mut bytes = [0; 4096];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                n => stream.write_all(&bytes[..n])?,
            }
        }
    })
}

/// Connections of both families to [`echo`]; each has spoken, so that it is known to be through.
pub(crate) struct Crowd(Vec<TcpStream>);

impl Crowd {
    pub(crate) fn open(world: &World, count: usize) -> Self {
        let open = |svc: &_| {
            let mut stream = world.app.connect((*svc, PORT));
            exchange(&mut stream, 1).expect("a new connection answers");
            stream
        };
        Self(SVC.iter().cycle().take(count).map(open).collect())
    }

    /// Half of them speak without a pause while `meanwhile` runs; then every one has to answer.
    pub(crate) fn survives<T>(&mut self, meanwhile: impl FnOnce() -> T) -> (T, Fate) {
        let half = self.0.len() / 2;
        let (busy, idle) = self.0.split_at_mut(half);
        let done = AtomicBool::new(false);
        let exchanges = AtomicUsize::new(0);
        let share = busy.len().div_ceil(HANDS).max(1);
        thread::scope(|scope| {
            let hands: Vec<_> = busy
                .chunks_mut(share)
                .map(|streams| scope.spawn(|| keep_busy(streams, &done, &exchanges)))
                .collect();
            let _stop = StopOnDrop(&done);
            // Every busy one is at work when the fault comes, and again after it.
            let rounds = |count| {
                let goal = exchanges.load(Ordering::Relaxed) + count * share * HANDS;
                crate::support::wait_until(crate::support::SOON, "exchanges", || {
                    exchanges.load(Ordering::Relaxed) >= goal
                        || hands.iter().any(thread::ScopedJoinHandle::is_finished)
                });
            };
            rounds(1);
            let result = meanwhile();
            rounds(2);
            done.store(true, Ordering::Relaxed);
            let mut fate = Fate::default();
            for hand in hands {
                fate.add(hand.join().expect("a hand does not panic"));
            }
            idle.iter_mut()
                .for_each(|stream| fate.count(exchange(stream, 1)));
            (result, fate)
        })
    }

    /// Each says one thing more, and whether it is answered.
    pub(crate) fn fate(&mut self) -> Fate {
        let mut fate = Fate::default();
        for stream in &mut self.0 {
            fate.count(exchange(stream, 1));
        }
        fate
    }

    pub(crate) fn streams(self) -> Vec<TcpStream> {
        self.0
    }
}

/// What became of connections that should have lived on.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    pub(crate) alive: usize,
    pub(crate) reset: usize,
    pub(crate) hung: usize,
    pub(crate) closed: usize,
}

impl Fate {
    pub(crate) fn count(&mut self, outcome: io::Result<()>) {
        match outcome.map_err(|error| error.kind()) {
            Ok(()) => self.alive += 1,
            Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => self.hung += 1,
            Err(ErrorKind::UnexpectedEof) => self.closed += 1,
            Err(_) => self.reset += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.alive += other.alive;
        self.reset += other.reset;
        self.hung += other.hung;
        self.closed += other.closed;
    }

    #[track_caller]
    pub(crate) fn assert_all_alive(&self, count: usize) {
        assert_eq!(self.alive, count, "{self:?}");
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Until told to stop, or until nobody answers.
fn keep_busy(streams: &mut [TcpStream], done: &AtomicBool, exchanges: &AtomicUsize) -> Fate {
    let mut outcomes: Vec<_> = streams.iter().map(|_| Ok(())).collect();
    while !done.load(Ordering::Relaxed) && outcomes.iter().any(Result::is_ok) {
        for (stream, outcome) in streams.iter_mut().zip(&mut outcomes) {
            if outcome.is_ok() {
                *outcome = exchange(stream, 1000);
                exchanges.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let mut fate = Fate::default();
    outcomes.into_iter().for_each(|outcome| fate.count(outcome));
    fate
}

/// Says `length` bytes and hears the same again.
fn exchange(stream: &mut TcpStream, length: usize) -> io::Result<()> {
    // Not a word that any protocol begins with.
    let said = vec![1; length];
    stream.say(&said)?;
    if stream.hear(length)? == said {
        Ok(())
    } else {
        Err(io::Error::other("other bytes came back"))
    }
}
