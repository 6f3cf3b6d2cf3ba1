//! One request under the time limits and retries of its route. A request without any has none of
//! this, and pays a branch for it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use outrigger_config::{Headers, RequestPolicy, Retry};
use tokio::time::{Instant, sleep};

use super::deadlines::{Deadlines, Passed, Progress, Timer};
use crate::{
    cluster::{Cluster, Rng},
    dispatch::Target,
    failure::Failure,
    retry::{Fate, Moment, Repeatable, Retries, grpc},
    route::Routed,
};

/// The header that says which try of its request a request is, counted from 1; Envoy's.
pub(super) const ATTEMPT_COUNT: &str = "x-envoy-attempt-count";

#[derive(Debug)]
pub(super) struct Policed {
    policy: Arc<RequestPolicy>,
    pub(super) deadlines: Deadlines,
    retries: Retries,
    cluster: Option<Arc<Cluster>>,
    is_idempotent: bool,
    is_grpc: bool,
}

impl Policed {
    /// Of a request that begins now; none if its route sets no limits. `timer` is that of the request
    /// before it.
    pub(super) fn begin(
        routed: &Routed,
        is_idempotent: bool,
        headers: &dyn Headers,
        timer: Option<Timer>,
    ) -> Option<Self> {
        let policy = routed.limits.clone()?;
        let cluster = match &routed.target {
            Target::Original => None,
            Target::Cluster(onward) => Some(onward.cluster.clone()),
        };
        let is_grpc = is_grpc(headers);
        let deadline = is_grpc.then(|| grpc_deadline(&policy, headers)).flatten();
        Some(Self {
            is_grpc,
            deadlines: Deadlines::new(&policy, deadline, Instant::now(), timer),
            retries: Retries::new(cluster.clone()),
            cluster,
            is_idempotent,
            policy,
        })
    }

    /// For the next request.
    pub(super) fn into_timer(self) -> Timer {
        self.deadlines.into_timer()
    }

    pub(super) fn retry(&self) -> Option<&Retry> {
        self.policy.retry.as_ref()
    }

    /// Decides after a try that came to `fate`; the pause before the next one, if there is to be one.
    pub(super) fn again(&self, fate: Fate<'_>, is_kept: bool, rng: &Rng) -> Option<Duration> {
        let request = Repeatable {
            is_idempotent: self.is_idempotent,
            is_kept,
        };
        let moment = || Moment {
            rng,
            now: SystemTime::now(),
            left: self.deadlines.left(),
        };
        self.retries.again(self.retry()?, fate, request, moment)
    }

    /// The same where there was no connection, or no endpoint to try.
    pub(super) fn again_after(
        &self,
        failure: Failure,
        is_kept: bool,
        rng: &Rng,
    ) -> Option<Duration> {
        let is_connection = matches!(
            failure,
            Failure::ConnectRefused
                | Failure::ConnectUnreachable
                | Failure::ConnectTimeout
                | Failure::UpstreamClosed
        );
        is_connection.then(|| self.again(Fate::NotConnected, is_kept, rng))?
    }

    /// After how long without an answer another try begins beside the one under way, if the request may
    /// be hedged.
    pub(super) fn hedge_delay(&self) -> Option<Duration> {
        let retry = self.retry()?;
        let hedge = retry.hedge.as_ref()?;
        if !self.is_idempotent && !retry.non_idempotent {
            return None;
        }
        let per_try = retry.per_try_timeout.filter(|_| hedge.on_per_try_timeout);
        let delay = hedge.delay.into_iter().chain(per_try).min()?;
        Some(delay.0)
    }

    /// Counts a try that begins beside others; false if there may be none.
    pub(super) fn hedge(&self) -> bool {
        self.retry().is_some_and(|retry| self.retries.hedge(retry))
    }

    /// Waits before the next try, unless the client goes meanwhile.
    ///
    /// # Errors
    /// What ends the request meanwhile.
    pub(super) async fn pause(
        &self,
        pause: Duration,
        client_gone: impl Future,
    ) -> Result<(), Failure> {
        if pause.is_zero() {
            return Ok(());
        }
        let waiting = async {
            tokio::select! {
                () = sleep(pause) => Ok(()),
                _ = client_gone => Err(Failure::ClientClosed),
            }
        };
        let waited = self.deadlines.within(waiting, Progress::default).await;
        waited.unwrap_or_else(|passed| Err(self.passed(passed)))
    }

    /// Whether the next try had better go to another endpoint.
    pub(super) fn prefers_others(&self) -> bool {
        self.retry().is_none_or(|retry| retry.other_endpoint)
    }

    /// Bytes of a body of this length, if it is known, that are worth keeping for another try.
    pub(super) fn keeps(&self, length: Option<u64>) -> usize {
        let most = match self.retry() {
            Some(retry) if self.is_idempotent || retry.non_idempotent => retry.max_body_bytes,
            _ => 0,
        };
        if length.is_some_and(|length| length > most as u64) {
            return 0;
        }
        most
    }

    /// The number of the present try, if tries carry theirs.
    pub(super) fn attempt(&self) -> Option<u32> {
        let is_asked = self.retry()?.attempt_count;
        is_asked.then(|| self.retries.made() + 1)
    }

    /// The client is to be told `100 Continue`; false if it has been already.
    pub(super) fn first_continue(&self) -> bool {
        self.retries.first_continue()
    }

    /// The client gets an answer of this status.
    pub(super) fn settle(&self, status: u16) {
        self.retries.settle(status < 500);
    }

    /// Counts a limit that has passed.
    pub(super) fn passed(&self, passed: Passed) -> Failure {
        if let Some(cluster) = &self.cluster {
            let count = match passed.is_of_try() {
                true => &cluster.counts.try_timeouts,
                false => &cluster.counts.request_timeouts,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        passed.failure()
    }

    /// What a gRPC endpoint is to be told as the deadline, if its client has one or we do.
    pub(super) fn grpc_timeout(&self) -> Option<String> {
        if !self.is_grpc {
            return None;
        }
        Some(grpc::format_timeout(self.deadlines.left()?))
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.is_grpc
    }
}

/// The deadline that a gRPC client gives its request, as the policy takes it.
fn grpc_deadline(policy: &RequestPolicy, headers: &dyn Headers) -> Option<Duration> {
    let mut said = None;
    headers.each(grpc::TIMEOUT, &mut |value| {
        said = said.or(grpc::parse_timeout(value));
    });
    let settings = &policy.grpc_timeout;
    let max = settings.max.map(|max| max.0);
    let limit = said.into_iter().chain(max).min()?;
    let earlier = limit.checked_sub(settings.offset.0);
    Some(earlier.filter(|e| !e.is_zero()).unwrap_or(limit))
}

pub(super) fn is_grpc(headers: &dyn Headers) -> bool {
    let mut is_grpc = false;
    headers.each("content-type", &mut |value| is_grpc |= grpc::is_grpc(value));
    is_grpc
}
