//! Spans on their way from the workers to the control thread: each worker has a lane of its own, of
//! bytes as they are sent. A full one loses what comes, and counts it; nobody waits.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use outrigger_config::Tracing;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::protobuf::Fields;

/// Bytes that a span may take on average: an ordinary one has some 450.
const SPAN_BYTES: usize = 512;

/// Bytes of a lane kept once it is empty, so that a burst does not stay in memory.
const KEPT: usize = 64 * 1024;

/// Why spans were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    QueueFull,
    /// The collector would not have them.
    Rejected,
    /// The collector could not be reached, or could not take them, for too long.
    Undeliverable,
}

impl Loss {
    const ALL: [Self; 3] = [Self::QueueFull, Self::Rejected, Self::Undeliverable];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Rejected => "rejected",
            Self::Undeliverable => "undeliverable",
        }
    }
}

/// What all threads share of tracing.
#[derive(Debug)]
pub(crate) struct Tracer {
    lanes: Box<[Lane]>,
    /// Spans that one lane may hold.
    max_spans: AtomicUsize,
    /// From how many spans in one lane on the control thread does not wait for more.
    urgent: AtomicUsize,
    wake: Notify,
    is_closing: AtomicBool,
    settings: watch::Sender<Option<Arc<Tracing>>>,
    exported: AtomicU64,
    dropped: [AtomicU64; Loss::ALL.len()],
    exports: [AtomicU64; 2],
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    spans: usize,
}

