//! Whether every worker's event loop turns and its listeners accept: asked by the control thread,
//! answered by each worker at its next turn.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

#[derive(Debug)]
pub struct Pulse {
    /// The number of the latest question.
    asked: watch::Sender<u64>,
    /// The latest question that each worker has answered.
    answered: Box<[AtomicU64]>,
    news: Notify,
}

impl Pulse {
    pub fn new(workers: usize) -> Self {
        Self {
            asked: watch::Sender::new(0),
            answered: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            news: Notify::new(),
        }
    }

    /// Answers for `worker`, on its own event loop, for as long as `is_accepting` says so.
    pub async fn answer(&self, worker: usize, is_accepting: impl Fn() -> bool) {
        let mut asked = self.asked.subscribe();
        while is_accepting() {
            let question = *asked.borrow_and_update();
            self.answered[worker].store(question, Ordering::Release);
            self.news.notify_waiters();
            if asked.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks every worker and waits for the answers: all of them were given after this was called.
    ///
    /// # Errors
    /// The first worker that did not answer within `limit`.
    pub async fn take(&self, limit: Duration) -> Result<(), usize> {
        let mut question = 0;
        self.asked.send_modify(|last| {
            *last += 1;
            question = *last;
        });
        let all_answered = async {
            loop {
                let mut news = pin!(self.news.notified());
                // Before looking, so that no answer falls in between.
                news.as_mut().enable();
                if self.silent(question).is_none() {
                    return;
                }
                news.await;
            }
        };
        match timeout(limit, all_answered).await {
            Ok(()) => Ok(()),
            Err(_) => self.silent(question).map_or(Ok(()), Err),
        }
    }

    fn silent(&self, question: u64) -> Option<usize> {
        let is_missing = |answered: &AtomicU64| answered.load(Ordering::Acquire) < question;
        self.answered.iter().position(is_missing)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        rc::Rc,
        sync::{Arc, atomic::AtomicBool},
        thread,
    };

    use tokio::{runtime::Builder, task::spawn_local};

    use super::*;
    use crate::testing::run;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_worker_that_spins_is_named_and_heard_again_once_it_turns() {
        let pulse = Arc::new(Pulse::new(2));
        let is_spinning = Arc::new(AtomicBool::new(false));
        for worker in 0..2 {
            let (pulse, is_spinning) = (pulse.clone(), is_spinning.clone());
            // Ends with the process.
            thread::spawn(move || {
                let runtime = Builder::new_current_thread().build().expect("a runtime");
                let answering = pulse.answer(worker, || {
                    while worker == 1 && is_spinning.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    true
                });
                runtime.block_on(answering);
            });
        }
        run(async {
            assert_eq!(pulse.take(LONG).await, Ok(()));
            is_spinning.store(true, Ordering::Relaxed);
            assert_eq!(pulse.take(SHORT).await, Err(1));
            assert_eq!(pulse.take(SHORT).await, Err(1));
            is_spinning.store(false, Ordering::Relaxed);
            assert_eq!(pulse.take(LONG).await, Ok(()));
        });
    }

    #[test]
    fn a_worker_that_no_longer_accepts_does_not_answer() {
        run(async {
            let pulse = Rc::new(Pulse::new(1));
            let is_accepting = Rc::new(Cell::new(true));
            spawn_local({
                let (pulse, is_accepting) = (pulse.clone(), is_accepting.clone());
                async move { pulse.answer(0, || is_accepting.get()).await }
            });
            assert_eq!(pulse.take(LONG).await, Ok(()));
            is_accepting.set(false);
            assert_eq!(pulse.take(SHORT).await, Err(0));
        });
    }

    #[test]
    fn a_worker_that_never_began_is_missed() {
        run(async { assert_eq!(Pulse::new(1).take(SHORT).await, Err(0)) });
    }
}
