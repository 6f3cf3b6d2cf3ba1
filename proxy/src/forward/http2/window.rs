//! A connection's receive window: always [`CONNECTION_WINDOW`] beyond what its stalled streams hold.
//!
//! A stream whose other side does not take its data holds at most [`STREAM_WINDOW`] bytes. With a
//! fixed connection window a few such streams would use it up, and every other stream of the
//! connection would stand still with them. So the window grows by what they hold, within a budget
//! that bounds memory: of the connection, and of all HTTP/2 connections of the worker.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
};

use super::settings::{CONNECTION_WINDOW, STREAM_WINDOW};

/// The window moves in steps, so that a stream which stalls now and then changes nothing.
const STEP: usize = STREAM_WINDOW as usize;

/// Growth of one connection: 64 streams stalled with full windows.
const MAX_GROWTH: usize = 64 * STEP;

/// Growth of all HTTP/2 connections of a worker together, 64 MiB.
const WORKER_BUDGET: usize = 256 * STEP;

/// What is left of a worker's growth.
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(WORKER_BUDGET))
    }
}

/// The account of one connection.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    held: Cell<usize>,
    growth: Cell<usize>,
    budget: Rc<Budget>,
    /// The task that polls the connection.
    task: RefCell<Option<Waker>>,
}

impl ReceiveWindow {
    pub(super) fn new(budget: Rc<Budget>) -> Self {
        Self {
            held: Cell::new(0),
            growth: Cell::new(0),
            budget,
            task: RefCell::default(),
        }
    }

    /// A stream of this connection keeps `bytes` that its other side does not take.
    pub(super) fn hold(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        if self.wanted() > self.growth.get() {
            self.wake();
        }
    }

    /// The other side has taken `bytes` of those, or the stream is over.
    pub(super) fn let_go(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
        if self.is_too_large() {
            self.wake();
        }
    }

    /// The window's new size, if it is to change. `cx` is woken when it may have to again.
    pub(super) fn adjust(&self, cx: &Context<'_>) -> Option<u32> {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|t| t.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
        let (wanted, growth) = (self.wanted(), self.growth.get());
        let left = self.budget.0.get();
        let new = if wanted > growth {
            growth + left.min(wanted - growth)
        } else if self.is_too_large() {
            wanted
        } else {
            growth
        };
        if new == growth {
            return None;
        }
        self.budget.0.set(left + growth - new);
        self.growth.set(new);
        Some(CONNECTION_WINDOW + new as u32)
    }

    /// Has the connection polled.
    pub(super) fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    fn wanted(&self) -> usize {
        (self.held.get() / STEP * STEP).min(MAX_GROWTH)
    }

    fn is_too_large(&self) -> bool {
        self.growth.get() > 0 && self.wanted() <= self.growth.get() / 2
    }
}

impl Drop for ReceiveWindow {
    fn drop(&mut self) {
        self.budget.0.set(self.budget.0.get() + self.growth.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjust(window: &ReceiveWindow) -> Option<u32> {
        window.adjust(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_stalled_stream_changes_nothing_and_many_grow_the_window_by_what_they_hold() {
        let window = ReceiveWindow::new(Rc::default());
        window.hold(STEP - 1);
        assert_eq!(adjust(&window), None);
        window.hold(3 * STEP);
        assert_eq!(adjust(&window), Some(CONNECTION_WINDOW + 3 * STREAM_WINDOW));
        window.let_go(3 * STEP);
        assert_eq!(adjust(&window), Some(CONNECTION_WINDOW));
    }

    #[test]
    fn growth_is_bounded_for_a_connection_and_for_the_worker() {
        let budget: Rc<Budget> = Rc::default();
        let windows: Vec<_> = (0..5).map(|_| ReceiveWindow::new(budget.clone())).collect();
        for window in &windows {
            window.hold(10 * MAX_GROWTH);
            adjust(window);
        }
        let growth: Vec<_> = windows.iter().map(|w| w.growth.get()).collect();
        assert_eq!(growth, [MAX_GROWTH, MAX_GROWTH, MAX_GROWTH, MAX_GROWTH, 0]);
        drop(windows);
        assert_eq!(budget.0.get(), WORKER_BUDGET);
    }
}
