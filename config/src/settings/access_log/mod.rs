//! `access_log`.

mod fields;
mod filter;
mod operator;

use std::{borrow::Cow, fmt, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser::SerializeMap,
};

pub use fields::{FieldFormat, Fields};
pub use filter::{AccessLogFilter, DurationRange, ResponseFlag, StatusRange};
pub use operator::{
    FormatError, HeaderNames, HeaderOf, OPERATORS, Operator, Piece, TimeFormat, parse_format,
};

use crate::{Percent, check::Findings, one_or_many::TEXT_OR_KEYS, problem::meant};

/// One line per request (HTTP) or connection (everything else).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", default, deny_unknown_fields)]
pub struct AccessLog {
    /// `off`, `stdout`, or a file's path. Default `off`.
    pub to: AccessLogTarget,
    /// `json` or `text` for the fields of docs/access-log.md, a format string with operators, or
    /// `json: {…}` with fields of your own. Default `json`.
    pub format: AccessLogFormat,
    /// The share of lines written, in percent, drawn for each line. Default 100. Metrics count
    /// everything all the same.
    pub sample: Percent,
    /// Which lines are written. Default: all.
    pub filter: Option<AccessLogFilter>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            to: AccessLogTarget::default(),
            format: AccessLogFormat::default(),
            sample: Percent(100),
            filter: None,
        }
    }
}

impl AccessLog {
    /// What is wrong with it, written at `path`.
    pub(crate) fn check(&self, path: &str, to: &mut Findings) {
        let mut format = |path: String, text: &str| {
            if let Err(error) = parse_format(text) {
                to.error_within(path, text, error.at, error.message);
            }
        };
        match &self.format {
            AccessLogFormat::Json | AccessLogFormat::Text => {}
            AccessLogFormat::Line(line) => format(format!("{path}.format"), line),
            AccessLogFormat::Fields(fields) => {
                fields.each(&format!("{path}.format.json"), &mut format)
            }
        }
        if let AccessLogFormat::Fields(fields) = &self.format
            && fields.0.is_empty()
        {
            to.error(
                format!("{path}.format.json"),
                "there is no field; write some, such as `code: \"%RESPONSE_CODE%\"`, or `format: json` for all".into(),
            );
        }
        if let AccessLogTarget::File(file) = &self.to
            && !file.is_absolute()
        {
            to.warning(
                format!("{path}.to"),
                "a relative path depends on where the proxy was started; write one that begins with `/`".into(),
            );
        }
        if let Some(filter) = &self.filter {
            filter.check(&format!("{path}.filter"), to);
        }
    }
}

/// Where access log lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String")]
pub enum AccessLogTarget {
    #[default]
    Off,
    Stdout,
    File(PathBuf),
}

impl From<String> for AccessLogTarget {
    fn from(text: String) -> Self {
        match text.as_str() {
            "off" => Self::Off,
            "stdout" => Self::Stdout,
            _ => Self::File(text.into()),
        }
    }
}

impl From<AccessLogTarget> for String {
    fn from(target: AccessLogTarget) -> Self {
        match target {
            AccessLogTarget::Off => "off".into(),
            AccessLogTarget::Stdout => "stdout".into(),
            AccessLogTarget::File(path) => path.display().to_string(),
        }
    }
}

/// What a line looks like.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum AccessLogFormat {
    /// Every field that applies.
    #[default]
    Json,
    /// The same as `key=value`.
    Text,
    /// A format string.
    Line(String),
    /// An object with fields of the user's own.
    Fields(Fields),
}

