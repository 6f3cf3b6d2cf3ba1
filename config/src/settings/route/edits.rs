//! What a route changes in requests and responses.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SearchRegex;

/// Header lines that belong to a connection, to the framing of a message, or to a key of their own.
/// Whoever touched them could break what it does not understand, or let requests be smuggled.
pub const RESERVED_HEADERS: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Of a request's path at most one of `prefix` and `regex`, of its host one of `host` and
/// `auto_host`. The query stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rewrite {
    /// What takes the place of what `match.path` found: with `{ prefix: /v1 }` there and `/` here,
    /// `/v1/users` becomes `/users`. Default: none.
    pub prefix: Option<String>,
    /// What takes the place of what an expression finds in the path. Default: none.
    pub regex: Option<RegexRewrite>,
    /// The host that the upstream is asked for, with a port where one is wanted. Default: none.
    pub host: Option<String>,
    /// The host is the chosen endpoint's `hostname`, or the name that its cluster's `dns` looks up,
    /// if it has one. Default false.
    pub auto_host: bool,
}

/// All that the expression finds in a path is replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexRewrite {
    /// It may match anywhere in the path; `^` and `$` tie it to the ends. Required.
    pub pattern: SearchRegex,
    /// `\1` to `\9` stand for the groups of the pattern, `\0` for all that matched, `\\` for a
    /// backslash. Required.
    pub substitution: String,
}

/// First `remove`, then `set`, then `add_if_absent`, then `add`. Headers that belong to a connection
/// or to a message's framing are not for a route, and neither is `Host`, for which there is `rewrite`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HeaderEdits {
    /// Lines that are added, whatever is there (Envoy's `APPEND_IF_EXISTS_OR_ADD`). Default: none.
    pub add: BTreeMap<String, String>,
    /// Lines that take the place of all of their name (`OVERWRITE_IF_EXISTS_OR_ADD`). Default: none.
    pub set: BTreeMap<String, String>,
    /// Lines that are added where none of their name is (`ADD_IF_ABSENT`). Default: none.
    pub add_if_absent: BTreeMap<String, String>,
    /// Names of lines that are taken out. Default: none.
    pub remove: Vec<String>,
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
