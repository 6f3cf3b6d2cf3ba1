//! Slow start: how much of its weight an endpoint has that has not been in service for long.

use outrigger_config::SlowStart;

/// 0 to 1, after `age` milliseconds.
pub(in crate::cluster) fn factor(settings: &SlowStart, age: u64) -> f64 {
    let window = settings.window.0.as_millis().max(1) as f64;
    let grown = (age as f64 / window)
        .min(1.0)
        .powf(1.0 / settings.aggression);
    grown.max(settings.min_weight_percent.fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_from_the_least_to_the_whole() {
        let settings = SlowStart::default();
        assert_eq!(factor(&settings, 0), 0.1);
        assert_eq!(factor(&settings, 15_000), 0.5);
        assert_eq!(factor(&settings, 30_000), 1.0);
        assert_eq!(factor(&settings, u64::MAX), 1.0);
        let eager = SlowStart {
            aggression: 2.0,
            ..settings
        };
        assert!(factor(&eager, 15_000) > 0.7);
    }
}
