//! `capture`: whose connections are redirected to the proxy.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::{Network, PortRange, Scope, Span};

/// Whose connections are redirected to the proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// Whose: `netns` (everybody's in the network namespace), `cgroup:PATH`, `uid:UID[,UID…]` or
    /// `gid:GID[,GID…]`. Default `netns`, since a container's or pod's namespace is its own.
    pub scope: Scope,
    /// The uid that the proxy runs as; its own connections are never captured. Default 1337, as
    /// Istio's.
    pub proxy_uid: u32,
    /// A socket mark that the proxy sets on its own connections, and that is never captured.
    /// Needed only where one uid is all there is (a rootless user namespace); setting it takes
    /// CAP_NET_ADMIN or CAP_NET_RAW. Default: none.
    pub proxy_mark: Option<u32>,
    /// How long the redirect applies after the proxy's last sign of life, of which it gives four in
    /// that time. A proxy that hangs without dying loses new connections, which then go direct,
    /// after this long. From 400 ms (below, a busy machine would be taken for a hung proxy) to 1 m,
    /// in steps of 100 ms, which every kernel's clock can count. Default 2 s.
    pub lease: Span,
    pub include: Include,
    pub exclude: Exclude,
    /// Networks that must not be reached without the proxy: new TCP connections that would be captured
    /// and are not, because the proxy hangs, drains or is gone, are refused (reset). It stays so after
    /// the proxy's end, until `remove-rules` or the orderly end of `run`. Needs Linux 6.9. Default: none, everything fails open.
    #[schemars(with = "Vec<Network>")]
    pub fail_closed: Vec<IpNet>,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            scope: Scope::default(),
            proxy_uid: 1337,
            proxy_mark: None,
            lease: Span::from_secs(2),
            include: Include::default(),
            exclude: Exclude::default(),
            fail_closed: Vec::new(),
        }
    }
}

impl Capture {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.proxy_uid == 65534 {
            problems.push(("capture.proxy_uid", "65534 is `nobody`, which also stands for every unmapped user; use a uid of the proxy's own".into()));
        }
        if self.proxy_mark == Some(0) {
            problems.push((
                "capture.proxy_mark",
                "0 is the mark of every unmarked connection; use any other number".into(),
            ));
        }
        let lease = self.lease.0;
        if !(Duration::from_millis(400)..=Duration::from_secs(60)).contains(&lease)
            || !lease.as_nanos().is_multiple_of(100_000_000)
        {
            problems.push((
                "capture.lease",
                "write 400ms to 60s, in steps of 100ms; the default is 2s".into(),
            ));
        }
        let contradictions = self
            .fail_closed
            .iter()
            .filter_map(|net| self.contradiction(net));
        problems.extend(contradictions.map(|problem| ("capture.fail_closed", problem)));
        problems
    }

    /// Why `net`, all of it, would not be captured, so that it could not be reached at all.
    fn contradiction(&self, net: &IpNet) -> Option<String> {
        let overlaps = |other: &&IpNet| other.contains(net) || net.contains(*other);
        let included = IpNet::aggregate(&self.include.cidrs);
        if let Some(excluded) = self.exclude.cidrs.iter().find(overlaps) {
            Some(format!(
                "{net} overlaps {excluded} of capture.exclude.cidrs, which goes past the proxy; take it from one of the two"
            ))
        } else if !included.iter().any(|wider| wider.contains(net)) {
            Some(format!(
                "{net} is not within capture.include.cidrs, so the proxy never sees it; include it too"
            ))
        } else {
            NEVER_CAPTURED
                .iter()
                .find(|never| never.contains(net))
                .map(|never| format!("{net} is within {never}, which is never captured; remove it"))
        }
    }
}

/// Loopback, and what needs an interface that the proxy does not know.
const NEVER_CAPTURED: [IpNet; 3] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
        10,
    )),
];

/// What is captured unless excluded. Default: every destination that is not local to the host,
/// every port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Include {
    /// Networks dialled. Default: every one.
    #[schemars(with = "Vec<Network>")]
    pub cidrs: Vec<IpNet>,
    /// Ports dialled. Default: every one.
    pub ports: Vec<PortRange>,
}

impl Default for Include {
    fn default() -> Self {
        Self {
            cidrs: vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
            ports: vec![PortRange::ALL],
        }
    }
}

/// What is never captured. Default: port 22, so that a mistake never locks an operator out of the
/// machines that he reaches from here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Exclude {
    /// Networks dialled. Default: none.
    #[schemars(with = "Vec<Network>")]
    pub cidrs: Vec<IpNet>,
    /// Ports dialled. Default: 22.
    pub ports: Vec<PortRange>,
    /// Users whose connections go direct. Default: none.
    pub uids: Vec<u32>,
    /// Groups whose connections go direct. Default: none.
    pub gids: Vec<u32>,
}

impl Default for Exclude {
    fn default() -> Self {
        Self {
            cidrs: Vec::new(),
            ports: vec![PortRange::single(22)],
            uids: Vec::new(),
            gids: Vec::new(),
        }
    }
}
