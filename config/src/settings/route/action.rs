//! What becomes of traffic that a route holds for, where that is more than one cluster.

use std::{collections::BTreeMap, num::NonZeroU16};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::edits::RegexRewrite;
use crate::Labels;

/// One of the clusters among which traffic is split. A request, or a connection of another protocol,
/// goes to one of them, its retries included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// A cluster's name, or `original_destination`. Required.
    pub cluster: String,
    /// Its share, relative to the sum of all; 0 is none. Required.
    pub weight: u32,
    /// Only endpoints that have all of these labels. Default: none, all endpoints.
    #[serde(default)]
    pub subset: Labels,
}

/// Where the client is told to ask. What is not written stays as it was asked for, the query included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redirect {
    /// Default: `http`, which is all that the proxy can read.
    pub scheme: Option<Scheme>,
    /// Default: the host that was asked for.
    pub host: Option<String>,
    /// Default: the port that was asked for; with another scheme the scheme's own.
    pub port: Option<NonZeroU16>,
    /// The whole path; with a `?` in it, the query too. Default: as it was asked for.
    pub path: Option<String>,
    /// What takes the place of what `match.path` found. Default: none.
    pub prefix: Option<String>,
    /// What takes the place of what an expression finds in the path. Default: none.
    pub regex: Option<RegexRewrite>,
    /// 301, 302, 303, 307 or 308. Default 301, Envoy's.
    pub code: RedirectCode,
    /// Leaves the query out. Default false.
    pub strip_query: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A status that sends a client elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct RedirectCode(#[schemars(range(min = 301, max = 308))] pub u16);

impl Default for RedirectCode {
    fn default() -> Self {
        Self(301)
    }
}

impl<'de> Deserialize<'de> for RedirectCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer)? {
            code @ (301 | 302 | 303 | 307 | 308) => Ok(Self(code)),
            code => Err(serde::de::Error::custom(format_args!(
                "{code} sends nobody elsewhere; write 301, 302, 303, 307 or 308"
            ))),
        }
    }
}

/// An answer of the proxy's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Respond {
    /// From 200 to 599. Required.
    pub status: u16,
    /// At most 64 KiB. Default: none.
    #[serde(default)]
    pub body: String,
    /// Headers by name. Default: `content-type: text/plain` if there is a body.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}
