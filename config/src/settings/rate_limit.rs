//! `rate_limits` and `rate_limit_services`: how much of which traffic may pass, decided here or by a
//! service that many proxies share. Words and meanings are Envoy's.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Span};

/// How many requests (of HTTP) or connections (of everything else) of one kind may pass. Exactly one
/// of `token_bucket` and `service` decides. Of several limits all must agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// What headers and metrics call it, and what its buckets are kept by when the file changes.
    /// Required, unique in the file; letters, digits, `.`, `-` and `_`, at most 64.
    pub name: String,
    /// What traffic is told apart by: each combination of values has a bucket of its own. Traffic
    /// that lacks one of them (a header, of what is no HTTP) is not limited. Default: none, all of it
    /// together.
    #[serde(default)]
    pub actions: Vec<RateLimitAction>,
    /// Decided here, over all workers. Default: none.
    #[serde(default)]
    pub token_bucket: Option<TokenBucket>,
    /// Buckets of another size for certain values of `actions`. Default: none.
    #[serde(default)]
    pub descriptors: Vec<RateLimitDescriptor>,
    /// Buckets kept at once. Beyond, those that are fullest are forgotten first, for a full bucket is
    /// as good as none. Default 10,000, some 300 KiB.
    #[serde(default = "ten_thousand")]
    pub max_buckets: NonZeroU32,
    /// Decided by the service of this name in `rate_limit_services`, for all proxies that ask it.
    /// Default: none.
    #[serde(default)]
    pub service: Option<String>,
    /// What the service is to apply in place of its own limit. Default: none.
    #[serde(default)]
    pub limit: Option<RateLimitOverride>,
    /// Tokens that one request or connection takes. Default 1.
    #[serde(default = "one")]
    pub hits_addend: NonZeroU32,
    /// How long what is over the limit may wait for its token instead of being turned away. At most
    /// 1 m. Default `0s`: it never waits.
    #[serde(default = "no_time")]
    pub max_delay: Span,
    /// The part of the traffic that is looked at, in percent. Default 100.
    #[serde(default = "whole")]
    pub enabled: Percent,
    /// The part of what is over the limit that is turned away, in percent; the rest passes and is
    /// counted. 0 only counts. Default 100.
    #[serde(default = "whole")]
    pub enforced: Percent,
    /// What a request over the limit is answered. From 400 to 599. Default 429.
    #[serde(default = "too_many_requests")]
    pub status: u16,
    /// Whether a gRPC call over the limit is answered RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    /// Default false, Envoy's.
    #[serde(default)]
    pub rate_limited_as_resource_exhausted: bool,
    /// Which responses have `RateLimit` and `RateLimit-Policy`. Default `limited`: a response of the
    /// upstream is left as it is.
    #[serde(default)]
    pub headers: RateLimitHeaders,
    /// Whether the same responses have `X-RateLimit-Limit`, `-Remaining` and `-Reset` too. Default
    /// false.
    #[serde(default)]
    pub x_ratelimit_headers: bool,
}

/// Tokens come evenly, `tokens_per_fill` in each `fill_interval`, until there are `max_tokens`; what
/// finds too few is over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How much may come at once, after a time without any. Required.
    pub max_tokens: NonZeroU32,
    /// Default 1, Envoy's. At most 1,000,000 a second.
    #[serde(default = "one")]
    pub tokens_per_fill: NonZeroU32,
    /// Required.
    pub fill_interval: Span,
}

/// A bucket for one combination of values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitDescriptor {
    /// All that `actions` yield, in their order. Required.
    pub entries: Vec<RateLimitEntry>,
    /// Required.
    pub token_bucket: TokenBucket,
}

/// One thing that traffic is told apart by, and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitEntry {
    /// Required.
    pub key: String,
    /// Required.
    pub value: String,
}

/// What the service is asked to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitOverride {
    /// Required.
    pub requests_per_unit: u32,
    /// Required.
    pub unit: RateLimitUnit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateLimitUnit {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Year,
}

