//! `routes`: which traffic goes where, and what is done to it on the way.

mod action;
mod edits;
mod fault;
mod matching;
mod mirror;
mod retry;
mod timeout;

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RateLimit, RouteTracing, cluster::Labels};
use crate::Span;

pub use action::{Redirect, RedirectCode, Respond, Scheme, Share};
pub use edits::{HeaderEdits, RESERVED_HEADERS, RegexRewrite, Rewrite};
pub use fault::{Abort, Delay, Fault};
pub use matching::{Condition, Match, Methods, PathMatch};
pub use mirror::Mirror;
pub use retry::{
    BackOff, Hedge, RateLimited, ResetFormat, ResetHeader, RetriableHeader, Retry, RetryOn,
};
pub use timeout::GrpcTimeout;

/// The cluster name that stands for the address that was dialled, without any policy but `defaults`.
pub const ORIGINAL_DESTINATION: &str = "original_destination";

/// The first route whose `match` holds decides; traffic that none matches goes where it was dialled.
/// Exactly one of `cluster`, `split`, `redirect` and `respond` says what becomes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// What metrics, logs and traces call it; unique. Default: `route-` and its place in the list,
    /// from 1.
    #[serde(default)]
    pub name: Option<String>,
    /// All of its keys must hold; without any it holds for everything. Required.
    #[serde(rename = "match")]
    pub matches: Match,
    /// A cluster's name, or `original_destination`. Default: none.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Only endpoints that have all of these labels. Default: none, all endpoints.
    #[serde(default)]
    pub subset: Labels,
    /// Several clusters, each with its share. Default: none.
    #[serde(default)]
    pub split: Vec<Share>,
    /// Tells an HTTP client to ask elsewhere. Default: none.
    #[serde(default)]
    pub redirect: Option<Redirect>,
    /// Answers an HTTP client without asking anybody. Default: none.
    #[serde(default)]
    pub respond: Option<Respond>,
    /// Changes of an HTTP request's path and host. Default: none.
    #[serde(default)]
    pub rewrite: Option<Rewrite>,
    /// Changes of an HTTP request's header. Default: none.
    #[serde(default)]
    pub request_headers: HeaderEdits,
    /// Changes of an HTTP response's header, those that the proxy makes by `redirect` and `respond`
    /// included. Default: none.
    #[serde(default)]
    pub response_headers: HeaderEdits,
    /// Sends copies of HTTP requests to other clusters; their answers are thrown away. Default: none.
    #[serde(default)]
    pub mirror: Vec<Mirror>,
    /// Delays or fails a share of the traffic on purpose, to see how its client copes. Default: none.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// How much may take this route. Default: no limit.
    #[serde(default)]
    pub rate_limits: Vec<RateLimit>,
    /// How this route's requests are sampled. Default: as `tracing` says.
    #[serde(default)]
    pub tracing: Option<RouteTracing>,
    /// From the last byte of a request to the last of its answer, retries included; then 504, or a
    /// reset if the answer has begun. Default `null`: as long as a direct connection would have taken.
    /// Envoy's 15 s would end long downloads and streams that nobody thought of.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// No byte either way during a request. Default `null`: no limit.
    #[serde(default)]
    pub idle_timeout: Option<Span>,
    /// From a request's head to the end of its answer, whatever goes on in between; tunnels made by an
    /// upgrade or CONNECT included. Default `null`: no limit.
    #[serde(default)]
    pub max_stream_duration: Option<Span>,
    /// No byte either way in an opaque connection or a tunnel. Default `null`: `timeouts.tunnel_idle`.
    #[serde(default)]
    pub tunnel_idle_timeout: Option<Span>,
    /// Honours the deadline of gRPC requests. Default: `{}` where any of these times or `retry` is
    /// set, else none.
    #[serde(default)]
    pub grpc_timeout: Option<GrpcTimeout>,
    /// Sends failed requests again. Default: none; `{}` does so once where it is safe.
    #[serde(default)]
    pub retry: Option<Retry>,
}

impl Route {
    /// What it is called at this place in the list, from 0.
    pub(crate) fn name_at(&self, index: usize) -> Cow<'_, str> {
        match &self.name {
            Some(name) => name.into(),
            None => format!("route-{}", index + 1).into(),
        }
    }

    /// Every cluster that it names, mirrors included, with the key's path below the route's.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = (String, &str)> {
        let one = self
            .cluster
            .iter()
            .map(|name| ("cluster".to_owned(), name.as_str()));
        let shares = self.split.iter().enumerate();
        let mirrors = self.mirror.iter().enumerate();
        one.chain(shares.map(|(i, share)| (format!("split[{i}].cluster"), share.cluster.as_str())))
            .chain(
                mirrors
                    .map(|(i, mirror)| (format!("mirror[{i}].cluster"), mirror.cluster.as_str())),
            )
    }

    /// Whether anything but `match` and the action needs HTTP.
    pub(crate) fn edits_http(&self) -> bool {
        self.rewrite.is_some()
            || !self.request_headers.is_empty()
            || !self.response_headers.is_empty()
            || !self.mirror.is_empty()
    }
}
