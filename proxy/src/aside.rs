//! Work that takes long, beside the traffic: on a thread of its own, which lets the workers go first
//! and gives back the memory that it has freed.

use std::{io, thread};

use tokio::sync::oneshot;

use crate::sys;

/// Of 19. A worker gets three times the CPU time of this where there is not enough for both; more
/// would have a reload wait for ever beside an application that takes all there is.
const NICENESS: i32 = 5;

/// Does `work`.
///
/// # Errors
/// When it panicked, or no thread can be had.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, outcome) = oneshot::channel();
    thread::Builder::new().name("aside".into()).spawn(move || {
        // Of this thread only. It may always be made nicer; if not, it works all the same.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        let outcome = work();
        sys::return_free_memory();
        // Whoever asked may have gone.
        let _ = done.send(outcome);
    })?;
    let panicked = |_| io::Error::other("this is a bug, and the log above has its place");
    outcome.await.map_err(panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_runs_elsewhere_and_a_panic_there_stays_there() {
        let here = thread::current().id();
        let there = run(|| thread::current().id()).await.expect("a thread");
        assert!(there != here);
        let panicked: io::Result<()> = run(|| panic!("on purpose")).await;
        assert!(panicked.is_err());
    }

    #[tokio::test]
    async fn only_its_own_thread_is_made_nicer() {
        let niceness = || rustix::process::getpriority_process(None).expect("our own");
        let before = niceness();
        let there = run(niceness).await.expect("a thread");
        assert_eq!(there, (before + NICENESS).min(19));
        assert_eq!(niceness(), before);
    }
}
