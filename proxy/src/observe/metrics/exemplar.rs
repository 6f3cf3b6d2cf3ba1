//! Which trace to look at for a latency: of each bucket, the last exported request that fell into it.

use std::{
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::latency::{BUCKETS, bucket};
use crate::observe::{Record, SpanId, TraceId};

/// Of one destination; 720 bytes from its first exported request on.
#[derive(Debug, Default)]
pub struct Exemplars(OnceLock<Box<Mutex<OfBuckets>>>);

pub(crate) type OfBuckets = [Option<Exemplar>; BUCKETS];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Exemplar {
    trace: TraceId,
    span: SpanId,
    seconds: f64,
    at: SystemTime,
}

impl Exemplars {
    /// Takes note of a finished request, if its spans are exported.
    pub(crate) fn note(&self, record: &Record<'_>) {
        let Some(trace) = record.trace.filter(|trace| trace.is_exported) else {
            return;
        };
        if !record.is_latency() {
            return;
        }
        let exemplars = self.0.get_or_init(Box::default);
        let mut exemplars = exemplars.lock().unwrap_or_else(PoisonError::into_inner);
        exemplars[bucket(record.duration)] = Some(Exemplar {
            trace: trace.trace,
            span: trace.span,
            seconds: record.duration.as_secs_f64(),
            at: SystemTime::now(),
        });
    }

    /// One for each bucket that has one.
    pub(crate) fn all(&self) -> Option<OfBuckets> {
        let exemplars = self.0.get()?.lock();
        Some(*exemplars.unwrap_or_else(PoisonError::into_inner))
    }
}

/// As OpenMetrics writes it behind its bucket.
impl fmt::Display for Exemplar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace,
            span,
            seconds,
            at,
        } = self;
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(
            f,
            " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {seconds} {}.{:03}",
            at.as_secs(),
            at.subsec_millis()
        )
    }
}
