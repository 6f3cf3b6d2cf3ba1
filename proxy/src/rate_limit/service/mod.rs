//! The global rate limit service: `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`.
//!
//! A worker encodes the question, hands it to the thread that speaks to services (`client`) and goes
//! on with other requests; the request whose question it is waits for the answer, `timeout` at most.
//! What was said to be over its limit is remembered until that is reset (`cache`), and then nobody
//! need be asked.

mod cache;
mod client;
mod message;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use outrigger_config::{RateLimit, RateLimitService};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use self::{
    cache::Cache,
    client::Ask,
    message::{Code, Descriptor, DescriptorStatus, RateLimitRequest, RateLimitResponse, Unit},
};
use super::{
    buckets::{Key, Keys},
    descriptor,
    told::{Headers, Quota, add_foreign},
};
use crate::{
    cluster::{Cluster, Clusters},
    shared::Shared,
};

/// A body that a service wants said is cut here.
const MAX_BODY: usize = 16 * 1024;

/// One service, as a configuration has it.
#[derive(Debug)]
pub(crate) struct Service {
    pub(super) settings: RateLimitService,
    cluster: Arc<Cluster>,
    pub(crate) state: Arc<ServiceState>,
    asks: mpsc::UnboundedSender<Ask>,
}

/// What outlives a configuration.
#[derive(Debug, Default)]
pub(crate) struct ServiceState {
    pub(crate) counts: ServiceCounts,
    pending: AtomicUsize,
    cache: Cache,
    keys: Keys,
}

/// Questions, by what came of them.
#[derive(Debug, Default)]
pub(crate) struct ServiceCounts {
    pub(crate) ok: AtomicU64,
    pub(crate) over_limit: AtomicU64,
    /// The service could not be reached, or said something else.
    pub(crate) errors: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    /// Too many questions were under way.
    pub(crate) overflows: AtomicU64,
    /// Not asked: it was known to be over the limit.
    pub(crate) cache_hits: AtomicU64,
    /// Let pass without an answer.
    pub(crate) failure_mode_allowed: AtomicU64,
    /// Turned away without an answer.
    pub(crate) failure_mode_denied: AtomicU64,
}

/// What one limit asks.
#[derive(Debug)]
pub(super) struct Question(Descriptor);

/// What a service says.
#[derive(Debug)]
pub(super) struct Answer {
    /// One for each question.
    pub(super) statuses: Vec<Status>,
    pub(super) response_headers: Headers,
    pub(super) request_headers: Headers,
    pub(super) body: Option<Bytes>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) is_over: bool,
    pub(super) quota: Option<Quota>,
}

/// All services of a process, and the thread that speaks to them once there is one.
#[derive(Debug, Default)]
pub(super) struct Services {
    by_name: Mutex<HashMap<Box<str>, Arc<Service>>>,
    asks: OnceLock<mpsc::UnboundedSender<Ask>>,
}

