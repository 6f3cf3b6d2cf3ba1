//! Shares of traffic, finer than a percent.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

/// A percentage from 0 to 100, parts of a percent included: `0.1` is one in a thousand.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Fraction(#[schemars(range(min = 0, max = 100))] pub f64);

impl Fraction {
    pub const ALL: Self = Self(100.0);

    /// Whether the one that drew `draw`, which is even over 32 bits, belongs to this share.
    pub fn includes(self, draw: u32) -> bool {
        const RANGE: f64 = (1_u64 << 32) as f64;
        f64::from(draw) < self.0 / 100.0 * RANGE
    }
}

impl Default for Fraction {
    fn default() -> Self {
        Self::ALL
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(de::Error::custom(format_args!(
                "{percent} is no part of the whole; write a percentage from 0 to 100, such as `0.5`"
            )));
        }
        Ok(Self(percent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_and_all_are_exact_and_the_rest_is_in_proportion() {
        for draw in [0, 1, u32::MAX / 2, u32::MAX] {
            assert!(!Fraction(0.0).includes(draw));
            assert!(Fraction::ALL.includes(draw));
        }
        let thousandth = u32::MAX / 1000;
        assert!(Fraction(0.1).includes(thousandth - 1));
        assert!(!Fraction(0.1).includes(thousandth + 2));
    }
}
