//! `install-rules --keep`: where nothing else runs it again for the next proxy, as in a pod.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use outrigger_config::Settings;
use outrigger_iptables::Backend;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};

use crate::sys::Signals;

/// How long connections may go direct once a new proxy is there.
const ROUND: Duration = Duration::from_secs(1);

/// Tells only what differs from what it has told last.
pub(super) fn run(settings: &Settings, backend: Backend, as_json: bool) -> ExitCode {
    // As the first process of a container it would not be ended by a signal that it does not handle.
    let signals = match Signals::block(&[Signal::TERM, Signal::INT]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("proxyctl install-rules: cannot watch signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut refused = String::new();
    loop {
        let next = Instant::now() + ROUND;
        let outcome = super::install(settings, backend, Duration::ZERO);
        let (is_news, now_refused) = match &outcome {
            Ok(installed) => (installed.changed || !refused.is_empty(), String::new()),
            Err(refusal) => (refused != refusal.to_string(), refusal.to_string()),
        };
        refused = now_refused;
        if is_news {
            super::tell(outcome, as_json);
        }
        if is_stopped(&signals, next) {
            return ExitCode::SUCCESS;
        }
    }
}

/// Whether a signal has come by `deadline`.
fn is_stopped(signals: &Signals, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(signals, PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return signals.next().is_some(),
        }
    }
}
