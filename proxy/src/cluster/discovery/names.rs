//! What asks for the names of all clusters: ten thousand of them neither read `resolv.conf` ten thousand
//! times nor ask all at once.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use hickory_resolver::TokioResolver;
use tokio::sync::Semaphore;

/// How long `resolv.conf` and the hosts file are believed not to have changed.
const FRESH: Duration = Duration::from_secs(1);

/// Names asked for at once. Each takes a socket, and a server's queue holds some 270 questions.
const AT_ONCE: usize = 200;

/// One thread's.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Names(RefCell<Option<(Instant, Rc<Asker>)>>);

#[derive(Debug)]
pub(super) struct Asker {
    pub(super) resolver: TokioResolver,
    pub(super) turns: Semaphore,
}

impl Names {
    /// With the servers, search domains and options of `resolv.conf`, and the hosts file.
    pub(super) fn asker(&self, now: Instant) -> io::Result<Rc<Asker>> {
        let mut known = self.0.borrow_mut();
        if let Some((made, asker)) = &*known
            && now.saturating_duration_since(*made) < FRESH
        {
            return Ok(asker.clone());
        }
        let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
        // The TTL is minded by whoever asks; a cache of the resolver's would only make answers older.
        builder.options_mut().cache_size = 0;
        let resolver = builder.build().map_err(io::Error::other)?;
        let asker = Rc::new(Asker::new(resolver));
        *known = Some((now, asker.clone()));
        Ok(asker)
    }
}

impl Asker {
    pub(super) fn new(resolver: TokioResolver) -> Self {
        Self {
            resolver,
            turns: Semaphore::new(AT_ONCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_one_moment_share_and_a_later_one_looks_again() {
        let (names, now) = (Names::default(), Instant::now());
        let asker = |at| names.asker(at).expect("this machine has a resolv.conf");
        let first = asker(now);
        assert!(Rc::ptr_eq(&first, &asker(now + FRESH / 2)));
        assert!(!Rc::ptr_eq(&first, &asker(now + FRESH)));
    }
}
