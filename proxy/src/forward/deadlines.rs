//! The time limits of one request, watched by one timer that is set anew only when it fires or a
//! sooner limit begins to run: what moves costs a look at the clock at most, and that only if the
//! policy limits idleness. A connection whose requests come one after the other hands its timer from
//! each to the next, whose limits lie later, so that it is hardly ever set.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use outrigger_config::RequestPolicy;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{deadline::after, failure::Failure};

/// Which limit has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Request,
    /// The client's own deadline (`grpc-timeout`).
    Grpc,
    Stream,
    Idle,
    Try,
    TryIdle,
}

impl Passed {
    pub(super) fn failure(self) -> Failure {
        match self {
            Self::Request | Self::Grpc => Failure::RequestTimeout,
            Self::Stream => Failure::StreamTimeout,
            Self::Idle => Failure::IdleTimeout,
            Self::Try | Self::TryIdle => Failure::TryTimeout,
        }
    }

    /// Whether an endpoint that has not answered is to blame, and not the client: a slow upload, or a
    /// deadline that nobody could have kept.
    pub(super) fn tells_of_endpoint(self, is_received: bool) -> bool {
        is_received && self != Self::Grpc
    }

    /// Whether only the present try is over, and another one may have time.
    pub(super) fn is_of_try(self) -> bool {
        matches!(self, Self::Try | Self::TryIdle)
    }
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes that have moved either way.
    pub(super) moved: u64,
    /// The whole request has come from the client.
    pub(super) is_received: bool,
    /// The head of an answer is there.
    pub(super) is_answered: bool,
}

#[derive(Debug)]
pub(super) struct Deadlines {
    request: Option<Duration>,
    idle: Option<Duration>,
    per_try: Option<Duration>,
    per_try_idle: Option<Duration>,
    /// Fixed from the beginning.
    stream: Option<Instant>,
    grpc: Option<Instant>,
    received_at: Cell<Option<Instant>>,
    /// While a try is under way.
    tried_at: Cell<Option<Instant>>,
    is_answered: Cell<bool>,
    moved: Cell<u64>,
    moved_at: Cell<Instant>,
    timer: RefCell<Timer>,
}

/// Fires when the sooner of its limits may have passed, or earlier.
pub(super) type Timer = Pin<Box<Sleep>>;

impl Deadlines {
    /// Of a request whose head came at `begun`, with the deadline that its client gave it and the timer
    /// of the request before it, if there is one.
    pub(super) fn new(
        policy: &RequestPolicy,
        grpc: Option<Duration>,
        begun: Instant,
        timer: Option<Timer>,
    ) -> Self {
        let retry = policy.retry.as_ref();
        let is_hedged_on_timeout = retry
            .and_then(|r| r.hedge.as_ref())
            .is_some_and(|h| h.on_per_try_timeout);
        let per_try = retry.and_then(|r| r.per_try_timeout).map(|t| t.0);
        let this = Self {
            request: policy.timeout,
            idle: policy.idle_timeout,
            // Such a try goes on.
            per_try: per_try.filter(|_| !is_hedged_on_timeout),
            per_try_idle: retry.and_then(|r| r.per_try_idle_timeout).map(|t| t.0),
            stream: policy.max_stream_duration.map(|d| after(begun, d)),
            grpc: grpc.map(|d| after(begun, d)),
            received_at: Cell::new(None),
            tried_at: Cell::new(None),
            is_answered: Cell::new(false),
            moved: Cell::new(0),
            moved_at: Cell::new(begun),
            timer: RefCell::new(
                timer.unwrap_or_else(|| Box::pin(sleep_until(after(begun, Duration::MAX)))),
            ),
        };
        this.hasten();
        this
    }

    /// A try begins: there is a connection for it.
    pub(super) fn begin_try(&self) {
        let now = Instant::now();
        self.tried_at.set(Some(now));
        self.is_answered.set(false);
        self.set_moved(0, now);
        self.hasten();
    }

    /// A try is over; the request as a whole goes on.
    pub(super) fn end_try(&self) {
        self.tried_at.set(None);
    }

    /// For the next request.
    pub(super) fn into_timer(self) -> Timer {
        self.timer.into_inner()
    }

    /// What is left until the request as a whole is over; none if it has no end.
    pub(super) fn left(&self) -> Option<Duration> {
        let now = Instant::now();
        let request = self
            .request
            .map(|limit| after(self.received_at.get().unwrap_or(now), limit));
        let end = [request, self.grpc, self.stream]
            .into_iter()
            .flatten()
            .min()?;
        Some(end.saturating_duration_since(now))
    }

