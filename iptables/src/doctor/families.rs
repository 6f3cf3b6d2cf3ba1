//! A proxy that gets IPv4 only, on a host that reaches others by IPv6 too.

use std::net::Ipv6Addr;

use super::{Finding, Level, known, scene::Scene};
use crate::{
    ruleset::{Expression, TableFamily, meta},
    verdict::Surroundings,
};

pub(super) fn examine(scene: &Scene<'_>) -> Option<Finding> {
    let is_proxys = |redirect: &&super::redirects::Redirect| {
        let listeners = scene.listeners(redirect).unwrap_or_default();
        listeners.iter().any(known::is_proxy)
    };
    let mut by_v4 = None;
    for redirect in scene.redirects.iter().filter(is_proxys) {
        let (table, _, rule) = scene.ruleset.rule(redirect.at);
        let asks_family = rule.expressions.iter().any(|e| {
            matches!(
                e,
                Expression::Meta {
                    key: meta::NFPROTO,
                    ..
                }
            )
        });
        match (table.family, redirect.address) {
            (TableFamily::Ip, _) => by_v4 = Some(redirect),
            (TableFamily::Inet, Some(ip)) if ip.is_ipv4() => by_v4 = Some(redirect),
            (TableFamily::Inet, None) if asks_family => by_v4 = Some(redirect),
            _ => return None,
        }
    }
    let redirect = by_v4?;
    let anywhere = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
    let route = scene.surroundings.route(anywhere.into(), None, 0, 0).ok()?;
    Some(Finding {
        level: Level::Warning,
        kind: "ipv6_not_captured",
        what: "connections by IPv4 are redirected to a proxy, those by IPv6 go past it".into(),
        evidence: vec![
            format!("rule: {}", scene.ruleset.text(redirect.at)),
            format!("this host has a way out by IPv6, through {}", route.device),
        ],
        fix: Some(
            "redirect IPv6 to the proxy too, or reject it, so that clients fall back to IPv4"
                .into(),
        ),
    })
}
