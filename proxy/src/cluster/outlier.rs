//! Outlier detection: endpoints whose answers are worse than the others' are ejected for a while
//! (Envoy's algorithm and words). Rows of failures eject at once; comparisons, and the end of
//! ejections, happen in a sweep.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use outrigger_config::{FailurePercentage, OutlierDetection, SuccessRate};

use super::{endpoint::Endpoint, outcome::Outcome};

/// What is counted of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Tally {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Since the last sweep.
    requests: AtomicU32,
    successes: AtomicU32,
    /// Milliseconds since the endpoint was made.
    ejected_until: AtomicU64,
    /// What the ejection time is multiplied with; it falls by one a sweep without an ejection.
    multiplier: AtomicU32,
}

/// Who is compared with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    Cluster,
    /// One destination by itself: there is no percentage of one endpoint.
    Alone,
}

/// One ejection at a time, so that two workers never eject more than allowed together.
#[derive(Debug, Default)]
pub(super) struct Outlier(Mutex<()>);

impl Outlier {
    /// Notes an outcome; true when it ejected the endpoint. `all` is only looked at when it might.
    pub(super) fn observe<'a, I>(
        &self,
        settings: &OutlierDetection,
        endpoint: &Endpoint,
        outcome: Outcome,
        company: Company,
        all: impl FnOnce() -> I,
        now: Instant,
    ) -> bool
    where
        I: Iterator<Item = &'a Endpoint>,
    {
        if !endpoint.tally.note(settings, outcome) || endpoint.is_ejected() {
            return false;
        }
        let _one = self.lock();
        let mut ejections = Ejections::of(settings, company, all());
        ejections.eject(endpoint, now)
    }

    /// Ends ejections that are over and compares the endpoints; true when anything changed. To be
    /// called every `interval`.
    pub(super) fn sweep(
        &self,
        settings: &OutlierDetection,
        all: &[&Endpoint],
        now: Instant,
    ) -> bool {
        let _one = self.lock();
        let mut changed = false;
        for endpoint in all {
            changed |= end_if_over(endpoint, now);
        }
        let tallies: Vec<_> = all
            .iter()
            .filter(|e| !e.is_ejected())
            .map(|e| (*e, e.tally.take()))
            .collect();
        let mut ejections = Ejections::of(settings, Company::Cluster, all.iter().copied());
        if let Some(rate) = &settings.success_rate {
            for endpoint in below_mean(rate, &tallies) {
                changed |= ejections.eject(endpoint, now);
            }
        }
        if let Some(percentage) = &settings.failure_percentage {
            for endpoint in above_percentage(percentage, &tallies) {
                changed |= ejections.eject(endpoint, now);
            }
        }
        changed
    }

    /// Ends the ejections of endpoints that are compared no more: detection was turned off.
    pub(super) fn end_all<'a>(&self, all: impl Iterator<Item = &'a Endpoint>) {
        let _one = self.lock();
        for endpoint in all {
            endpoint.set_ejected(false);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the ejection if its time is over; true when it did.
pub(super) fn end_if_over(endpoint: &Endpoint, now: Instant) -> bool {
    let tally = &endpoint.tally;
    if !endpoint.is_ejected() {
        let multiplier = tally.multiplier.load(Ordering::Relaxed);
        tally
            .multiplier
            .store(multiplier.saturating_sub(1), Ordering::Relaxed);
        return false;
    }
    if endpoint.millis(now) < tally.ejected_until.load(Ordering::Relaxed) {
        return false;
    }
    tally.forgive();
    endpoint.set_ejected(false)
}

impl Tally {
    /// Counts; true when a row of failures is as long as ejects (or a multiple: a row that the cap
    /// let pass is judged again).
    fn note(&self, settings: &OutlierDetection, outcome: Outcome) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Success {
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
        let is_local = outcome == Outcome::LocalOriginFailure;
        let is_gateway = is_local || outcome == Outcome::GatewayFailure;
        let rows = [
            (
                &self.consecutive_5xx,
                outcome != Outcome::Success,
                settings.consecutive_5xx,
            ),
            (
                &self.consecutive_gateway,
                is_gateway,
                settings.consecutive_gateway_failure,
            ),
            (
                &self.consecutive_local,
                is_local,
                settings.consecutive_local_origin_failure,
            ),
        ];
        let mut ejects = false;
        for (row, is_longer, limit) in rows {
            if is_longer {
                let length = row.fetch_add(1, Ordering::Relaxed) + 1;
                ejects |= limit.is_some_and(|limit| length.is_multiple_of(limit.get()));
            } else if row.load(Ordering::Relaxed) != 0 {
                row.store(0, Ordering::Relaxed);
            }
        }
        ejects
    }

    /// Requests and successes since the last time.
    fn take(&self) -> (u32, u32) {
        let requests = self.requests.swap(0, Ordering::Relaxed);
        (
            requests,
            self.successes.swap(0, Ordering::Relaxed).min(requests),
        )
    }

    fn forgive(&self) {
        self.take();
        for row in [
            &self.consecutive_5xx,
            &self.consecutive_gateway,
            &self.consecutive_local,
        ] {
            row.store(0, Ordering::Relaxed);
        }
    }
}

/// How many more may be ejected. Counted afresh each time, which is rare, so that endpoints which
/// come and go cannot make it drift.
struct Ejections<'a> {
    settings: &'a OutlierDetection,
    left: usize,
}

impl<'a> Ejections<'a> {
    fn of<'e>(
        settings: &'a OutlierDetection,
        company: Company,
        all: impl Iterator<Item = &'e Endpoint>,
    ) -> Self {
        let (mut total, mut ejected) = (0, 0);
        for endpoint in all {
            total += 1;
            ejected += usize::from(endpoint.is_ejected());
        }
        let allowed = match company {
            Company::Alone => 1,
            Company::Cluster => most_ejected(settings, total),
        };
        Self {
            settings,
            left: allowed.saturating_sub(ejected),
        }
    }

    fn eject(&mut self, endpoint: &Endpoint, now: Instant) -> bool {
        if self.left == 0 || !endpoint.set_ejected(true) {
            return false;
        }
        self.left -= 1;
        let times = endpoint.tally.multiplier.fetch_add(1, Ordering::Relaxed) + 1;
        let until = endpoint.millis(now) + ejection_time(self.settings, times).as_millis() as u64;
        endpoint.tally.ejected_until.store(until, Ordering::Relaxed);
        endpoint.counts.ejections.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// Endpoints ejected at once, at most. One may always be, where another is left.
pub(super) fn most_ejected(settings: &OutlierDetection, total: usize) -> usize {
    let share = total * usize::from(settings.max_ejection_percent.0) / 100;
    share.max(usize::from(total >= 2))
}

fn ejection_time(settings: &OutlierDetection, times: u32) -> Duration {
    let base = settings.base_ejection_time.0;
    base.saturating_mul(times)
        .min(settings.max_ejection_time.0.max(base))
}

fn below_mean<'a>(rate: &SuccessRate, tallies: &[(&'a Endpoint, (u32, u32))]) -> Vec<&'a Endpoint> {
    let rates: Vec<_> = tallies
        .iter()
        .filter(|(_, (requests, _))| *requests >= rate.request_volume.get())
        .map(|(endpoint, (requests, successes))| {
            (*endpoint, f64::from(*successes) / f64::from(*requests))
        })
        .collect();
    if rates.is_empty() || rates.len() < rate.minimum_hosts.get() as usize {
        return Vec::new();
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, r)| r).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / count;
    let threshold = mean - rate.stdev_factor * variance.sqrt();
    // Rounding must not make outliers of endpoints that are all alike.
    let outliers = rates.iter().filter(|(_, r)| *r < threshold - 1e-9);
    outliers.map(|(endpoint, _)| *endpoint).collect()
}

fn above_percentage<'a>(
    percentage: &FailurePercentage,
    tallies: &[(&'a Endpoint, (u32, u32))],
) -> Vec<&'a Endpoint> {
    let judged: Vec<_> = tallies
        .iter()
        .filter(|(_, (requests, _))| *requests >= percentage.request_volume.get())
        .collect();
    if judged.len() < percentage.minimum_hosts.get() as usize {
        return Vec::new();
    }
    let failing = judged.iter().filter(|(_, (requests, successes))| {
        u64::from(requests - successes) * 100
            >= u64::from(*requests) * u64::from(percentage.threshold.0)
    });
    failing.map(|(endpoint, _)| *endpoint).collect()
}

#[cfg(test)]
mod tests;
