//! Transparent proxies known by name: by the program that listens, or by what their installers
//! leave in the rules.

use std::net::IpAddr;

use super::redirects::Redirect;
use crate::{
    listeners::Listener,
    ruleset::{Ruleset, XtMatch},
};

struct Maker {
    name: &'static str,
    /// Beginnings of the names of chains and tables that its installer makes.
    chains: &'static [&'static str],
    ports: &'static [u16],
    /// The user whose connections its rules let go.
    uid: Option<u32>,
}

const MAKERS: [Maker; 11] = [
    Maker {
        name: "istio",
        chains: &["ISTIO_"],
        ports: &[15001, 15006],
        uid: Some(1337),
    },
    Maker {
        name: "linkerd",
        chains: &["PROXY_INIT_"],
        ports: &[4140, 4143],
        uid: Some(2102),
    },
    Maker {
        name: "kuma",
        chains: &["KUMA_", "MESH_"],
        ports: &[15001, 15006],
        uid: Some(5678),
    },
    Maker {
        name: "consul",
        chains: &["CONSUL_PROXY_"],
        ports: &[15001, 20000],
        uid: Some(5995),
    },
    Maker {
        name: "redsocks",
        chains: &["REDSOCKS"],
        ports: &[12345, 31338],
        uid: None,
    },
    Maker {
        name: "clash",
        chains: &["CLASH", "clash", "MIHOMO", "mihomo"],
        ports: &[7892, 7893],
        uid: None,
    },
    Maker {
        name: "v2ray",
        chains: &["V2RAY", "v2ray"],
        ports: &[],
        uid: None,
    },
    Maker {
        name: "xray",
        chains: &["XRAY", "xray"],
        ports: &[],
        uid: None,
    },
    Maker {
        name: "sing-box",
        chains: &["sing-box", "SINGBOX"],
        ports: &[],
        uid: None,
    },
    Maker {
        name: "shadowsocks",
        chains: &["SHADOWSOCKS", "SS_", "SSREDIR"],
        ports: &[],
        uid: None,
    },
    Maker {
        name: "sshuttle",
        chains: &["sshuttle-"],
        ports: &[],
        uid: None,
    },
];

/// Programs made to take redirected connections.
const PROGRAMS: [&str; 22] = [
    "proxyctl",
    "envoy",
    "pilot-agent",
    "linkerd2-proxy",
    "ztunnel",
    "kuma-dp",
    "consul-dataplane",
    "redsocks",
    "redsocks2",
    "haproxy",
    "squid",
    "sshuttle",
    "mitmproxy",
    "mitmdump",
    "v2ray",
    "xray",
    "clash",
    "mihomo",
    "sing-box",
    "ss-redir",
    "sslocal",
    "tinyproxy",
];

/// Whether the program behind `listener` is made to take redirected connections.
pub(super) fn is_proxy(listener: &Listener) -> bool {
    /// What the kernel keeps of a program's name.
    const KEPT: usize = 15;
    let is_kept =
        |name: &str, kept: &str| name == kept || kept.len() == KEPT && name.starts_with(kept);
    let mut names = listener.owners.iter().map(|owner| owner.name.as_str());
    names.any(|kept| PROGRAMS.iter().any(|name| is_kept(name, kept)))
}

/// Whose installer made the rule of `redirect`, and by what that shows.
pub(super) fn maker(ruleset: &Ruleset, redirect: &Redirect) -> Option<(&'static str, String)> {
    let (table, chain, _) = ruleset.rule(redirect.at);
    let begins = |name: &str, maker: &Maker| maker.chains.iter().any(|s| name.starts_with(s));
    for name in [&chain.name, &table.name] {
        if let Some(maker) = MAKERS.iter().find(|maker| begins(name, maker)) {
            return Some((
                maker.name,
                format!("{name} is a name that {} gives", maker.name),
            ));
        }
    }
    // A port alone proves nothing; with the user whom such rules let go it does.
    let port = redirect.port?;
    let lets_go = |uid: u32| {
        table.chains.iter().flat_map(|c| &c.rules).any(|rule| {
            rule.expressions.iter().any(|e| match e {
                crate::ruleset::Expression::XtMatch(XtMatch::Owner {
                    uid: Some(found), ..
                }) => found.0 == uid && found.1 == uid,
                _ => false,
            })
        })
    };
    let is_it = |maker: &&Maker| maker.ports.contains(&port) && maker.uid.is_some_and(lets_go);
    let maker = MAKERS.iter().find(is_it)?;
    let reason = format!(
        "port {port}, and user {} let go, are what {} uses",
        maker.uid?, maker.name
    );
    Some((maker.name, reason))
}

/// Of Outrigger's own.
pub(super) fn is_own(ruleset: &Ruleset, redirect: &Redirect) -> bool {
    let (table, chain, _) = ruleset.rule(redirect.at);
    table.name.starts_with("outrigger") || chain.name.starts_with("OUTRIGGER")
}

/// How `address` is dialled directly.
pub(super) fn direct(listener: &Listener) -> std::net::SocketAddr {
    let ip = match listener.address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        ip => ip,
    };
    (ip, listener.address.port()).into()
}
