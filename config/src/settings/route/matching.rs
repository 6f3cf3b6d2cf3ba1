//! What a route asks of the traffic.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{MatchRegex, Network, PortRange};

/// What is known of the traffic. A key that is left out holds always; one whose subject the traffic
/// does not have (a host outside HTTP, an SNI outside TLS) does not hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// The network that was dialled: `203.0.113.0/24`, or a single address. Default: any.
    pub destination: Option<Network>,
    /// The port that was dialled, or a range: `80`, `"8000-8100"`. Default: any.
    pub port: Option<PortRange>,
    /// The host that an HTTP request names, without its port: exact (`api.internal`), every name
    /// below another (`"*.internal"`), or with one `*` at its start or end for at least one character
    /// (`"*-api.internal"`, `"api.*"`). Case does not count. Default: any.
    pub host: Option<String>,
    /// The path of an HTTP request, without its query. What is compared is its normal form: dot
    /// segments resolved, `\` as `/`, escaped letters, digits and `-._~` plain; what is sent on is as
    /// it came. Default: any.
    pub path: Option<PathMatch>,
    /// Methods of an HTTP request, one or a list: `GET`, `[PUT, PATCH]`. Default: any.
    pub method: Methods,
    /// Headers of an HTTP request, all of which must hold. Several lines of one name count as one,
    /// joined by commas. Default: any.
    pub headers: Vec<Condition>,
    /// Parameters of an HTTP request's query, all of which must hold, as they are sent (nothing is
    /// unescaped); of several with one name the first counts. Default: any.
    pub query: Vec<Condition>,
    /// The name that a TLS client asks for (SNI), written as `host`. Default: any.
    pub sni: Option<String>,
    /// Protocols of which a TLS client offers at least one (ALPN), such as `h2`. Default: any.
    pub alpn: Vec<String>,
}

impl Match {
    /// Whether it asks for something that only HTTP requests have.
    pub fn asks_http(&self) -> bool {
        self.host.is_some()
            || self.path.is_some()
            || !self.method.0.is_empty()
            || !self.headers.is_empty()
            || !self.query.is_empty()
    }

    /// Whether it asks for something that stands in a TLS ClientHello.
    pub fn asks_tls(&self) -> bool {
        self.sni.is_some() || !self.alpn.is_empty()
    }
}

/// Of a path; case counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// What it begins with: `/v1` holds for `/v1`, `/v1/users` and `/v10`.
    Prefix(String),
    /// The same at the border of a segment: `/v1` holds for `/v1` and `/v1/users`, not for `/v10`.
    SeparatedPrefix(String),
    /// A regular expression for the whole path.
    Regex(MatchRegex),
}

/// Of a header or query parameter. One of `exact`, `prefix`, `suffix`, `contains`, `regex` and
/// `present` says what must hold; without any it must be there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Whose value is looked at. Of a header case does not count. Required.
    pub name: String,
    /// The whole value. Default: none.
    #[serde(default)]
    pub exact: Option<String>,
    /// What it begins with. Default: none.
    #[serde(default)]
    pub prefix: Option<String>,
    /// What it ends with. Default: none.
    #[serde(default)]
    pub suffix: Option<String>,
    /// What stands in it. Default: none.
    #[serde(default)]
    pub contains: Option<String>,
    /// A regular expression for the whole value; `(?i)` at its start ignores case. Default: none.
    #[serde(default)]
    pub regex: Option<MatchRegex>,
    /// Whether it is there at all; with `false` it must not be. Default: none.
    #[serde(default)]
    pub present: Option<bool>,
    /// Holds when the rest does not. A value must be there all the same, as in Envoy: absence is
    /// asked for by `present: false`. Default false.
    #[serde(default)]
    pub invert: bool,
}

impl Condition {
    /// Whether it holds for what has `value`, or none.
    pub fn holds(&self, value: Option<&[u8]>) -> bool {
        let Some(tested) = self.test(value.unwrap_or_default()) else {
            return (value.is_some() == self.present.unwrap_or(true)) != self.invert;
        };
        value.is_some() && tested != self.invert
    }

    /// What the value's test says; none if only presence is asked for.
    fn test(&self, value: &[u8]) -> Option<bool> {
        if let Some(exact) = &self.exact {
            Some(value == exact.as_bytes())
        } else if let Some(prefix) = &self.prefix {
            Some(value.starts_with(prefix.as_bytes()))
        } else if let Some(suffix) = &self.suffix {
            Some(value.ends_with(suffix.as_bytes()))
        } else if let Some(part) = &self.contains {
            Some(part.is_empty() || value.windows(part.len()).any(|w| w == part.as_bytes()))
        } else {
            Some(self.regex.as_ref()?.is_match(value))
        }
    }

    /// The tests that are written.
    pub(crate) fn tests(&self) -> impl Iterator<Item = &'static str> {
        [
            ("exact", self.exact.is_some()),
            ("prefix", self.prefix.is_some()),
            ("suffix", self.suffix.is_some()),
            ("contains", self.contains.is_some()),
            ("regex", self.regex.is_some()),
            ("present", self.present.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, is_written)| is_written.then_some(key))
    }
}

/// Methods, one or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Methods(pub Vec<String>);

impl Methods {
    pub fn include(&self, method: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|m| m == method)
    }
}

impl<'de> Deserialize<'de> for Methods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Methods;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a method such as GET, or a list such as [PUT, PATCH]")
            }

            fn visit_str<E: de::Error>(self, method: &str) -> Result<Methods, E> {
                Ok(Methods(vec![method.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Methods, A::Error> {
                let mut methods = Vec::new();
                while let Some(method) = seq.next_element()? {
                    methods.push(method);
                }
                Ok(Methods(methods))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Methods, E> {
                Ok(Methods::default())
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Methods {
    fn schema_name() -> Cow<'static, str> {
        "Methods".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A method such as `GET`, or a list such as `[PUT, PATCH]`.",
            "oneOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" } },
            ],
        })
    }
}