/// One thing that traffic is told apart by: an entry (a key and a value) of its descriptor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateLimitAction {
    /// `remote_address`: the client's IP address.
    RemoteAddress,
    /// `masked_remote_address`: the network that it is in.
    MaskedRemoteAddress(MaskedRemoteAddress),
    /// `destination_address`: the address and port that the client dialled.
    DestinationAddress,
    /// `destination_cluster`: the cluster's name; traffic without a cluster lacks it.
    DestinationCluster,
    /// A header's value; of several lines with that name all, joined with commas.
    RequestHeaders(RequestHeaders),
    /// A value of the user's choice.
    GenericKey(GenericKey),
}

impl RateLimitAction {
    /// The key of the entry that it yields.
    pub fn key(&self) -> &str {
        match self {
            Self::RemoteAddress => "remote_address",
            Self::MaskedRemoteAddress(_) => "masked_remote_address",
            Self::DestinationAddress => "destination_address",
            Self::DestinationCluster => "destination_cluster",
            Self::RequestHeaders(header) => &header.descriptor_key,
            Self::GenericKey(generic) => &generic.descriptor_key,
        }
    }
}

/// How much of the address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaskedRemoteAddress {
    /// From 0 to 32. Default 32, Envoy's.
    pub v4_prefix_mask_len: u8,
    /// From 0 to 128. Default 128, Envoy's.
    pub v6_prefix_mask_len: u8,
}

impl Default for MaskedRemoteAddress {
    fn default() -> Self {
        Self {
            v4_prefix_mask_len: 32,
            v6_prefix_mask_len: 128,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestHeaders {
    /// A header's name, or `:path`, `:method` or `:authority`. Required.
    pub header_name: String,
    /// The entry's key. Required.
    pub descriptor_key: String,
    /// Whether a request without the header is limited by the other actions, instead of not at all.
    /// Default false, Envoy's.
    #[serde(default)]
    pub skip_if_absent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenericKey {
    /// The entry's value. Required.
    pub descriptor_value: String,
    /// The entry's key. Default `generic_key`.
    #[serde(default = "generic_key")]
    pub descriptor_key: String,
}

/// Which responses tell of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateLimitHeaders {
    /// Those that turn a request away.
    #[default]
    Limited,
    /// Every response.
    Always,
    /// None.
    Never,
}

/// A service that speaks `envoy.service.ratelimit.v3.RateLimitService`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitService {
    /// What `service` of a limit calls it. Required, unique.
    pub name: String,
    /// The cluster that it is reached in, with that cluster's balancing and health. It speaks HTTP/2
    /// in the clear. Required.
    pub cluster: String,
    /// The part of the service's own configuration that is meant. Required.
    pub domain: String,
    /// How long its answer is waited for. Default 20 ms, Envoy's.
    #[serde(default = "twenty_millis")]
    pub timeout: Span,
    /// Whether traffic is turned away (500) when the service does not answer. Default false, Envoy's:
    /// it passes, for a limiter that is down must not take the traffic with it.
    #[serde(default)]
    pub failure_mode_deny: bool,
    /// Questions under way at once; what is beyond goes as if the service did not answer. Default
    /// 1,024.
    #[serde(default = "many")]
    pub max_pending_requests: NonZeroU32,
    /// Answers `over the limit` that are remembered until their limit is reset, so that the service
    /// is not asked again meanwhile; 0 for none. Default 10,000.
    #[serde(default = "ten_thousand_or_none")]
    pub cache_entries: u32,
    /// The longest that one is remembered, so that a limit raised at the service is soon seen. Default
    /// 1 m.
    #[serde(default = "one_minute")]
    pub cache_max_age: Span,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn many() -> NonZeroU32 {
    NonZeroU32::new(1024).expect("it is not zero")
}

fn ten_thousand() -> NonZeroU32 {
    NonZeroU32::new(10_000).expect("it is not zero")
}

fn ten_thousand_or_none() -> u32 {
    10_000
}

fn whole() -> Percent {
    Percent(100)
}

fn too_many_requests() -> u16 {
    429
}

fn no_time() -> Span {
    Span::from_secs(0)
}

fn twenty_millis() -> Span {
    Span::from_millis(20)
}

fn one_minute() -> Span {
    Span::from_secs(60)
}

fn generic_key() -> String {
    "generic_key".into()
}
