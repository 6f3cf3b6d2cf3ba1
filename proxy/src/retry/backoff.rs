//! How long to wait before a retry.

use std::time::{Duration, SystemTime};

use outrigger_config::{BackOff, Headers, RateLimited, ResetFormat};

use crate::cluster::Rng;

/// The pause before the `nth` retry, counted from 1: even over nothing to base × (2ⁿ − 1), which
/// `max_interval` bounds. Exponential backoff with "full jitter" (Marc Brooker, "Exponential Backoff
/// And Jitter", AWS Architecture Blog, 2015) in Envoy's form.
pub fn pause(settings: &BackOff, nth: u32, rng: &Rng) -> Duration {
    bound(settings, nth).mul_f64(rng.unit())
}

fn bound(settings: &BackOff, nth: u32) -> Duration {
    let base = settings.base_interval.0;
    let max = (settings.max_interval).map_or_else(|| base.saturating_mul(10), |max| max.0);
    let times = 2_u32.checked_pow(nth).map_or(u32::MAX, |power| power - 1);
    base.saturating_mul(times).min(max)
}

/// When the answer says to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeBack {
    /// It does not say.
    Unsaid,
    After(Duration),
    /// Later than anybody should wait here.
    TooLate,
}

impl ComeBack {
    /// What the first of the settings' headers says that an answer has in a form that can be read.
    pub fn said(settings: &RateLimited, headers: &dyn Headers, now: SystemTime) -> Self {
        let said = settings.reset_headers.iter().find_map(|header| {
            let mut wait = None;
            headers.each(&header.name, &mut |value| {
                wait = wait.or_else(|| read(header.format, value, now));
            });
            wait
        });
        match said {
            None => Self::Unsaid,
            Some(wait) if wait > settings.max_interval.0 => Self::TooLate,
            Some(wait) => Self::After(wait),
        }
    }
}

/// How far the moment that `value` names is away; what has passed is not.
fn read(format: ResetFormat, value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let seconds = || {
        // More than 64 bits of seconds are still a number, and too late.
        let seconds = text.parse().unwrap_or(u64::MAX);
        is_number.then_some(Duration::from_secs(seconds))
    };
    match format {
        ResetFormat::Seconds => seconds().or_else(|| {
            let date = httpdate::parse_http_date(text).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }),
        ResetFormat::UnixTimestamp => {
            let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Some(seconds()?.saturating_sub(now))
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::{ResetHeader, Span};
    use proptest::prelude::*;

    use super::{super::conditions::tests::Head, *};
    use crate::cluster::Rng;

    /// Sat, 28 Nov 2026 12:00:00 GMT.
    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_867_200)
    }

    fn said(name: &'static str, value: &'static str) -> ComeBack {
        let settings = RateLimited {
            reset_headers: vec![
                ResetHeader {
                    name: "retry-after".into(),
                    format: ResetFormat::Seconds,
                },
                ResetHeader {
                    name: "x-ratelimit-reset".into(),
                    format: ResetFormat::UnixTimestamp,
                },
            ],
            ..RateLimited::default()
        };
        ComeBack::said(&settings, &Head(503, vec![(name, value)]), noon())
    }

    #[test]
    fn the_bounds_are_envoys() {
        let settings = BackOff::default();
        let bounds: Vec<_> = (1..=6).map(|n| bound(&settings, n).as_millis()).collect();
        assert_eq!(bounds, [25, 75, 175, 250, 250, 250]);
        assert_eq!(bound(&settings, u32::MAX).as_millis(), 250);
    }

    #[test]
    fn seconds_and_dates_are_read() {
        let after = |seconds| ComeBack::After(Duration::from_secs(seconds));
        assert_eq!(said("retry-after", "3"), after(3));
        assert_eq!(said("retry-after", " 0 "), after(0));
        assert_eq!(
            said("retry-after", "Sat, 28 Nov 2026 12:00:07 GMT"),
            after(7)
        );
        assert_eq!(
            said("retry-after", "Sat, 28 Nov 2026 11:00:00 GMT"),
            after(0)
        );
        assert_eq!(said("x-ratelimit-reset", "1795867205"), after(5));
        assert_eq!(said("x-ratelimit-reset", "1"), after(0));
    }

    #[test]
    fn later_than_the_limit_is_too_late_and_nonsense_is_unsaid() {
        for value in [
            "11",
            "99999999999999999999999",
            "Sun, 29 Nov 2026 12:00:00 GMT",
        ] {
            assert_eq!(said("retry-after", value), ComeBack::TooLate, "{value}");
        }
        for value in ["", "-1", "1.5", "soon", "1 2"] {
            assert_eq!(said("retry-after", value), ComeBack::Unsaid, "{value}");
        }
        assert_eq!(said("x-ratelimit-reset", "Sat"), ComeBack::Unsaid);
        assert_eq!(said("x-other", "1"), ComeBack::Unsaid);
    }

    proptest! {
        #[test]
        fn a_pause_is_within_its_bound_and_no_bound_falls(
            base in 1..100_000_u64,
            max in prop::option::of(1..1_000_000_u64),
            nth in 1..100_u32,
            seed: u64,
        ) {
            let settings = BackOff {
                base_interval: Span::from_millis(base),
                max_interval: max.map(Span::from_millis),
            };
            let pause = pause(&settings, nth, &Rng::new(seed));
            prop_assert!(pause <= bound(&settings, nth));
            prop_assert!(bound(&settings, nth) <= bound(&settings, nth + 1));
            let longest = max.unwrap_or(base * 10);
            prop_assert!(bound(&settings, nth) <= Duration::from_millis(longest));
        }

        /// Over many draws every part of the range comes up: the jitter is full.
        #[test]
        fn the_jitter_is_full(seed: u64) {
            let rng = Rng::new(seed);
            let settings = BackOff::default();
            let draws: Vec<_> = (0..2000).map(|_| pause(&settings, 1, &rng).as_micros()).collect();
            for tenth in 0..10 {
                let within = draws.iter().filter(|d| **d / 2500 == tenth).count();
                prop_assert!((100..=300).contains(&within), "{}: {}", tenth, within);
            }
        }
    }
}
