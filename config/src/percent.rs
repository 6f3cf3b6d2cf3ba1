//! Parts of a whole.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

/// A whole number from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Percent(#[schemars(range(min = 0, max = 100))] pub u8);

impl Percent {
    /// 0.0 to 1.0.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = u8::deserialize(deserializer)?;
        if percent > 100 {
            return Err(de::Error::custom(format_args!(
                "{percent} is more than the whole; write a percentage from 0 to 100"
            )));
        }
        Ok(Self(percent))
    }
}
