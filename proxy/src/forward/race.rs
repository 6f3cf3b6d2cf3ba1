//! Tries of one request beside each other, whatever its protocol: the first good answer wins, and the
//! other tries are dropped. What is raced for is the head of an answer.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use outrigger_config::Retry;
use tokio::time::sleep;

use super::policed::Policed;
use crate::dispatch::{Hop, Tried, Way};

/// A try under way.
pub(super) type Lap<'l, A, E> = Pin<Box<dyn Future<Output = Result<A, E>> + 'l>>;

/// A try whose answer has begun.
pub(super) trait Answered {
    /// Whether the answer would have the request sent again, were it the only one.
    fn is_reason(&self, retry: &Retry) -> bool;

    /// Tells the endpoint's cluster of an answer that is not taken.
    fn pass_over(self);
}

pub(super) struct Race<'a> {
    pub(super) way: Way<'a>,
    pub(super) policed: &'a Policed,
    /// After how long without an answer another try begins.
    pub(super) delay: Duration,
}

impl Race<'_> {
    /// Tries at `first`, and each `delay` at another endpoint, until there is an answer or nobody is
    /// left; `lap` begins a try.
    ///
    /// # Errors
    /// How the last try ended, if there is no answer.
    pub(super) async fn run<'l, A: Answered, E>(
        &self,
        first: Hop,
        tried: &mut Tried,
        lap: impl Fn(Hop) -> Lap<'l, A, E>,
    ) -> Result<A, E> {
        tried.begin_again(Some(first.peer));
        let mut laps = vec![lap(first)];
        let mut due = Box::pin(sleep(self.delay));
        let mut may_hedge = true;
        loop {
            let ended = poll_fn(|cx| {
                for place in 0..laps.len() {
                    if let Poll::Ready(ended) = laps[place].as_mut().poll(cx) {
                        drop(laps.swap_remove(place));
                        return Poll::Ready(Some(ended));
                    }
                }
                if may_hedge && due.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            });
            match ended.await {
                None => match self.another(tried) {
                    Some(hop) => {
                        laps.push(lap(hop));
                        due = Box::pin(sleep(self.delay));
                    }
                    None => may_hedge = false,
                },
                Some(Ok(answered)) if laps.is_empty() || !self.is_reason(&answered) => {
                    return Ok(answered);
                }
                // The others may do better.
                Some(Ok(answered)) => answered.pass_over(),
                Some(Err(lost)) if laps.is_empty() => return Err(lost),
                Some(Err(_)) => {}
            }
        }
    }

    /// Where to try beside what is under way, if that is allowed.
    fn another(&self, tried: &mut Tried) -> Option<Hop> {
        if !self.policed.hedge() {
            return None;
        }
        let prefers_others = self.policed.prefers_others();
        let hop = self.way.choose_another(tried, prefers_others).ok()?;
        tried.begin_again(Some(hop.peer));
        Some(hop)
    }

    fn is_reason(&self, answered: &impl Answered) -> bool {
        let retry = self.policed.retry();
        retry.is_some_and(|retry| answered.is_reason(retry))
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::NoHeaders;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        dispatch::Key,
        testing::{configured, connection, run_paused},
    };

    const ROUTED: &str = "
clusters: [{ name: service, endpoints: [{ address: '192.0.2.1:1' }, { address: '192.0.2.2:1' }, { address: '192.0.2.3:1' }] }]
routes: [{ match: {}, cluster: service, retry: { on: [5xx], num_retries: 2, hedge: { delay: 1s } } }]";

    /// Whether it is a good one, and of which try.
    #[derive(Debug, PartialEq)]
    struct Said(bool, usize);

    impl Answered for Said {
        fn is_reason(&self, _retry: &Retry) -> bool {
            !self.0
        }

        fn pass_over(self) {}
    }

    /// How each try ends and when, as `Ok` whether its answer is a good one; and how the race does, and
    /// when, both in milliseconds.
    async fn raced(tries: &[(u64, Result<bool, ()>)]) -> (Result<Said, usize>, u128) {
        let worker = configured(ROUTED);
        let connection = connection(&worker, "192.0.2.9:1".parse().expect("an address"));
        let routed = connection.route(None);
        let policed = Policed::begin(&routed, true, &NoHeaders, None).expect("it has a policy");
        let way = Way {
            worker: &worker,
            original: connection.original,
            target: &routed.target,
            key: &Key::default(),
        };
        let delay = policed.hedge_delay().expect("it is hedged");
        let race = Race {
            way,
            policed: &policed,
            delay,
        };
        let begun = Instant::now();
        let peers = std::cell::RefCell::new(Vec::new());
        let lap = |hop: Hop| -> Lap<'_, Said, usize> {
            let nth = peers.borrow().len();
            assert!(!peers.borrow().contains(&hop.peer), "tried twice");
            peers.borrow_mut().push(hop.peer);
            let (millis, end) = tries[nth];
            Box::pin(async move {
                sleep(Duration::from_millis(millis)).await;
                end.map(|is_good| Said(is_good, nth)).map_err(|()| nth)
            })
        };
        let first = way.choose().expect("an endpoint");
        let ended = race.run(first, &mut Tried::default(), lap).await;
        (ended, begun.elapsed().as_millis())
    }

    #[test]
    fn the_first_good_answer_wins_whichever_try_it_is_of() {
        run_paused(async {
            let quick = raced(&[(900, Ok(true))]).await;
            assert_eq!(quick, (Ok(Said(true, 0)), 900));
            let overtaken = raced(&[(9000, Ok(true)), (300, Ok(true))]).await;
            assert_eq!(overtaken, (Ok(Said(true, 1)), 1300));
            let late = raced(&[(2500, Ok(true)), (9000, Ok(true)), (9000, Ok(true))]).await;
            assert_eq!(late, (Ok(Said(true, 0)), 2500));
        });
    }

    #[test]
    fn a_bad_answer_is_taken_when_nobody_is_left_who_could_do_better() {
        run_paused(async {
            let alone = raced(&[(900, Ok(false))]).await;
            assert_eq!(alone, (Ok(Said(false, 0)), 900));
            let better = raced(&[(1500, Ok(true)), (100, Ok(false))]).await;
            assert_eq!(better, (Ok(Said(true, 0)), 1500));
            let lost = [(5000, Ok(false)), (100, Err(())), (100, Ok(false))];
            assert_eq!(raced(&lost).await, (Ok(Said(false, 0)), 5000));
            let nobody = [(2500, Err(())), (100, Err(())), (1000, Err(()))];
            assert_eq!(raced(&nobody).await, (Err(2), 3000));
        });
    }
}
