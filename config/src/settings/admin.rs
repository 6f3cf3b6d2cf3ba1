//! `admin`.

use std::{borrow::Cow, fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use crate::{check::Findings, one_or_many::TEXT_OR_KEYS};

/// The longest path of a unix socket: what the kernel's `sun_path` holds, less the zero at its end.
const MAX_SOCKET_PATH: usize = 107;

/// Where the proxy tells about itself and takes orders. The address alone may stand for all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Admin {
    pub listen: AdminAddress,
    pub mode: SocketMode,
    pub allow_remote: bool,
    pub hosts: Vec<String>,
    pub token_file: Option<PathBuf>,
}

/// What [`Admin`] is read from.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Admin")]
struct Keys {
    /// An address and port, or `unix:` and the absolute path of a socket. Default `127.0.0.1:15000`.
    listen: AdminAddress,
    /// Who may connect to a unix socket, as chmod's octal number. Default `0600`, the proxy's own user.
    mode: SocketMode,
    /// Whether `listen` may be an address that other hosts reach; from these only `/live`, `/ready` and
    /// `/metrics` are answered, unless they show the token. Default false.
    allow_remote: bool,
    /// Names besides `localhost` and IP addresses that a `Host` header may have: any other was made to
    /// point here by somebody else (DNS rebinding). Default: none.
    hosts: Vec<String>,
    /// A file with a token, which every request but those of probes and scrapers must then show as
    /// `Authorization: Bearer …`. Read anew at each reload. Default: none.
    token_file: Option<PathBuf>,
}

/// Where the admin listener is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A unix socket's permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl Admin {
    /// At `listen`, all else by default.
    pub fn at(listen: AdminAddress) -> Self {
        Self {
            listen,
            ..Self::default()
        }
    }

    /// The address, of one that has a port.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self.listen {
            AdminAddress::Tcp(address) => Some(address),
            AdminAddress::Unix(_) => None,
        }
    }

    pub(super) fn check(&self, to: &mut Findings) {
        match &self.listen {
            AdminAddress::Tcp(address) if !address.ip().is_loopback() && !self.allow_remote => to.error(
                "admin.listen".into(),
                format!("{address} is reachable from other hosts, and this listener tells every destination of the application; use 127.0.0.1 or unix:/path, or write `admin: {{ listen: \"{address}\", allow_remote: true }}`"),
            ),
            AdminAddress::Tcp(_) => {}
            AdminAddress::Unix(path) => {
                to.error_if(
                    !path.is_absolute(),
                    "admin.listen",
                    "a relative path depends on where the proxy was started; write one that begins with `/`",
                );
                to.error_if(
                    path.as_os_str().len() > MAX_SOCKET_PATH,
                    "admin.listen",
                    "the path of a unix socket has at most 107 bytes; choose a shorter one",
                );
            }
        }
        for (index, host) in self.hosts.iter().enumerate() {
            to.error_if(
                host.is_empty() || host.contains(['*', '/', ' ', ':', '@']),
                &format!("admin.hosts[{index}]"),
                "this is no host name; write one such as `sidecar.internal`, without a port",
            );
        }
        if let Some(file) = &self.token_file {
            to.error_if(
                !file.is_absolute(),
                "admin.token_file",
                "a relative path depends on where the proxy was started; write one that begins with `/`",
            );
        }
    }
}

impl From<Keys> for Admin {
    fn from(keys: Keys) -> Self {
        Self {
            listen: keys.listen,
            mode: keys.mode,
            allow_remote: keys.allow_remote,
            hosts: keys.hosts,
            token_file: keys.token_file,
        }
    }
}

impl<'de> Deserialize<'de> for Admin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ways;

        impl<'de> Visitor<'de> for Ways {
            type Value = Admin;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, `unix:` and a path, or keys with values")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Admin, E> {
                text.parse().map(Admin::at).map_err(E::custom)
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                keys: D,
            ) -> Result<Admin, D::Error> {
                Keys::deserialize(keys).map(Admin::from)
            }
        }

        deserializer.deserialize_newtype_struct(TEXT_OR_KEYS, Ways)
    }
}

impl JsonSchema for Admin {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AdminOrAddress".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let keys = generator.subschema_for::<Keys>();
        json_schema!({ "anyOf": [{ "type": "string" }, keys] })
    }
}

impl Default for AdminAddress {
    fn default() -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], 15000)))
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("`{text}` is no address; write an address and port, such as `127.0.0.1:15000`, or `unix:/run/outrigger/admin.sock`")
        })
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for AdminAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AdminAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for AdminAddress {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AdminAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl Serialize for SocketMode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o777 && (3..=4).contains(&text.len()) => Ok(Self(mode)),
            _ => Err(de::Error::custom(format_args!(
                "`{text}` is no mode; write an octal number such as `0600` or `0660`"
            ))),
        }
    }
}

impl JsonSchema for SocketMode {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SocketMode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "pattern": "^0?[0-7]{3}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn admin(text: &str) -> Result<Option<Admin>, String> {
        parse(text)
            .map(|settings| settings.admin)
            .map_err(|problems| {
                problems
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("\n")
            })
    }

    #[test]
    fn an_address_alone_and_keys_say_the_same() {
        let short = admin("admin: 127.0.0.1:9000").expect("an address");
        assert_eq!(
            short,
            admin("admin: { listen: 127.0.0.1:9000 }").expect("keys")
        );
        assert_eq!(short.expect("one").mode, SocketMode(0o600));
        let unix = admin("admin: { listen: 'unix:/run/a.sock', mode: 0660 }").expect("a path");
        let unix = unix.expect("one");
        assert_eq!(unix.listen, AdminAddress::Unix("/run/a.sock".into()));
        assert_eq!(unix.mode, SocketMode(0o660));
        assert_eq!(admin("admin: null"), Ok(None));
    }

    #[test]
    fn what_others_could_reach_is_refused_unless_it_is_meant() {
        let error = admin("admin: 0.0.0.0:15000").expect_err("it is open");
        assert!(error.contains("allow_remote: true"), "{error}");
        assert!(error.starts_with("line 1, column 8:"), "{error}");
        admin("admin: { listen: 0.0.0.0:15000, allow_remote: true }").expect("it is meant");
    }

    #[test]
    fn mistakes_are_told_at_their_place() {
        for (text, place, told) in [
            ("admin: localhost", "line 1, column 8", "no address"),
            (
                "admin: unix:relative",
                "line 1, column 8",
                "begins with `/`",
            ),
            ("admin:\n  mode: 9999", "line 2, column 9", "no mode"),
            (
                "admin:\n  lisen: 127.0.0.1:1",
                "line 2, column 3",
                "`listen`",
            ),
            (
                "admin:\n  hosts: [a, 'b:1']",
                "line 2, column 14",
                "no host name",
            ),
        ] {
            let error = admin(text).expect_err(text);
            assert!(
                error.starts_with(place) && error.contains(told),
                "{text}: {error}"
            );
        }
    }
}