impl Serialize for AccessLogFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json => serializer.serialize_str("json"),
            Self::Text => serializer.serialize_str("text"),
            Self::Line(line) => serializer.serialize_str(line),
            Self::Fields(fields) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("json", fields)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for AccessLogFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ways;

        impl<'de> Visitor<'de> for Ways {
            type Value = AccessLogFormat;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`json`, `text`, a format string, or `json: {…}`")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                keys: D,
            ) -> Result<AccessLogFormat, D::Error> {
                keys.deserialize_map(self)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AccessLogFormat, E> {
                match text {
                    "json" => Ok(AccessLogFormat::Json),
                    "text" => Ok(AccessLogFormat::Text),
                    line if line.contains('%') => Ok(AccessLogFormat::Line(line.into())),
                    other => Err(match meant(other, ["json", "text"]) {
                        Some(name) => E::custom(format_args!(
                            "`{other}` is no format; did you mean `{name}`?"
                        )),
                        None => E::custom(format_args!(
                            "`{other}` is no format; write `json`, `text`, or a format string with operators such as `%RESPONSE_CODE%`"
                        )),
                    }),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AccessLogFormat, A::Error> {
                let no_format =
                    || de::Error::custom("these keys are no format; write `json: {…}` alone");
                match map.next_key::<String>()?.as_deref() {
                    Some("json") => {}
                    _ => return Err(no_format()),
                }
                let fields = map.next_value()?;
                match map.next_key::<String>()? {
                    None => Ok(AccessLogFormat::Fields(fields)),
                    Some(_) => Err(no_format()),
                }
            }
        }

        deserializer.deserialize_newtype_struct(TEXT_OR_KEYS, Ways)
    }
}

impl JsonSchema for AccessLogFormat {
    fn schema_name() -> Cow<'static, str> {
        "AccessLogFormat".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let fields = generator.subschema_for::<Fields>();
        json_schema!({
            "description": "What a line looks like.",
            "anyOf": [
                { "description": "Every field that applies.", "type": "string", "enum": ["json"] },
                { "description": "The same as `key=value`.", "type": "string", "enum": ["text"] },
                { "description": "A format string; its operators stand in docs/access-log.md.", "type": "string", "pattern": "%" },
                {
                    "description": "An object with fields of your own.",
                    "type": "object",
                    "properties": { "json": fields },
                    "required": ["json"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{check, parse};

    fn told(text: &str) -> String {
        let problems = check(text).problems;
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn one_log_and_a_list_of_them_are_read() {
        let one = parse("access_log: { to: /a, format: '%PROTOCOL%\n' }").expect("one");
        assert_eq!(one.access_log.len(), 1);
        let list = parse("access_log:\n- { to: /a }\n- to: /b\n  sample: 5\n  format:\n    json: { code: '%RESPONSE_CODE%', who: { peer: '%UPSTREAM_HOST%' } }\n").expect("two");
        assert_eq!(list.access_log.len(), 2);
        assert_eq!(list.access_log[1].sample.0, 5);
        let written = serde_json::to_string(&list.access_log[1].format).expect("JSON");
        assert_eq!(
            written,
            r#"{"json":{"code":"%RESPONSE_CODE%","who":{"peer":"%UPSTREAM_HOST%"}}}"#
        );
        assert!(parse("access_log:\n").expect("none").access_log.is_empty());
    }

    #[test]
    fn an_unknown_operator_is_told_with_its_column() {
        for (text, place) in [
            (
                "access_log:\n  to: /a\n  format: 'x %FOO%'\n",
                "line 3, column 14: access_log.format: `%FOO%`",
            ),
            (
                "access_log:\n- to: /a\n  format: ok %FOO%\n",
                "line 3, column 14: access_log[0].format: `%FOO%`",
            ),
            (
                "access_log:\n  to: /a\n  format: { json: { a: '%FOO%' } }\n",
                "line 3, column 25: access_log.format.json.a: `%FOO%`",
            ),
        ] {
            assert!(told(text).starts_with(place), "{text}: {}", told(text));
        }
    }

    #[test]
    fn an_unknown_key_or_flag_is_told_with_what_was_meant() {
        assert!(
            told("access_log: { two: /a }").contains("did you mean `to`?"),
            "{}",
            told("access_log: { two: /a }")
        );
        let flags = told("access_log: { to: /a, filter: { flags: [UQ] } }");
        assert!(
            flags.contains("line 1, column 41") && flags.contains("UQ"),
            "{flags}"
        );
        let range =
            told("access_log: { to: /a, filter: { or: [{ status: { min: 500, max: 400 } }] } }");
        assert!(
            range.contains("access_log.filter.or[0].status: min is above max"),
            "{range}"
        );
    }
}
