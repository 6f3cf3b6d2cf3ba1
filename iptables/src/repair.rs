//! Puts rules back that somebody else has taken away, for a supervisor that has the privilege to: the
//! proxy sees what is wrong ([`Drift::trouble`](outrigger_config::control::Drift)), and cannot itself.

use std::time::{Duration, Instant};

use outrigger_config::Settings;

use crate::{Backend, Installed, Refusal, backend::install, tether::status};

/// How often [`Repair::step`] is to be called: the proxy notices within a quarter of a lease.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// Keeps one capture in force.
#[derive(Debug)]
pub struct Repair {
    settings: Settings,
    backend: Backend,
    pace: Pace,
}

/// What one look came to.
#[derive(Debug)]
pub enum Step {
    /// Nothing that installing again would help: all is well, or nothing is captured on purpose, or the
    /// trouble is another's rules.
    Nothing,
    /// Rules are gone, and were gone again too soon: another program fights for its own.
    Waiting {
        left: Duration,
    },
    Repaired(Box<Installed>),
}

impl Repair {
    /// Of the capture that `settings` and `backend` were installed by.
    pub fn new(settings: Settings, backend: Backend) -> Self {
        Self {
            settings,
            backend,
            pace: Pace::new(LONGEST, QUIET),
        }
    }

    /// Asks the proxy, and installs anew where that helps. Blocks for as long as an install does.
    ///
    /// # Errors
    /// When the proxy does not answer, or the install was refused; to be tried again all the same.
    pub fn step(&mut self) -> Result<Step, Refusal> {
        let status = status(self.settings.port())?;
        // Not to bring back what `remove-rules` or the proxy itself has ended.
        let is_wanted = status.is_some_and(|status| {
            status.drift.needs_repair
                && status.proxy.captured_since.is_some()
                && !status.proxy.draining
        });
        if !is_wanted {
            return Ok(Step::Nothing);
        }
        if let Err(left) = self.pace.try_at(Instant::now()) {
            return Ok(Step::Waiting { left });
        }
        install(&self.settings, self.backend).map(|installed| Step::Repaired(Box::new(installed)))
    }
}

const LONGEST: Duration = Duration::from_mins(5);
const QUIET: Duration = Duration::from_mins(10);

/// Another program that takes rules away as fast as they are put back must not be fought: each repair
/// doubles the pause before the next, up to the longest, and a quiet time ends it.
#[derive(Debug)]
pub struct Pace {
    last: Option<Instant>,
    pause: Duration,
    longest: Duration,
    quiet: Duration,
}

impl Pace {
    const FIRST: Duration = Duration::from_secs(1);

    /// `quiet` is not shorter than `longest`.
    pub fn new(longest: Duration, quiet: Duration) -> Self {
        Self {
            last: None,
            pause: Duration::ZERO,
            longest,
            quiet,
        }
    }

    /// Takes note that a repair is tried now.
    ///
    /// # Errors
    /// For how long it may not be yet.
    pub fn try_at(&mut self, now: Instant) -> Result<(), Duration> {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        self.pause = match since {
            None => Self::FIRST,
            Some(since) if since >= self.quiet => Self::FIRST,
            Some(since) if since < self.pause => return Err(self.pause - since),
            Some(_) => (self.pause * 2).min(self.longest),
        };
        self.last = Some(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_rules_away_again_and_again_is_not_fought() {
        let (mut pace, begin) = (Pace::new(LONGEST, QUIET), Instant::now());
        let mut tried = Vec::new();
        for millis in (0..1_800_000).step_by(250) {
            if pace.try_at(begin + Duration::from_millis(millis)).is_ok() {
                tried.push(millis / 1000);
            }
        }
        assert_eq!(
            tried,
            [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111, 1411, 1711]
        );
    }

    #[test]
    fn after_a_quiet_time_the_next_repair_is_prompt_again() {
        let (mut pace, begin) = (Pace::new(LONGEST, QUIET), Instant::now());
        for seconds in [0, 1, 3] {
            pace.try_at(begin + Duration::from_secs(seconds)).unwrap();
        }
        let later = begin + Duration::from_secs(3) + QUIET;
        pace.try_at(later).unwrap();
        assert_eq!(
            pace.try_at(later + Duration::from_millis(400)),
            Err(Duration::from_millis(600))
        );
        pace.try_at(later + Pace::FIRST).unwrap();
    }
}
