//! Another program or configuration in the place of the one that serves.

use std::time::Instant;

use outrigger_config::Settings;
use outrigger_proxy::supervised::Word;
use rustix::process::Signal;

use super::{Job, Keeping, ON_TRIAL, lock, refuse};
use crate::run::{
    proxy::{Program, Proxy},
    upgrade::{self, Outcome, Upgrade},
};

impl Keeping {
    /// Does the upgrade that was asked for; `None`: refused, and `old` goes on.
    pub(super) fn upgrade(&mut self, old: &Proxy, is_captured: bool) -> Option<Proxy> {
        let Upgrade {
            program,
            settings,
            asker,
        } = lock(&self.asked).take()?;
        let replaced = if is_captured {
            self.replace(old, &program, &settings)
        } else {
            Err("nothing is captured just now; try again when `proxyctl status` says so".into())
        };
        let next = match replaced {
            Ok(next) => next,
            Err(why) => {
                refuse(asker, why);
                return None;
            }
        };
        let proxy_pid = next.pid.as_raw_nonzero().get();
        tracing::info!(pid = proxy_pid, "upgraded; the old proxy drains");
        let program = std::mem::replace(&mut self.job.program, program);
        let settings = std::mem::replace(&mut self.job.settings, settings);
        self.before = Some((Instant::now(), program, settings));
        self.tell(|report| report.proxy_pid = Some(proxy_pid));
        if let Some(mut asker) = asker {
            upgrade::answer(&mut asker, &Outcome::Upgraded { proxy_pid });
        }
        Some(next)
    }

    /// While the new proxy is on trial the old one accepts nothing and keeps its capture: what is
    /// redirected waits in the queue that they share, so that the gate cannot meet the wrong one.
    fn replace(
        &mut self,
        old: &Proxy,
        program: &Program,
        settings: &Settings,
    ) -> Result<Proxy, String> {
        let Job {
            sockets,
            deaths,
            backend,
            ..
        } = &self.job;
        let port = settings.port();
        let held = outrigger_iptables::status(port)
            .map_err(|refusal| refusal.to_string())?
            .map_or_else(Vec::new, |status| status.proxy.tethers);
        let next = match Proxy::prepare(program, sockets, deaths) {
            Ok(next) => next,
            Err((None, error)) => return Err(format!("the new proxy cannot be started: {error}")),
            Err((Some(next), error)) => {
                let how = self.bury(&next);
                return Err(format!("the new proxy {how} before it served ({error})"));
            }
        };
        if let Err(error) = old.say(Word::Yield) {
            next.signal(Signal::KILL);
            self.bury(&next);
            old.signal(Signal::KILL);
            return Err(format!(
                "the old proxy does not give way, and is replaced: {error}"
            ));
        }
        let captured = next
            .begin()
            .map_err(|error| error.to_string())
            .and_then(|()| {
                let predecessors = [&held[..], &self.held_before].concat();
                deaths
                    .without_reaping(|| {
                        outrigger_iptables::install_after(settings, *backend, &predecessors)
                    })
                    .map_err(|refusal| refusal.to_string())
            });
        match captured {
            Ok(anchor) => {
                self.hold(anchor);
                self.held_before = held;
                self.take_over(old, port);
                Ok(next)
            }
            Err(why) => {
                // What it has accepted it may finish, if it can.
                match next.say(Word::Yield) {
                    Ok(()) => self.see_off(next),
                    Err(_) => {
                        next.signal(Signal::KILL);
                        self.bury(&next);
                    }
                }
                if let Err(error) = old.say(Word::Resume) {
                    tracing::error!("the old proxy does not go on, and is replaced: {error}");
                    old.signal(Signal::KILL);
                }
                Err(format!("the new proxy did not pass: {why}"))
            }
        }
    }

    /// Once the capture of another is in force: `old` lets go of its own, and what only that one kept from going
    /// direct may.
    fn take_over(&self, old: &Proxy, port: u16) {
        if let Err(error) = old.say(Word::Release) {
            tracing::error!("the old proxy does not let go of its capture, and is ended: {error}");
            old.signal(Signal::KILL);
            self.bury(old);
        }
        if let Err(refusal) = outrigger_iptables::reopen(port) {
            tracing::error!(
                "destinations of the old configuration's capture.fail_closed may still be refused: {refusal}; {}",
                refusal.advice()
            );
        }
    }

    /// After a death: to what served before an upgrade that did not last.
    pub(super) fn go_back(&mut self) {
        if let Some((since, program, settings)) = self.before.take()
            && since.elapsed() < ON_TRIAL
        {
            tracing::error!("the proxy died soon after an upgrade; what served before comes back");
            self.job.program = program;
            self.job.settings = settings;
        }
    }
}
