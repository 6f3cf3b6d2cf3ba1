//! The access logs: one line per finished request (HTTP) or connection (everything else), in each
//! log that wants it.

mod captured;
mod every;
mod format;
mod line;
mod sinks;
mod value;

use std::sync::Arc;

use outrigger_config::{AccessLog as Settings, AccessLogFilter, Percent, ResponseFlag};

pub use captured::{Captured, Wanted};
use format::{Format, Here};
use sinks::Sink;
pub use sinks::{Sinks, Unopened};

use super::Record;
use crate::{cluster::Rng, failure::Failure};

/// All logs of one configuration.
#[derive(Debug)]
pub struct AccessLogs {
    logs: Vec<Log>,
    /// None if no format asks for anything that a record lacks.
    wanted: Option<Arc<Wanted>>,
    here: Here,
}

#[derive(Debug)]
struct Log {
    sink: Arc<Sink>,
    format: Format,
    sample: Percent,
    filter: Option<AccessLogFilter>,
}

impl AccessLogs {
    /// Opens what the settings name; none if they turn every log off.
    ///
    /// # Errors
    /// The first file that cannot be opened.
    pub fn open(
        settings: &[Settings],
        sinks: &Sinks,
        instance: &str,
    ) -> Result<Option<Arc<Self>>, Unopened> {
        let mut wanted = Wanted::default();
        let mut logs = Vec::new();
        for log in settings {
            if let Some(sink) = sinks.sink(&log.to)? {
                logs.push(Log {
                    sink,
                    format: Format::of(&log.format, &mut wanted),
                    sample: log.sample,
                    filter: log.filter.clone(),
                });
            }
        }
        let hostname = rustix::system::uname();
        Ok((!logs.is_empty()).then(|| {
            Arc::new(Self {
                logs,
                wanted: (wanted != Wanted::default()).then(|| Arc::new(wanted)),
                here: Here {
                    instance: instance.into(),
                    hostname: hostname.nodename().to_string_lossy().into(),
                },
            })
        }))
    }

    /// Writes a line to each log that wants it, or counts it as lost if the disk has not kept up;
    /// never waits for it.
    pub fn write(&self, worker: usize, record: &Record<'_>, rng: &Rng) {
        for log in &self.logs {
            if log.wants(record, rng) {
                log.sink.push(worker, |out| {
                    let now = jiff::Timestamp::now();
                    log.format.write(out, &self.here, now, record);
                });
            }
        }
    }

    pub fn wanted(&self) -> Option<&Arc<Wanted>> {
        self.wanted.as_ref()
    }
}

impl Log {
    fn wants(&self, record: &Record<'_>, rng: &Rng) -> bool {
        self.filter.as_ref().is_none_or(|f| passes(f, record))
            && (self.sample.0 >= 100 || rng.next() % 100 < u64::from(self.sample.0))
    }
}

/// Whether everything that `filter` says holds.
fn passes(filter: &AccessLogFilter, record: &Record<'_>) -> bool {
    let AccessLogFilter {
        status,
        duration,
        flags,
        and,
        or,
        not,
    } = filter;
    let flag = record.failure.map(Failure::flag);
    status.is_none_or(|range| {
        (record.status).is_some_and(|status| (range.min..=range.max).contains(&status))
    }) && duration.is_none_or(|range| {
        range.min.is_none_or(|min| record.duration >= min.0)
            && range.max.is_none_or(|max| record.duration <= max.0)
    }) && flags.as_ref().is_none_or(|flags| {
        flag.is_some_and(|flag: ResponseFlag| flags.is_empty() || flags.contains(&flag))
    }) && and.iter().all(|filter| passes(filter, record))
        && (or.is_empty() || or.iter().any(|filter| passes(filter, record)))
        && not.as_ref().is_none_or(|filter| !passes(filter, record))
}

/// A request target in which nothing is secret: without user and password, and of query parameters
/// the names alone.
fn shown_target(target: &[u8]) -> Vec<&[u8]> {
    let (scheme, rest) = without_userinfo(target);
    let (path, query) = split_query(rest);
    let mut pieces = vec![scheme, path];
    mask_query(query, b"*", &mut pieces);
    pieces
}

/// What stands before and after the user and password of an absolute-form target or an authority.
/// An origin-form target (`/…`) has none.
pub(super) fn without_userinfo(target: &[u8]) -> (&[u8], &[u8]) {
    if target.starts_with(b"/") {
        return (b"", target);
    }
    let start = memchr::memmem::find(target, b"://").map_or(0, |at| at + 3);
    let (scheme, rest) = target.split_at(start);
    let end = memchr::memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len());
    match memchr::memrchr(b'@', &rest[..end]) {
        Some(at) => (scheme, &rest[at + 1..]),
        None => (scheme, rest),
    }
}

pub(super) fn split_query(target: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'?', target) {
        Some(at) => target.split_at(at + 1),
        None => (target, b""),
    }
}

/// Names of query parameters without their values, which may be tokens, signatures or passwords:
/// `user=*&token=*`, where `mask` is `*`.
pub(super) fn mask_query<'a>(query: &'a [u8], mask: &'a [u8], pieces: &mut Vec<&'a [u8]>) {
    if query.is_empty() {
        return;
    }
    for (index, parameter) in query.split(|b| *b == b'&').enumerate() {
        if index > 0 {
            pieces.push(b"&");
        }
        if let Some(at) = memchr::memchr(b'=', parameter) {
            pieces.push(&parameter[..=at]);
        }
        pieces.push(mask);
    }
}

#[cfg(test)]
mod tests;
