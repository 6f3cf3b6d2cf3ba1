//! Where a collector of traces listens.

use std::{borrow::Cow, fmt, net::Ipv6Addr, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `http://host:port/path`, of which port and path may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorUrl {
    /// A name or an address, IPv6 without its brackets.
    pub host: String,
    pub port: Option<u16>,
    /// Empty, or what stands before `/v1/traces`: with a slash in front and none behind.
    pub path: String,
}

impl CollectorUrl {
    /// Host and port as a URL has them; `port` where none was written.
    pub fn authority(&self, port: u16) -> String {
        let port = self.port.unwrap_or(port);
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

impl FromStr for CollectorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("https://") {
            return Err(format!(
                "`{text}` asks for TLS, which spans are not sent over; send them to a collector on this host or in this pod (`http://127.0.0.1:4317`), and let that send them on"
            ));
        }
        let wrong =
            |what: &str| format!("`{text}` {what}; write a URL such as `http://127.0.0.1:4317`");
        let rest = text
            .strip_prefix("http://")
            .ok_or_else(|| wrong("does not begin with `http://`"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, behind) = rest
                    .split_once(']')
                    .filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok())
                    .ok_or_else(|| wrong("has no IPv6 address in its brackets"))?;
                (host, behind.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
        if host.is_empty() || !host.bytes().all(is_name) {
            return Err(wrong("names no host"));
        }
        let port = port
            .map(|port| match port.parse() {
                Ok(0) | Err(_) => Err(wrong("has no port from 1 to 65535")),
                Ok(port) => Ok(port),
            })
            .transpose()?;
        let is_path = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b);
        if !path.bytes().all(is_path) {
            return Err(wrong("has more than a path behind its host"));
        }
        Ok(Self {
            host: host.into(),
            port,
            path: path.trim_end_matches('/').into(),
        })
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, path } = self;
        match host.contains(':') {
            true => write!(f, "http://[{host}]")?,
            false => write!(f, "http://{host}")?,
        }
        if let Some(port) = port {
            write!(f, ":{port}")?;
        }
        f.write_str(path)
    }
}

impl<'de> Deserialize<'de> for CollectorUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Serialize for CollectorUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for CollectorUrl {
    fn schema_name() -> Cow<'static, str> {
        "CollectorUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A URL such as `http://127.0.0.1:4317`.",
            "type": "string",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write_and_prints_it_again() {
        for (text, host, port, path) in [
            ("http://127.0.0.1:4317", "127.0.0.1", Some(4317), ""),
            ("http://[::1]:4318", "::1", Some(4318), ""),
            (
                "http://otel.observability.svc",
                "otel.observability.svc",
                None,
                "",
            ),
            ("http://otel:80/in/otlp", "otel", Some(80), "/in/otlp"),
        ] {
            let url: CollectorUrl = text.parse().unwrap();
            assert_eq!(
                (&*url.host, url.port, &*url.path),
                (host, port, path),
                "{text}"
            );
            assert_eq!(url.to_string(), text);
        }
        let url: CollectorUrl = "http://otel/".parse().unwrap();
        assert_eq!((&*url.path, &*url.authority(4317)), ("", "otel:4317"));
        let url: CollectorUrl = "http://[2001:db8::1]".parse().unwrap();
        assert_eq!(url.authority(4318), "[2001:db8::1]:4318");
    }

    #[test]
    fn refuses_the_rest_and_says_what_to_write() {
        for text in [
            "",
            "127.0.0.1:4317",
            "grpc://x",
            "http://",
            "http://:4317",
            "http://a:0",
            "http://a:65536",
            "http://a:b",
            "http://a?x=1",
            "http://u@a",
            "http://[::g]:1",
            "http://a b",
            "http://a/b?c",
            "http://a/b\r\nX: y",
        ] {
            let error = text.parse::<CollectorUrl>().unwrap_err();
            assert!(error.contains("http://127.0.0.1:4317"), "{text}: {error}");
        }
        let error = "https://otel:4317".parse::<CollectorUrl>().unwrap_err();
        assert!(error.contains("TLS"), "{error}");
    }
}
