//! How a worker tells its connections that it is about to stop.

use std::cell::Cell;

use tokio::sync::Notify;

/// One worker's drain: connections finish what they have begun and take on nothing new.
#[derive(Debug, Default)]
pub struct Drain {
    started: Cell<bool>,
    notify: Notify,
}

impl Drain {
    pub fn start(&self) {
        self.started.set(true);
        self.notify.notify_waiters();
    }

    pub fn has_started(&self) -> bool {
        self.started.get()
    }

    /// Returns once draining has started; at once if it has already.
    pub async fn started(&self) {
        // The waiter registers first and checks second, so that no start slips between.
        let notified = self.notify.notified();
        if !self.has_started() {
            notified.await;
        }
    }
}
