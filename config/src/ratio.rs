//! Parts of a whole, as fine as anyone likes.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

/// A number from 0, none, to 1, all.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Ratio(#[schemars(range(min = 0.0, max = 1.0))] pub f64);

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ratio = f64::deserialize(deserializer)?;
        // What is no number is outside too.
        if !(0.0..=1.0).contains(&ratio) {
            return Err(de::Error::custom(format_args!(
                "{ratio} is no part of a whole; write a number from 0 to 1, such as 0.01 for one in a hundred"
            )));
        }
        Ok(Self(ratio))
    }
}
