//! When the lease of the capture ran and when it did not. Time is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Windows that are remembered one by one.
const REMEMBERED: usize = 8;

/// Windows in which new connections went direct although a capture was held.
#[derive(Debug, Default)]
pub(super) struct Lapses {
    /// When the lease runs out, or ran out; `None`: no capture is held.
    ends: Option<Instant>,
    /// Whether the window that runs has been counted.
    is_lapsed: bool,
    count: u64,
    /// Of windows that have ended.
    total: Duration,
    /// The last that have ended, newest first.
    recent: VecDeque<Lapse>,
}

/// One such window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lapse {
    pub(super) began: Instant,
    /// None: it lasts.
    pub(super) length: Option<Duration>,
}

impl Lapses {
    /// A beat at `now` runs the lease on; `Some`: for how long it had been out.
    pub(super) fn renewed(&mut self, now: Instant, lease: Duration) -> Option<Duration> {
        self.has_lapsed(now);
        let window = self.close(now);
        self.ends = Some(now + lease);
        window
    }

    /// Whether the lease has run out since this was last asked.
    pub(super) fn has_lapsed(&mut self, now: Instant) -> bool {
        let is_new = self.is_newly_lapsed(now);
        if is_new {
            self.is_lapsed = true;
            self.count += 1;
        }
        is_new
    }

    /// The capture is let go: going direct is what is wanted from now on.
    pub(super) fn end(&mut self, now: Instant) {
        self.has_lapsed(now);
        self.close(now);
        self.ends = None;
    }

    pub(super) fn is_active(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| now < ends)
    }

    /// How many windows there were, with one that runs.
    pub(super) fn count(&self, now: Instant) -> u64 {
        self.count + u64::from(self.is_newly_lapsed(now))
    }

    /// The length of all windows, of one that runs too.
    pub(super) fn total(&self, now: Instant) -> Duration {
        let running = self.ends.map(|ends| now.saturating_duration_since(ends));
        self.total + running.unwrap_or_default()
    }

    /// The last windows, newest first, with one that runs.
    pub(super) fn recent(&self, now: Instant) -> Vec<Lapse> {
        let running = self.ends.filter(|ends| *ends <= now).map(|began| Lapse {
            began,
            length: None,
        });
        running
            .into_iter()
            .chain(self.recent.iter().copied())
            .collect()
    }

    fn is_newly_lapsed(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| ends <= now) && !self.is_lapsed
    }

    fn close(&mut self, now: Instant) -> Option<Duration> {
        let window = self.is_lapsed.then_some(self.ends)?;
        self.is_lapsed = false;
        let began = window?;
        let window = now.saturating_duration_since(began);
        self.total += window;
        self.recent.truncate(REMEMBERED - 1);
        self.recent.push_front(Lapse {
            began,
            length: Some(window),
        });
        Some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);

    #[test]
    fn a_window_lasts_from_the_leases_end_to_the_next_beat() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut lapses = Lapses::default();
        assert!(!lapses.is_active(at(0)) && !lapses.has_lapsed(at(0)));
        assert_eq!(lapses.renewed(at(0), LEASE), None);
        assert!(lapses.is_active(at(1)) && !lapses.has_lapsed(at(1)));
        assert_eq!(lapses.renewed(at(1), LEASE), None);

        assert!(!lapses.is_active(at(3)));
        assert_eq!(lapses.count(at(3)), 1, "counted before anybody looks");
        assert!(lapses.has_lapsed(at(3)));
        assert!(!lapses.has_lapsed(at(4)), "told once");
        assert_eq!((lapses.count(at(4)), lapses.total(at(4)).as_secs()), (1, 1));
        assert_eq!(lapses.renewed(at(8), LEASE), Some(Duration::from_secs(5)));
        assert_eq!((lapses.count(at(9)), lapses.total(at(9)).as_secs()), (1, 5));
        assert!(lapses.is_active(at(9)));
    }

    #[test]
    fn the_last_windows_are_remembered_newest_first() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut lapses = Lapses::default();
        lapses.renewed(at(0), LEASE);
        for n in 1..=10 {
            lapses.renewed(at(10 * n), LEASE);
        }
        let recent = lapses.recent(at(105));
        assert_eq!(recent.len(), REMEMBERED + 1);
        assert_eq!((recent[0].began, recent[0].length), (at(102), None));
        let of_eight = Some(Duration::from_secs(8));
        assert_eq!((recent[1].began, recent[1].length), (at(92), of_eight));
        assert_eq!(lapses.recent(at(101)).len(), REMEMBERED, "none lasts");
    }

    /// A process that is stopped and continued looks only after the fact.
    #[test]
    fn a_window_that_nobody_saw_begin_is_counted_too() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut lapses = Lapses::default();
        lapses.renewed(at(0), LEASE);
        assert_eq!(lapses.renewed(at(10), LEASE), Some(Duration::from_secs(8)));
        assert_eq!(
            (lapses.count(at(10)), lapses.total(at(10)).as_secs()),
            (1, 8)
        );
    }

    #[test]
    fn a_capture_that_is_let_go_lapses_no_more() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut lapses = Lapses::default();
        lapses.renewed(at(0), LEASE);
        lapses.end(at(1));
        assert!(!lapses.is_active(at(1)) && !lapses.has_lapsed(at(9)));
        assert_eq!((lapses.count(at(9)), lapses.total(at(9)).as_secs()), (0, 0));
        lapses.renewed(at(10), LEASE);
        lapses.end(at(13));
        assert_eq!(
            (lapses.count(at(20)), lapses.total(at(20)).as_secs()),
            (1, 1)
        );
    }
}