impl Services {
    pub(super) fn follow(
        &self,
        shared: &Arc<Shared>,
        wanted: &[RateLimitService],
        clusters: &Clusters,
    ) {
        if wanted.is_empty() && self.asks.get().is_none() {
            return;
        }
        let asks = self.asks.get_or_init(|| client::start(shared));
        let mut by_name = self.lock();
        let before = std::mem::take(&mut *by_name);
        for settings in wanted {
            let Some(cluster) = clusters.find(&settings.cluster) else {
                continue;
            };
            let known = before.get(settings.name.as_str());
            let service = Service {
                settings: settings.clone(),
                cluster,
                state: known.map_or_else(Arc::default, |known| known.state.clone()),
                asks: asks.clone(),
            };
            by_name.insert(settings.name.as_str().into(), Arc::new(service));
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Service>> {
        self.lock().get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Service>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Service>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    pub(super) fn new(entries: Vec<(String, String)>, limit: &RateLimit) -> Self {
        Self(Descriptor::new(entries, limit))
    }

    fn key(&self, keys: &Keys) -> Key {
        let entries = self.0.entries.iter();
        let entries = entries.map(|e| (e.key.as_str(), e.value.as_str()));
        // What the service is asked to apply is a limit of its own.
        let limit = self
            .0
            .limit
            .map(|l| format!("{} {}", l.requests_per_unit, l.unit));
        let limit = limit.as_deref().map(|limit| ("", limit));
        descriptor::key_of(keys, entries.chain(limit))
    }
}

impl Service {
    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    pub(crate) fn pending(&self) -> usize {
        self.state.pending.load(Ordering::Relaxed)
    }

    /// Whether what it does not answer for is turned away; counts it so.
    pub(super) fn denies_unanswered(&self) -> bool {
        let counts = &self.state.counts;
        count(if self.settings.failure_mode_deny {
            &counts.failure_mode_denied
        } else {
            &counts.failure_mode_allowed
        });
        self.settings.failure_mode_deny
    }

    /// What the service says; none if it does not answer in time.
    pub(super) async fn ask<'q>(
        &self,
        questions: impl Iterator<Item = &'q Question> + Clone,
    ) -> Option<Answer> {
        let counts = &self.state.counts;
        let keys: Vec<_> = questions.clone().map(|q| q.key(&self.state.keys)).collect();
        if let Some(answer) = self.remembered(&keys) {
            count(&counts.cache_hits);
            return Some(answer);
        }
        let Some(_pending) = self.pending_place() else {
            count(&counts.overflows);
            return None;
        };
        let request = RateLimitRequest {
            domain: self.settings.domain.clone(),
            descriptors: questions.map(|q| q.0.clone()).collect(),
        };
        let deadline = Instant::now() + self.settings.timeout.0;
        let (answer, answered) = oneshot::channel();
        let ask = Ask {
            cluster: self.cluster.clone(),
            message: request.encode_to_vec().into(),
            deadline,
            answer,
        };
        // That thread may have ended, or be busy: neither keeps the request for longer.
        let answered = match self.asks.send(ask) {
            Ok(()) => tokio::time::timeout_at(deadline.into(), answered).await,
            Err(_) => Ok(Ok(Err(client::Unanswered::Failed))),
        };
        let message = match answered {
            Ok(Ok(Ok(message))) => message,
            Err(_) | Ok(Ok(Err(client::Unanswered::TooLate))) => {
                count(&counts.timeouts);
                return None;
            }
            Ok(Ok(Err(client::Unanswered::Failed)) | Err(_)) => {
                count(&counts.errors);
                return None;
            }
        };
        let Some(answer) = read(message, keys.len()) else {
            count(&counts.errors);
            return None;
        };
        let is_over = answer.statuses.iter().any(|status| status.is_over);
        count(if is_over {
            &counts.over_limit
        } else {
            &counts.ok
        });
        self.remember(&keys, &answer.statuses);
        Some(answer)
    }

    /// The answer, if one of these is known to be over its limit: what the service would say of the
    /// others changes nothing then.
    fn remembered(&self, keys: &[Key]) -> Option<Answer> {
        if self.settings.cache_entries == 0 {
            return None;
        }
        let now = Instant::now();
        let known: Vec<_> = keys
            .iter()
            .map(|key| self.state.cache.over(*key, now))
            .collect();
        known.iter().any(Option::is_some).then(|| Answer {
            statuses: known
                .into_iter()
                .map(|known| {
                    known.unwrap_or(Status {
                        is_over: false,
                        quota: None,
                    })
                })
                .collect(),
            response_headers: Headers::new(),
            request_headers: Headers::new(),
            body: None,
        })
    }

    fn remember(&self, keys: &[Key], statuses: &[Status]) {
        let max = self.settings.cache_entries as usize;
        let now = Instant::now();
        for (key, status) in keys.iter().zip(statuses) {
            if let Some(quota) = status
                .quota
                .filter(|q| status.is_over && !q.reset.is_zero())
            {
                let lasts = quota.reset.min(self.settings.cache_max_age.0);
                self.state.cache.remember(*key, *status, lasts, max, now);
            }
        }
    }

    fn pending_place(&self) -> Option<PendingPlace<'_>> {
        let pending = &self.state.pending;
        let place = PendingPlace(pending);
        let before = pending.fetch_add(1, Ordering::Relaxed);
        (before < self.settings.max_pending_requests.get() as usize).then_some(place)
    }
}

/// Given back when dropped.
struct PendingPlace<'a>(&'a AtomicUsize);

impl Drop for PendingPlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// None if this is no answer to `questions` questions.
fn read(message: Bytes, questions: usize) -> Option<Answer> {
    let response = RateLimitResponse::decode(message).ok()?;
    let is_over_all = match response.overall_code() {
        Code::Unknown => return None,
        Code::Ok => false,
        Code::OverLimit => true,
    };
    let mut statuses: Vec<_> = response.statuses.iter().map(Status::of).collect();
    // Without a status for each question, what is said of all holds for each; and when none is over
    // by itself, all are.
    if statuses.len() != questions {
        let status = Status {
            is_over: is_over_all,
            quota: None,
        };
        statuses = vec![status; questions];
    } else if !is_over_all {
        statuses.iter_mut().for_each(|s| s.is_over = false);
    } else if !statuses.iter().any(|s| s.is_over) {
        statuses.iter_mut().for_each(|s| s.is_over = true);
    }
    let headers = |added: &[message::HeaderValue]| {
        let mut headers = Headers::new();
        for header in added {
            let value = match header.raw_value.is_empty() {
                true => header.value.as_bytes(),
                false => &header.raw_value,
            };
            add_foreign(&mut headers, &header.key, value);
        }
        headers
    };
    Some(Answer {
        statuses,
        response_headers: headers(&response.response_headers_to_add),
        request_headers: headers(&response.request_headers_to_add),
        body: (!response.raw_body.is_empty()).then(|| {
            response
                .raw_body
                .slice(..response.raw_body.len().min(MAX_BODY))
        }),
    })
}

impl Status {
    fn of(status: &DescriptorStatus) -> Self {
        let limit = status.current_limit.and_then(|limit| {
            let window = Unit::try_from(limit.unit).ok()?.seconds()?;
            Some((u64::from(limit.requests_per_unit), window))
        });
        Self {
            is_over: status.code() == Code::OverLimit,
            quota: limit.map(|(allocated, window)| Quota {
                allocated,
                window,
                available: status.limit_remaining.into(),
                reset: (status.duration_until_reset)
                    .and_then(message::ProtoDuration::duration)
                    .unwrap_or(Duration::ZERO),
            }),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
