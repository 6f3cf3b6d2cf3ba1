//! How many retries a cluster may have under way.

use outrigger_config::RetryBudget;

/// With `active` requests under way, retries counted: a share of them, and never fewer than the
/// settings say. A share of all, retries included, bounds the load by 1 / (1 - share) of what it
/// would be without: 20 % by 1.25 (Envoy's `RetryBudget`).
pub fn allowed(settings: &RetryBudget, active: u32) -> u32 {
    let share = u64::from(active) * u64::from(settings.budget_percent.0) / 100;
    // At most as many as are active.
    (share as u32).max(settings.min_retry_concurrency.get())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use outrigger_config::Percent;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_is_a_fifth_and_at_least_three() {
        let settings = RetryBudget::default();
        let allowed: Vec<_> = [0, 1, 15, 19, 20, 100, 1000]
            .map(|active| allowed(&settings, active))
            .into();
        assert_eq!(allowed, [3, 3, 3, 3, 4, 20, 200]);
    }

    proptest! {
        /// However many requests come and fail: begun one by one, each retry counted among the active,
        /// retries never exceed the share of all that the percentage promises.
        #[test]
        fn load_is_bounded(percent in 0..100_u8, min in 1..10_u32, offered in 1..10_000_u32) {
            let settings = RetryBudget {
                budget_percent: Percent(percent),
                min_retry_concurrency: NonZeroU32::new(min).expect("it is not zero"),
            };
            let mut retries = 0;
            while retries < offered && retries < allowed(&settings, offered + retries) {
                retries += 1;
            }
            let share = f64::from(percent) / 100.0;
            let bound = (f64::from(offered) * share / (1.0 - share)).max(f64::from(min));
            prop_assert!(f64::from(retries) <= bound + 1.0, "{} of {}", retries, bound);
        }
    }
}
