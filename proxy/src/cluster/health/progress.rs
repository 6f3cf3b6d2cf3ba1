//! From single checks to a verdict: so many in a row must succeed, or fail, to change it.

use outrigger_config::HealthCheck;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// `None`: no check has ended yet.
    verdict: Option<bool>,
    against: u32,
}

impl Progress {
    /// The verdict, where this check gave one or changed it. The first check decides by itself, as
    /// in Envoy: until then nothing is known.
    pub(super) fn note(&mut self, settings: &HealthCheck, is_well: bool) -> Option<bool> {
        if self.verdict == Some(is_well) {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if is_well {
            settings.healthy_threshold
        } else {
            settings.unhealthy_threshold
        };
        if self.verdict.is_some() && self.against < needed.get() {
            return None;
        }
        *self = Self {
            verdict: Some(is_well),
            against: 0,
        };
        Some(is_well)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_fall_two_rise_and_the_first_decides_alone() {
        let (settings, mut progress) = (HealthCheck::default(), Progress::default());
        let mut verdicts = String::new();
        for check in "+--+---+-++".chars() {
            verdicts.push(match progress.note(&settings, check == '+') {
                Some(true) => '+',
                Some(false) => '-',
                None => '.',
            });
        }
        assert_eq!(verdicts, "+.....-...+");
    }
}