    /// The end of the tunnel that the request has become.
    pub(super) fn tunnel_end(&self) -> Option<Instant> {
        self.stream
    }

    /// Ready when a limit has passed.
    pub(super) fn poll(&self, cx: &mut Context<'_>, progress: Progress) -> Poll<Passed> {
        self.note(progress);
        let mut timer = self.timer.borrow_mut();
        loop {
            ready!(timer.as_mut().poll(cx));
            match self.next() {
                Some((due, passed)) if Instant::now() >= due => return Poll::Ready(passed),
                Some((due, _)) => timer.as_mut().reset(due),
                None => timer.as_mut().reset(after(Instant::now(), Duration::MAX)),
            }
        }
    }

    /// `future`, unless a limit passes before it is done.
    ///
    /// # Errors
    /// Which limit has passed.
    pub(super) async fn within<F: Future>(
        &self,
        future: F,
        progress: impl Fn() -> Progress,
    ) -> Result<F::Output, Passed> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll(cx, progress()).map(Err),
        })
        .await
    }

    fn note(&self, progress: Progress) {
        if progress.is_answered {
            self.is_answered.set(true);
        }
        if (self.idle.is_some() || self.per_try_idle.is_some())
            && progress.moved != self.moved.get()
        {
            self.set_moved(progress.moved, Instant::now());
        }
        if progress.is_received && self.received_at.get().is_none() {
            self.received_at.set(Some(Instant::now()));
            self.hasten();
        }
    }

    fn set_moved(&self, moved: u64, now: Instant) {
        self.moved.set(moved);
        self.moved_at.set(now);
    }

    /// Sets the timer to a limit that is sooner than what it waits for.
    fn hasten(&self) {
        let mut timer = self.timer.borrow_mut();
        if let Some((due, _)) = self.next()
            && due < timer.deadline()
        {
            timer.as_mut().reset(due);
        }
    }

    /// The limit that passes first, as things stand; of two at once the wider one.
    fn next(&self) -> Option<(Instant, Passed)> {
        let received = self.received_at.get();
        let moved_at = self.moved_at.get();
        let from = |start: Option<Instant>, limit: Option<Duration>| Some(after(start?, limit?));
        let tried_at = self.tried_at.get();
        let sent_at = received
            .zip(tried_at)
            .map(|(received, tried)| received.max(tried));
        [
            (from(received, self.request), Passed::Request),
            (self.grpc, Passed::Grpc),
            (self.stream, Passed::Stream),
            (from(Some(moved_at), self.idle), Passed::Idle),
            (
                from(sent_at, self.per_try).filter(|_| !self.is_answered.get()),
                Passed::Try,
            ),
            (
                from(tried_at.map(|tried| tried.max(moved_at)), self.per_try_idle),
                Passed::TryIdle,
            ),
        ]
        .into_iter()
        .filter_map(|(due, passed)| Some((due?, passed)))
        .min_by_key(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use outrigger_config::{Hedge, Retry, Span};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::testing::run_paused;

    const RECEIVED: Progress = Progress {
        moved: 0,
        is_received: true,
        is_answered: false,
    };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn policy() -> RequestPolicy {
        RequestPolicy {
            timeout: Some(seconds(10)),
            ..RequestPolicy::default()
        }
    }

    async fn passes(deadlines: &Deadlines, progress: Progress) -> (Passed, Duration) {
        let begun = Instant::now();
        let passed = deadlines.within(pending::<()>(), || progress).await;
        (passed.expect_err("a limit"), begun.elapsed())
    }

    #[test]
    fn a_request_is_timed_from_when_it_has_been_received() {
        run_paused(async {
            let deadlines = Deadlines::new(&policy(), None, Instant::now(), None);
            let uploading = deadlines.within(sleep(seconds(60)), Progress::default);
            uploading.await.expect("an upload is the client's affair");
            assert_eq!(
                passes(&deadlines, RECEIVED).await,
                (Passed::Request, seconds(10))
            );
        });
    }

    #[test]
    fn a_timer_of_an_earlier_request_ends_no_later_one_too_soon_or_too_late() {
        run_paused(async {
            for pause in [1, 9, 10, 100] {
                let deadlines = Deadlines::new(&policy(), None, Instant::now(), None);
                let answered = deadlines.within(sleep(seconds(1)), || RECEIVED).await;
                answered.expect("within its time");
                let timer = deadlines.into_timer();
                sleep(seconds(pause)).await;
                let deadlines = Deadlines::new(&policy(), None, Instant::now(), Some(timer));
                let passed = passes(&deadlines, RECEIVED).await;
                assert_eq!(passed, (Passed::Request, seconds(10)), "after {pause} s");
                // And one that is sooner.
                let now = Instant::now();
                let timer = Some(deadlines.into_timer());
                let deadlines = Deadlines::new(&policy(), Some(seconds(3)), now, timer);
                let passed = passes(&deadlines, RECEIVED).await;
                assert_eq!(passed, (Passed::Grpc, seconds(3)), "after {pause} s");
            }
        });
    }

    #[test]
    fn a_clients_own_deadline_and_a_streams_duration_count_from_the_head() {
        run_paused(async {
            let begun = Instant::now();
            let deadlines = Deadlines::new(&policy(), Some(seconds(3)), begun, None);
            assert_eq!(
                passes(&deadlines, Progress::default()).await,
                (Passed::Grpc, seconds(3))
            );
            let policy = RequestPolicy {
                max_stream_duration: Some(seconds(4)),
                ..policy()
            };
            let deadlines = Deadlines::new(&policy, None, Instant::now(), None);
            assert_eq!(
                passes(&deadlines, RECEIVED).await,
                (Passed::Stream, seconds(4))
            );
        });
    }

    #[test]
    fn idleness_counts_from_the_last_byte() {
        run_paused(async {
            let policy = RequestPolicy {
                idle_timeout: Some(seconds(5)),
                ..RequestPolicy::default()
            };
            let deadlines = Deadlines::new(&policy, None, Instant::now(), None);
            let moved = Cell::new(0);
            let progress = || Progress {
                moved: moved.get(),
                ..RECEIVED
            };
            let moving = async {
                for _ in 0..4 {
                    sleep(seconds(4)).await;
                    moved.set(moved.get() + 1);
                }
            };
            deadlines.within(moving, progress).await.expect("it moved");
            assert_eq!(
                passes(&deadlines, progress()).await,
                (Passed::Idle, seconds(5))
            );
        });
    }

    #[test]
    fn a_try_is_timed_until_its_answer_begins_and_anew_for_the_next_one() {
        run_paused(async {
            let policy = RequestPolicy {
                retry: Some(Retry {
                    per_try_timeout: Some(Span::from_secs(2)),
                    ..Retry::default()
                }),
                ..policy()
            };
            let deadlines = Deadlines::new(&policy, None, Instant::now(), None);
            deadlines.begin_try();
            assert_eq!(
                passes(&deadlines, RECEIVED).await,
                (Passed::Try, seconds(2))
            );
            deadlines.end_try();
            sleep(seconds(1)).await;
            deadlines.begin_try();
            assert_eq!(
                passes(&deadlines, RECEIVED).await,
                (Passed::Try, seconds(2))
            );
            assert_eq!(deadlines.left(), Some(seconds(5)));
            deadlines.begin_try();
            let answered = Progress {
                is_answered: true,
                ..RECEIVED
            };
            assert_eq!(
                passes(&deadlines, answered).await,
                (Passed::Request, seconds(5))
            );
        });
    }

    #[test]
    fn a_hedged_try_goes_on_beyond_its_time() {
        run_paused(async {
            let policy = RequestPolicy {
                retry: Some(Retry {
                    per_try_timeout: Some(Span::from_secs(2)),
                    hedge: Some(Hedge {
                        on_per_try_timeout: true,
                        delay: None,
                    }),
                    ..Retry::default()
                }),
                ..policy()
            };
            let deadlines = Deadlines::new(&policy, None, Instant::now(), None);
            assert_eq!(
                passes(&deadlines, RECEIVED).await,
                (Passed::Request, seconds(10))
            );
        });
    }

    #[test]
    fn what_has_no_limit_never_passes() {
        run_paused(async {
            let deadlines = Deadlines::new(&RequestPolicy::default(), None, Instant::now(), None);
            let watched = deadlines.within(pending::<()>(), || RECEIVED);
            timeout(seconds(86_400), watched)
                .await
                .expect_err("nothing passes");
            assert_eq!(deadlines.left(), None);
        });
    }
}
