//! Fairness towards what shares the thread, the heartbeat above all: were the thread busy with scrapers
//! for longer than the lease, capture would end. So one answer at a time gets on by one piece, and before
//! the next the event loop has been round.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use tokio::sync::Semaphore;

use super::body::{Body, Pieces};

/// Answers that are written out at once. Each holds what it tells of: of 10,000 destinations, 4 MiB. One
/// more ends the oldest, as somebody who has stalled must not keep others out.
const MAX_WRITTEN: usize = 8;

/// The order in which answers get on.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    one: Arc<Semaphore>,
    written: Arc<Mutex<VecDeque<Weak<Rest>>>>,
}

/// What is still to be written of an answer; `None`: it was ended, or is at its end.
struct Rest(Mutex<Option<Pieces>>);

type Turn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of an answer that waits for its turn before each piece.
pub(super) struct Paced {
    rest: Arc<Rest>,
    turns: Turns,
    turn: Turn,
}

/// Others have begun to be answered since, and its reader was too slow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overtaken;

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            one: Arc::new(Semaphore::new(1)),
            written: Arc::default(),
        }
    }

    /// Waits until all who asked before have had theirs, and the event loop has been round.
    pub(super) fn next(&self) -> Turn {
        let one = self.one.clone();
        Box::pin(async move {
            let _turn = one.acquire_owned().await;
            // Others that are ready, and whatever the kernel and the clock have, come first.
            tokio::task::yield_now().await;
        })
    }

    /// Has what is written piece by piece wait for turns.
    pub(super) fn pace(&self, body: Body) -> Body {
        match body {
            Body::Pieces(pieces) => Body::Paced(self.paced(pieces)),
            whole => whole,
        }
    }

    fn paced(&self, pieces: Pieces) -> Paced {
        let rest = Arc::new(Rest(Mutex::new(Some(pieces))));
        let mut written = lock(&self.written);
        written.retain(|of| of.strong_count() > 0);
        if written.len() >= MAX_WRITTEN
            && let Some(oldest) = written.pop_front().and_then(|of| of.upgrade())
        {
            // Its reader may never come back for it: what it holds goes now.
            drop(oldest.take());
        }
        written.push_back(Arc::downgrade(&rest));
        Paced {
            rest,
            turns: self.clone(),
            turn: self.next(),
        }
    }
}

impl Rest {
    fn take(&self) -> Option<Pieces> {
        lock(&self.0).take()
    }
}

impl Paced {
    pub(super) fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Vec<u8>, Overtaken>>> {
        ready!(self.turn.as_mut().poll(context));
        self.turn = self.turns.next();
        Poll::Ready(match &mut *lock(&self.rest.0) {
            Some(pieces) => pieces.next().map(Ok),
            None => Some(Err(Overtaken)),
        })
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rest")
    }
}

impl fmt::Display for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "read more slowly than {MAX_WRITTEN} others that came after"
        )
    }
}

impl std::error::Error for Overtaken {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn on_a_loop(of: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("an event loop").block_on(of);
    }

    #[test]
    fn however_many_are_read_one_gets_on_by_one_piece_before_the_loop_goes_round() {
        let count = Arc::new(AtomicUsize::new(0));
        on_a_loop(async {
            let turns = Turns::new();
            for _ in 0..MAX_WRITTEN {
                let count = count.clone();
                let mut paced = turns.paced(Box::new(std::iter::from_fn(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                    Some(vec![0; 10])
                })));
                tokio::spawn(async move {
                    while let Some(Ok(_)) = poll_fn(|cx| paced.poll_piece(cx)).await {}
                });
            }
            // Whoever yields is back after one round, as a timer that is due would be.
            for _ in 0..1000 {
                let before = count.load(Ordering::Relaxed);
                tokio::task::yield_now().await;
                let made = count.load(Ordering::Relaxed) - before;
                assert!(made <= 1, "{made} pieces in one round");
            }
            let made = count.load(Ordering::Relaxed);
            assert!(made >= 300, "{made} pieces in all");
        });
    }

    #[test]
    fn one_too_many_ends_the_oldest_and_what_it_held_goes_at_once() {
        on_a_loop(async {
            let turns = Turns::new();
            let held = Arc::new(());
            let paced = || {
                let held = held.clone();
                turns.paced(Box::new(std::iter::once(vec![1]).chain(
                    std::iter::from_fn(move || (Arc::strong_count(&held) > 0).then(|| vec![2])),
                )))
            };
            let mut all: Vec<_> = (0..MAX_WRITTEN).map(|_| paced()).collect();
            let oldest = poll_fn(|cx| all[0].poll_piece(cx)).await;
            assert_eq!(oldest, Some(Ok(vec![1])));
            all.push(paced());
            assert_eq!(Arc::strong_count(&held), 1 + MAX_WRITTEN);
            let oldest = poll_fn(|cx| all[0].poll_piece(cx)).await;
            assert_eq!(oldest, Some(Err(Overtaken)));
            for others in &mut all[1..] {
                let piece = poll_fn(|cx| others.poll_piece(cx)).await;
                assert_eq!(piece, Some(Ok(vec![1])));
            }
            // Those that are through make room.
            all.clear();
            let mut next: Vec<_> = (0..MAX_WRITTEN).map(|_| paced()).collect();
            assert_eq!(
                poll_fn(|cx| next[0].poll_piece(cx)).await,
                Some(Ok(vec![1]))
            );
        });
    }
}
