//! Whose connections are captured: `netns`, `cgroup:/app`, `uid:1000,1001` or `gid:100`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// More ids than that belong into a group or a cgroup.
const MAX_IDS: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// Everybody's in the network namespace.
    #[default]
    Netns,
    /// Of what runs in a cgroup (version 2) or below it: a path as in `/proc/PID/cgroup`, or `self`.
    Cgroup(String),
    /// Of sockets that these users opened; sorted.
    Uids(Vec<u32>),
    /// Of sockets that were opened with one of these as the process' group (not a supplementary
    /// one); sorted.
    Gids(Vec<u32>),
}

impl JsonSchema for Scope {
    fn schema_name() -> Cow<'static, str> {
        "Scope".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(netns|cgroup:(self|/.*)|[ug]id:[0-9]+(,[0-9]+)*)$",
        })
    }
}

impl Scope {
    pub fn is_netns(&self) -> bool {
        *self == Self::Netns
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, value) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "netns" if text == "netns" => Ok(Self::Netns),
            "cgroup" if value == "self" || value.starts_with('/') => {
                if value.contains(['"', '\n', '\0']) {
                    return Err("a cgroup path has no quotes or line ends".into());
                }
                Ok(Self::Cgroup(value.into()))
            }
            "cgroup" => Err(
                "write a path as /proc/PID/cgroup shows it after `0::`, such as `cgroup:/app`, or `cgroup:self`"
                    .into(),
            ),
            "uid" => ids(value, "uid", "id -u NAME").map(Self::Uids),
            "gid" => ids(value, "gid", "getent group NAME").map(Self::Gids),
            _ => Err(format!(
                "`{text}` is no scope; use `netns`, `cgroup:PATH`, `uid:UID[,UID…]` or `gid:GID[,GID…]`"
            )),
        }
    }
}

fn ids(list: &str, kind: &str, command: &str) -> Result<Vec<u32>, String> {
    let mut ids = list
        .split(',')
        // The last number stands for "no such user" in the kernel.
        .map(|word| word.trim().parse().ok().filter(|&id: &u32| id != u32::MAX))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            format!("write numbers, such as `{kind}:1000` or `{kind}:1000,1001`; `{command}` tells that of a name")
        })?;
    ids.sort_unstable();
    ids.dedup();
    if ids.len() > MAX_IDS {
        return Err(format!(
            "more than {MAX_IDS} ids; use a common group (`gid:`) or a cgroup instead"
        ));
    }
    Ok(ids)
}

impl TryFrom<String> for Scope {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Netns => f.write_str("netns"),
            Self::Cgroup(path) => write!(f, "cgroup:{path}"),
            Self::Uids(ids) => write!(f, "uid:{}", list(ids)),
            Self::Gids(ids) => write!(f, "gid:{}", list(ids)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["netns", "cgroup:/a/b", "cgroup:self", "uid:0,7", "gid:100"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        let sorted: Scope = "uid:9, 3,9".parse().unwrap();
        assert_eq!(sorted, Scope::Uids(vec![3, 9]));
    }

    #[test]
    fn what_is_no_scope_is_told_how_to_write_it() {
        for (text, advice) in [
            ("pod", "cgroup:PATH"),
            ("netns:x", "use `netns`"),
            ("cgroup:", "0::"),
            ("cgroup:app", "0::"),
            ("uid:", "id -u"),
            ("uid:alice", "id -u"),
            ("uid:4294967295", "id -u"),
            ("gid:1,", "getent"),
        ] {
            let refused = text.parse::<Scope>().unwrap_err();
            assert!(refused.contains(advice), "{text}: {refused}");
        }
    }

    #[test]
    fn the_configuration_file_has_it_under_capture() {
        let settings = crate::parse("capture: { scope: 'uid:1000' }").unwrap();
        assert_eq!(settings.capture.scope, Scope::Uids(vec![1000]));
        let problem = &crate::parse("capture: { scope: everybody }").unwrap_err()[0];
        assert!(problem.message.contains("is no scope"), "{problem}");
    }
}
