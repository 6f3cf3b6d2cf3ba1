//! Durations as people write them: `250ms`, `2s`, `1h 30m`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A non-negative length of time, written with its unit (`1.5s`, `2m`); a bare number is refused
/// because nobody remembers whether it meant seconds or milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let signed: jiff::SignedDuration = text
            .parse()
            .map_err(|_| format!("`{text}` is no duration; write a number and a unit, such as `250ms`, `2s` or `1m 30s`"))?;
        Duration::try_from(signed)
            .map(Self)
            .map_err(|_| format!("`{text}` is negative; a duration is zero or longer"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::SignedDuration::try_from(self.0) {
            Ok(signed) => write!(f, "{signed:#}"),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Numbers with units, such as `250ms`, `2s` or `1m 30s`.",
            "type": "string",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!("250ms".parse(), Ok(Span::from_millis(250)));
        assert_eq!("1m 30s".parse(), Ok(Span::from_secs(90)));
        assert_eq!("0s".parse(), Ok(Span::from_secs(0)));
    }

    #[test]
    fn refuses_bare_numbers_and_negatives() {
        assert!("5".parse::<Span>().unwrap_err().contains("unit"));
        assert!("-5s".parse::<Span>().unwrap_err().contains("negative"));
    }

    #[test]
    fn prints_what_it_reads() {
        for text in ["2s", "250ms", "1m 30s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }
}
