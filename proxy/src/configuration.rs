//! The configuration in force: one snapshot, published by one swap.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Cache};
use outrigger_config::{Settings, Snapshot};

/// What all threads share of it.
#[derive(Debug)]
pub struct Configuration {
    current: Arc<ArcSwap<Snapshot>>,
    applied: AtomicU64,
    rejected: AtomicU64,
    is_latest_good: AtomicBool,
}

impl Configuration {
    pub fn new(settings: Settings) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot::compile(settings, None))),
            applied: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            is_latest_good: AtomicBool::new(true),
        }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// For what is seldom done; a worker has a cheaper way.
    pub fn settings(&self) -> Arc<Settings> {
        self.current.load().settings.clone()
    }

    /// From here on new requests see `snapshot`.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.accept();
    }

    /// A file without a problem that changes nothing, or has just been published.
    pub(crate) fn accept(&self) {
        self.applied.fetch_add(1, Ordering::Relaxed);
        self.is_latest_good.store(true, Ordering::Relaxed);
    }

    /// The file has problems, and what was in force stays.
    pub(crate) fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        self.is_latest_good.store(false, Ordering::Relaxed);
    }

    pub(crate) fn figures(&self) -> ConfigurationFigures {
        ConfigurationFigures {
            generation: self.current.load().generation,
            applied: self.applied.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
            is_latest_good: self.is_latest_good.load(Ordering::Relaxed),
        }
    }
}

/// For `/metrics`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConfigurationFigures {
    pub(crate) generation: u64,
    pub(crate) applied: u64,
    pub(crate) rejected: u64,
    pub(crate) is_latest_good: bool,
}

/// What one worker knows of the configuration: looking at it costs no write to memory that workers
/// share. Until it looks again, it keeps what it saw last.
#[derive(Debug)]
pub(crate) struct View {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    settings: Pinned,
}

/// The settings as they were when a request began, whatever is published meanwhile.
pub(crate) type Pinned = Rc<Arc<Settings>>;

impl View {
    pub(crate) fn of(configuration: &Configuration) -> Self {
        Self {
            settings: Rc::new(configuration.settings()),
            cache: Cache::new(configuration.current.clone()),
        }
    }

    pub(crate) fn settings(&mut self) -> Pinned {
        let settings = &self.cache.load().settings;
        if !Arc::ptr_eq(settings, &self.settings) {
            self.settings = Rc::new(settings.clone());
        }
        self.settings.clone()
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::Span;

    use super::*;

    #[test]
    fn a_request_keeps_what_it_started_with_and_the_next_one_has_what_was_published() {
        let configuration = Configuration::new(Settings::default());
        let mut view = View::of(&configuration);
        let first = view.settings();
        let mut settings = Settings::default();
        settings.timeouts.drain = Span::from_secs(1);
        let before = configuration.snapshot();
        configuration.publish(Snapshot::compile(settings, Some(&before)));
        assert_eq!(first.timeouts.drain, Span::from_secs(30));
        assert_eq!(view.settings().timeouts.drain, Span::from_secs(1));
        assert_eq!(configuration.figures().generation, 2);
    }
}