impl Lane {
    /// Held for a span's encoding, or an exchange of pointers.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For `/metrics`.
#[derive(Clone, Debug)]
pub(crate) struct TraceFigures {
    pub(crate) exported: u64,
    pub(crate) dropped: [(&'static str, u64); 3],
    pub(crate) exports: [(&'static str, u64); 2],
    pub(crate) waiting: u64,
}

impl Tracer {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            lanes: (0..workers).map(|_| Lane::default()).collect(),
            max_spans: AtomicUsize::new(0),
            urgent: AtomicUsize::new(0),
            wake: Notify::new(),
            is_closing: AtomicBool::new(false),
            settings: watch::Sender::new(None),
            exported: AtomicU64::new(0),
            dropped: Default::default(),
            exports: Default::default(),
        }
    }

    /// Follows the settings of a configuration that is about to be in force.
    pub(crate) fn follow(&self, settings: Option<&Tracing>) {
        if let Some(settings) = settings {
            let of_lane = |spans: u32| (spans as usize).div_ceil(self.lanes.len());
            self.max_spans
                .store(of_lane(settings.max_queue), Ordering::Relaxed);
            self.urgent
                .store(of_lane(settings.max_batch), Ordering::Relaxed);
        }
        self.settings.send_if_modified(|now| {
            let has_changed = now.as_deref() != settings;
            if has_changed {
                *now = settings.cloned().map(Arc::new);
            }
            has_changed
        });
    }

    pub(super) fn settings(&self) -> watch::Receiver<Option<Arc<Tracing>>> {
        self.settings.subscribe()
    }

    /// Lets `encode` append `spans` spans, unless the worker's lane is full.
    pub(super) fn push(&self, worker: usize, spans: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        let max = self.max_spans.load(Ordering::Relaxed);
        let mut waiting = self.lanes[worker].lock();
        let before = waiting.spans;
        if before + spans > max || waiting.bytes.len() >= max * SPAN_BYTES {
            drop(waiting);
            return self.drop_spans(Loss::QueueFull, spans);
        }
        encode(&mut waiting.bytes);
        waiting.spans = before + spans;
        let after = waiting.spans;
        drop(waiting);
        let urgent = self.urgent.load(Ordering::Relaxed);
        if before == 0 || before < urgent && after >= urgent {
            self.wake.notify_one();
        }
    }

    /// Waits for spans, and then for more of them, but no longer than `delay`; false if there are none
    /// and none will come.
    pub(super) async fn gather(&self, delay: Duration) -> bool {
        while self.waiting() == 0 {
            if self.is_closing() {
                return false;
            }
            self.wake.notified().await;
        }
        let deadline = Instant::now() + delay;
        while !self.is_urgent() && timeout_at(deadline, self.wake.notified()).await.is_ok() {}
        true
    }

    fn is_urgent(&self) -> bool {
        let urgent = self.urgent.load(Ordering::Relaxed);
        self.is_closing() || self.lanes.iter().any(|lane| lane.lock().spans >= urgent)
    }

    /// Empties all lanes into `taken`.
    pub(super) fn take(&self, taken: &mut Taken) {
        let mut spare = Waiting::default();
        for lane in &self.lanes {
            mem::swap(&mut *lane.lock(), &mut spare);
            taken.bytes.extend_from_slice(&spare.bytes);
            spare.bytes.clear();
            spare.bytes.shrink_to(KEPT);
            spare.spans = 0;
        }
    }

    /// No span comes any more; those that wait are sent without delay.
    pub(crate) fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Returns once [`Self::close`] was called.
    pub(super) async fn closed(&self) {
        while !self.is_closing() {
            self.wake.notified().await;
        }
        // Whoever waits next must know too.
        self.wake.notify_one();
    }

    pub(super) fn drop_spans(&self, why: Loss, count: usize) {
        self.dropped[why as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn note_exported(&self, count: usize) {
        self.exported.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// An export was answered, or not.
    pub(super) fn note_export(&self, is_success: bool) {
        self.exports[usize::from(is_success)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) -> u64 {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.dropped.iter().map(count).sum()
    }

    fn waiting(&self) -> usize {
        self.lanes.iter().map(|lane| lane.lock().spans).sum()
    }

    /// None while tracing is off.
    pub(crate) fn figures(&self) -> Option<TraceFigures> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.settings.borrow().as_ref()?;
        Some(TraceFigures {
            exported: count(&self.exported),
            dropped: Loss::ALL.map(|why| (why.label(), count(&self.dropped[why as usize]))),
            exports: [
                ("failure", count(&self.exports[0])),
                ("success", count(&self.exports[1])),
            ],
            waiting: self.waiting() as u64,
        })
    }
}

/// Spans that are being sent.
#[derive(Debug, Default)]
pub(super) struct Taken {
    bytes: Vec<u8>,
    start: usize,
}

/// The first of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) spans: usize,
}

impl Taken {
    /// At most `spans` spans and, unless one alone has more, `max_bytes` bytes; none if nothing is
    /// left.
    pub(super) fn batch(&self, max_spans: usize, max_bytes: usize) -> Option<Batch<'_>> {
        let left = &self.bytes[self.start..];
        let mut fields = Fields::of(left);
        let (mut spans, mut len) = (0, 0);
        while spans < max_spans && fields.next().is_some() {
            let end = left.len() - fields.rest().len();
            if spans > 0 && end > max_bytes {
                break;
            }
            (spans, len) = (spans + 1, end);
        }
        (spans > 0).then(|| Batch {
            bytes: &left[..len],
            spans,
        })
    }

    /// Forgets them all; returns how many there were.
    pub(super) fn clear(&mut self) -> usize {
        let spans = self
            .batch(usize::MAX, usize::MAX)
            .map_or(0, |all| all.spans);
        self.consume(self.bytes.len());
        spans
    }

    /// The first `len` bytes are done with.
    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
        if self.start >= self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::trace::protobuf::Message;

    fn tracer(workers: usize, max_queue: u32, max_batch: u32) -> Tracer {
        let text = format!(
            "tracing: {{ endpoint: 'http://[::1]', max_queue: {max_queue}, max_batch: {max_batch} }}"
        );
        let settings = outrigger_config::parse(&text).expect("good settings");
        let tracer = Tracer::new(workers);
        tracer.follow(settings.tracing.as_ref());
        tracer
    }

    fn push(tracer: &Tracer, worker: usize, len: usize) {
        tracer.push(worker, 1, |out| {
            Message::new(out).bytes(2, &vec![b'x'; len])
        });
    }

    fn lens(taken: &mut Taken, max_spans: usize, max_bytes: usize) -> Vec<usize> {
        let mut lens = Vec::new();
        while let Some(batch) = taken.batch(max_spans, max_bytes) {
            lens.push(batch.spans);
            let len = batch.bytes.len();
            taken.consume(len);
        }
        lens
    }

    #[test]
    fn a_full_lane_loses_what_comes_and_counts_it() {
        let tracer = tracer(2, 8, 4);
        (0..6).for_each(|_| push(&tracer, 0, 10));
        push(&tracer, 1, 10);
        let figures = tracer.figures().expect("it is on");
        assert_eq!(
            (figures.waiting, figures.dropped[0]),
            (5, ("queue_full", 2))
        );
        // A request's spans go together or not at all.
        tracer.push(1, 4, |_| panic!("there is no room for four"));
        assert_eq!(tracer.dropped(), 6);
    }

    #[test]
    fn large_spans_fill_a_lane_before_it_has_as_many_as_it_may() {
        let tracer = tracer(1, 100, 1);
        (0..100).for_each(|_| push(&tracer, 0, 10 * SPAN_BYTES));
        assert_eq!(tracer.waiting(), 10);
    }

    #[test]
    fn what_is_taken_makes_room_and_comes_in_batches() {
        let tracer = tracer(2, 8, 4);
        (0..4).for_each(|_| push(&tracer, 0, 10));
        (0..3).for_each(|_| push(&tracer, 1, 10));
        let mut taken = Taken::default();
        tracer.take(&mut taken);
        assert_eq!(tracer.waiting(), 0);
        push(&tracer, 0, 10);
        assert_eq!(tracer.dropped(), 0);
        assert_eq!(lens(&mut taken, 3, 1000), [3, 3, 1]);
        tracer.take(&mut taken);
        assert_eq!(lens(&mut taken, 3, 1000), [1]);
        push(&tracer, 0, 10);
        tracer.take(&mut taken);
        assert_eq!((taken.clear(), taken.clear()), (1, 0));
    }

    #[test]
    fn a_batch_is_bounded_by_bytes_too_but_never_empty() {
        let tracer = tracer(1, 100, 1);
        [10, 10, 300, 10]
            .into_iter()
            .for_each(|len| push(&tracer, 0, len));
        let mut taken = Taken::default();
        tracer.take(&mut taken);
        assert_eq!(lens(&mut taken, 100, 30), [2, 1, 1]);
    }
}
