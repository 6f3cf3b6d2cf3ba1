//! The last of a proxy: it finishes what it has, and is ended if it does not.

use std::time::{Duration, Instant};

use outrigger_iptables::Backend;
use rustix::process::Signal;

use super::{CUT, DESERT, GRACE, Keeping};
use crate::run::proxy::{Proxy, Seen};

impl Keeping {
    /// Ends the capture, lets the proxy finish, and sees to it that it does.
    pub(super) fn leave(&mut self, proxy: &Proxy, order: Option<u8>) {
        let port = self.job.settings.port();
        if self.job.backend != Backend::Nft
            && let Err(refusal) = self
                .job
                .deaths
                .without_reaping(|| outrigger_iptables::remove(port))
        {
            tracing::error!("the capture may not have ended: {refusal}");
        }
        if order != Some(DESERT) || proxy.desert().is_err() {
            proxy.signal(Signal::TERM);
        }
        let deadline = self.drain_deadline();
        let mut order = self.await_end(proxy, deadline, order);
        for (proxy, deadline) in std::mem::take(&mut self.leaving) {
            order = self.await_end(&proxy, deadline, order);
        }
        // Its table outlives every proxy, so that only an orderly end takes it away.
        if !self.job.settings.capture.fail_closed.is_empty()
            && let Err(refusal) = outrigger_iptables::reopen(port)
        {
            tracing::error!(
                "destinations in capture.fail_closed may still be refused: {refusal}; {}",
                refusal.advice()
            );
        }
    }

    /// Returns the order that hastened it, which holds for the next one too.
    fn await_end(&mut self, proxy: &Proxy, deadline: Instant, mut order: Option<u8>) -> Option<u8> {
        let mut is_cut = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            is_cut |= order == Some(CUT);
            if is_cut || left.is_zero() {
                proxy.signal(Signal::KILL);
            }
            match proxy.watch(&self.orders, left.max(Duration::from_millis(100))) {
                Seen::Death => break,
                Seen::Order => order = self.next_order(),
                Seen::Nothing => {}
            }
        }
        self.job.deaths.of(proxy.pid);
        is_cut.then_some(CUT)
    }

    fn drain_deadline(&self) -> Instant {
        let settings = &self.job.settings;
        Instant::now() + settings.timeouts.drain.0 + settings.capture.lease.0 * 2 + GRACE
    }

    /// Lets `old` finish what it has.
    pub(super) fn see_off(&mut self, old: Proxy) {
        old.signal(Signal::TERM);
        let deadline = self.drain_deadline();
        self.leaving.push((old, deadline));
    }

    /// Takes note of those that have ended, and ends those that should have.
    pub(super) fn tend_leaving(&mut self) {
        let deaths = &self.job.deaths;
        self.leaving.retain(|(proxy, deadline)| {
            if proxy.has_ended() {
                deaths.of(proxy.pid);
                return false;
            }
            if *deadline < Instant::now() {
                proxy.signal(Signal::KILL);
            }
            true
        });
    }
}
