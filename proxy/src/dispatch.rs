//! Where a request or tunnel goes: its route, the cluster that leads to, and one endpoint of that.
//!
//! A route decides on a [`Target`]; a [`Way`] chooses a [`Hop`] there, and connects. A hop holds what
//! the cluster granted (a place among its requests, the consent of the endpoint's breaker) until it is
//! dropped, and is told how it went; unreported, it tells nothing of the endpoint.
//!
//! Failure edges: no endpoint, a limit, a tripped breaker are told to the client as 503. An endpoint
//! that takes no connection is reported and another one tried: nothing was sent, so that is always
//! safe. Traffic without a route knows none of this: it goes where it was dialled.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::{
    Cluster as Settings, Cookie, HashOn, Headers, Labels, LoadBalancer, control::ClusterOutlook,
};
use tokio::{io::Interest, net::TcpStream, time::timeout};

use crate::{
    address::OriginalDst,
    cluster::{Cluster, Outcome, Permit, PickContext, PickError, Picked, Subset, hash_of},
    failure::Failure,
    observe::FailedTries,
    rate_limit::{Limits, RateLimits},
    upstream::{self, Upstream},
    worker::Worker,
};

/// Endpoints that one request dials at most. Three that refuse in a row are no chance any more, and
/// the client waits for each that times out.
const MAX_DIALS: usize = 3;

/// What a route leads to, made when its configuration was published.
#[derive(Debug)]
pub struct Onward {
    pub cluster: Arc<Cluster>,
    subset: Option<Subset>,
    hash_on: Option<HashOn>,
    connect_timeout: Duration,
    pub rate_limits: Option<Arc<Limits>>,
}

#[derive(Clone, Debug, Default)]
pub enum Target {
    /// Where it was dialled, under no policy of ours.
    #[default]
    Original,
    Cluster(Arc<Onward>),
}

/// What chooses the endpoint, of those clusters that go by a key.
#[derive(Debug, Default)]
pub struct Key {
    hash: Option<u64>,
    /// A `Set-Cookie` line for the answer, so that the client's next request has the key.
    pub set_cookie: Option<String>,
}

/// From one request or tunnel to its target.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    pub worker: &'a Worker,
    pub original: OriginalDst,
    pub target: &'a Target,
    pub key: &'a Key,
}

/// One try of one request or tunnel at one peer.
#[derive(Debug)]
pub struct Hop {
    pub peer: SocketAddr,
    onward: Option<Arc<Onward>>,
    picked: Option<Picked>,
}

/// Endpoints that a request need not be sent to again, if there are others.
#[derive(Debug, Default)]
pub struct Tried {
    /// By earlier tries, the latest last.
    earlier: Vec<SocketAddr>,
    /// By the present one: those that took no connection.
    refused: Vec<SocketAddr>,
}

/// A connection, and the try that it was made for.
#[derive(Debug)]
pub struct Dialled {
    pub upstream: Upstream,
    pub hop: Hop,
}

impl Onward {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        settings: &Settings,
        subset: Option<Subset>,
        limits: &RateLimits,
    ) -> Self {
        let is_per_destination = settings.original_destination.is_some();
        let hash_on = match &settings.load_balancer {
            LoadBalancer::RingHash(ring) => Some(ring.hash_on.clone()),
            LoadBalancer::Maglev(maglev) => Some(maglev.hash_on.clone()),
            LoadBalancer::RoundRobin
            | LoadBalancer::LeastRequest(_)
            | LoadBalancer::PeakEwma(_)
            | LoadBalancer::Random => None,
        };
        Self {
            cluster,
            subset,
            hash_on,
            connect_timeout: settings.connect_timeout.0,
            rate_limits: limits.compile(&settings.rate_limits, is_per_destination),
        }
    }

    /// The same for traffic to `destination`: where the endpoints are the original destinations, each
    /// has state of its own.
    pub(crate) fn at(self: &Arc<Self>, destination: SocketAddr) -> Arc<Self> {
        let cluster = self.cluster.at(destination, Instant::now());
        if Arc::ptr_eq(&cluster, &self.cluster) {
            return self.clone();
        }
        Arc::new(Self {
            cluster,
            subset: None,
            hash_on: None,
            connect_timeout: self.connect_timeout,
            rate_limits: self.rate_limits.clone(),
        })
    }

    /// What choosing an endpoint for such a request to `destination` would come to; nothing is chosen.
    pub(crate) fn outlook(
        &self,
        destination: SocketAddr,
        client: Option<IpAddr>,
        headers: &dyn Headers,
        labels: &Labels,
        now: Instant,
    ) -> (ClusterOutlook, Option<Failure>) {
        let context = PickContext {
            hash: self.key_said(client, headers).hash,
            tried: &[],
            subset: self.subset,
        };
        let cluster = self.cluster.glance_at(destination, now);
        let (outlook, refusal) = cluster.outlook(&context, labels, now);
        (outlook, refusal.map(failure_of))
    }

    /// The key of a request as far as the request itself has it.
    fn key_said(&self, client: Option<IpAddr>, headers: &dyn Headers) -> Key {
        let mut hash = None;
        match &self.hash_on {
            None => {}
            Some(HashOn::Source) => return client.map(Key::of_source).unwrap_or_default(),
            Some(HashOn::Header(name)) => {
                headers.each(name, &mut |value| hash = hash.or(Some(hash_of(value))));
            }
            Some(HashOn::Cookie(cookie)) => {
                headers.each("cookie", &mut |value| {
                    hash = hash.or(cookie_of(value, &cookie.name).map(hash_of));
                });
            }
        }
        Key::of(hash)
    }

    /// A connection's permit, waited for as long as for a connection.
    async fn permit(&self, worker: &Worker) -> Result<Permit, Failure> {
        let thresholds = self.cluster.thresholds();
        if let Some(permit) = thresholds.try_connection() {
            return Ok(permit);
        }
        // What lies idle here would be waited for in vain.
        worker.http1_pool.close_counted(thresholds);
        worker.http2_pool.close_counted(thresholds);
        match timeout(self.connect_timeout, thresholds.connection()).await {
            Ok(permit) => permit.map_err(|_| Failure::Overflow),
            Err(_) => Err(Failure::Overflow),
        }
    }
}

impl Target {
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Self::Original => None,
            Self::Cluster(onward) => Some(&onward.cluster.name),
        }
    }

    /// Whether both lead to the same cluster, or to none.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Original, Self::Original) => true,
            (Self::Cluster(one), Self::Cluster(other)) => Arc::ptr_eq(&one.cluster, &other.cluster),
            _ => false,
        }
    }

    /// The key of a request from `client`.
    pub fn key(&self, worker: &Worker, client: IpAddr, headers: &dyn Headers) -> Key {
        let Self::Cluster(onward) = self else {
            return Key::default();
        };
        let key = onward.key_said(Some(client), headers);
        match &onward.hash_on {
            Some(HashOn::Cookie(cookie)) if key.hash.is_none() => match cookie.ttl {
                Some(ttl) => Key::new_cookie(worker, cookie, ttl.0),
                None => key,
            },
            _ => key,
        }
    }

    /// The key where there is no request to look at.
    pub fn key_of_source(&self, client: IpAddr) -> Key {
        match self {
            Self::Cluster(onward) if onward.hash_on == Some(HashOn::Source) => {
                Key::of_source(client)
            }
            _ => Key::default(),
        }
    }
}

impl Key {
    fn of(hash: Option<u64>) -> Self {
        Self {
            hash,
            set_cookie: None,
        }
    }

    /// Of the address as text, as Envoy hashes it.
    fn of_source(client: IpAddr) -> Self {
        let mut text = [0; 48];
        let mut rest = &mut text[..];
        // The longest address has 45 characters.
        let _ = write!(rest, "{}", client.to_canonical());
        let len = 48 - rest.len();
        Self::of(Some(hash_of(&text[..len])))
    }

    fn new_cookie(worker: &Worker, cookie: &Cookie, ttl: Duration) -> Self {
        let value = format!("{:016x}", worker.rng.next());
        let Cookie { name, path, .. } = cookie;
        let lasts = match ttl.as_secs() {
            0 => String::new(),
            seconds => format!("; Max-Age={seconds}"),
        };
        Self {
            hash: Some(hash_of(value.as_bytes())),
            set_cookie: Some(format!("{name}={value}; Path={path}{lasts}; HttpOnly")),
        }
    }
}

impl Way<'_> {
    /// Where to try first.
    ///
    /// # Errors
    /// When the cluster has no endpoint for it, or no room.
    pub fn choose(&self) -> Result<Hop, Failure> {
        self.choose_after(&Tried::default())?
            .ok_or(Failure::NoEndpoint)
    }

    /// An endpoint that was not tried; none if there is no other and this try has met one that took no
    /// connection.
    ///
    /// # Errors
    /// As [`Way::choose`].
    pub fn choose_after(&self, tried: &Tried) -> Result<Option<Hop>, Failure> {
        let Target::Cluster(onward) = self.target else {
            return Ok(tried.refused.is_empty().then(|| Hop::to(self.original.0)));
        };
        if tried.refused.len() >= MAX_DIALS {
            return Ok(None);
        }
        let all = [&tried.earlier[..], &tried.refused[..]].concat();
        let hop = self.pick_other(onward, &all, &tried.refused)?;
        Ok((!tried.refused.contains(&hop.peer)).then_some(hop))
    }

    /// For another try of a request: an endpoint that was not tried if there is one, unless the policy
    /// does not care.
    ///
    /// # Errors
    /// As [`Way::choose`].
    pub fn choose_another(&self, tried: &Tried, prefers_others: bool) -> Result<Hop, Failure> {
        match self.target {
            Target::Original => Ok(Hop::to(self.original.0)),
            Target::Cluster(onward) if prefers_others => {
                let last = tried.earlier.len().saturating_sub(1);
                self.pick_other(onward, &tried.earlier, &tried.earlier[last..])
            }
            Target::Cluster(onward) => self.pick(onward, &[]),
        }
    }

    /// An endpoint that is not among `all`; if there is none, one that is not among the `worst` of them.
    fn pick_other(
        &self,
        onward: &Arc<Onward>,
        all: &[SocketAddr],
        worst: &[SocketAddr],
    ) -> Result<Hop, Failure> {
        let hop = self.pick(onward, all)?;
        if worst.len() < all.len() && all.contains(&hop.peer) {
            drop(hop);
            return self.pick(onward, worst);
        }
        Ok(hop)
    }

    fn pick(&self, onward: &Arc<Onward>, tried: &[SocketAddr]) -> Result<Hop, Failure> {
        let context = PickContext {
            hash: self.key.hash,
            tried,
            subset: onward.subset,
        };
        let now = Instant::now();
        let picked = onward.cluster.pick(&context, &self.worker.rng, now);
        let picked = picked.map_err(failure_of)?;
        Ok(Hop {
            peer: picked.endpoint.address,
            onward: Some(onward.clone()),
            picked: Some(picked),
        })
    }

    /// Dials `hop`, and in its place another one if it takes no connection.
    ///
    /// # Errors
    /// As the last dial; `ClientClosed` when `client` is reset meanwhile.
    pub async fn connect(
        &self,
        mut hop: Hop,
        client: &TcpStream,
        tried: &mut Tried,
        failed: &FailedTries,
    ) -> Result<Dialled, Failure> {
        loop {
            match hop.dial(self.worker, Some(client)).await {
                Ok(upstream) => return Ok(Dialled { upstream, hop }),
                Err(failure) => {
                    failed.note(hop.peer, failure);
                    hop.failed(failure, tried)?;
                    hop = self.choose_after(tried)?.ok_or(failure)?;
                }
            }
        }
    }
}

impl Tried {
    /// Another try begins, which had better not go to `last`.
    pub fn begin_again(&mut self, last: Option<SocketAddr>) {
        for last in self.refused.drain(..).chain(last) {
            self.earlier.retain(|peer| *peer != last);
            self.earlier.push(last);
        }
    }
}

impl Hop {
    /// A peer that no cluster knows of.
    pub fn to(peer: SocketAddr) -> Self {
        Self {
            peer,
            onward: None,
            picked: None,
        }
    }

    /// The same peer, without anything granted.
    pub fn again(&self) -> Self {
        Self {
            peer: self.peer,
            onward: self.onward.clone(),
            picked: None,
        }
    }

    /// Whether a connection for one will do for the other.
    pub fn leads_as(&self, other: &Self) -> bool {
        let is_same_cluster = match (&self.onward, &other.onward) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(&one.cluster, &other.cluster),
            _ => false,
        };
        self.peer == other.peer && is_same_cluster
    }

    pub fn is_towards(&self, target: &Target) -> bool {
        match (&self.onward, target) {
            (None, Target::Original) => true,
            (Some(onward), Target::Cluster(other)) => {
                Arc::ptr_eq(&onward.cluster, &other.cluster) && onward.subset == other.subset
            }
            _ => false,
        }
    }

    /// Dials the peer, for `client` if somebody in particular waits for it.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn dial(
        &self,
        worker: &Worker,
        client: Option<&TcpStream>,
    ) -> Result<Upstream, Failure> {
        let Some(onward) = &self.onward else {
            return upstream::dial(worker, self.peer, None, client).await;
        };
        if worker.shared.is_own_listener(self.peer) {
            return Err(Failure::Loop);
        }
        let permit = match client {
            None => onward.permit(worker).await?,
            Some(client) => tokio::select! {
                biased;
                permit = onward.permit(worker) => permit?,
                _ = client.ready(Interest::ERROR) => return Err(Failure::ClientClosed),
            },
        };
        let limit = Some(onward.connect_timeout);
        let mut upstream = upstream::dial(worker, self.peer, limit, client).await?;
        upstream.permit = Some(permit);
        Ok(upstream)
    }

    /// Whether anybody is interested in what comes of it.
    pub fn is_watched(&self) -> bool {
        self.picked.is_some()
    }

    /// The answer has begun, and does not tell yet what came of the request.
    pub fn heard(&mut self, now: Instant) {
        if let Some(picked) = &mut self.picked {
            picked.heard(now);
        }
    }

    /// The request went to this peer, and this came of it.
    pub fn report(&mut self, outcome: Outcome, now: Instant) {
        if let Some(picked) = &mut self.picked {
            picked.answered(outcome, now);
        }
    }

    /// There was no connection.
    ///
    /// # Errors
    /// The failure, if no other endpoint may be tried: it is not this endpoint's.
    pub fn failed(mut self, failure: Failure, tried: &mut Tried) -> Result<(), Failure> {
        let is_endpoints = matches!(
            failure,
            Failure::ConnectRefused
                | Failure::ConnectUnreachable
                | Failure::ConnectTimeout
                | Failure::UpstreamClosed
        );
        if !is_endpoints || self.picked.is_none() {
            return Err(failure);
        }
        self.report(Outcome::LocalOriginFailure, Instant::now());
        tried.refused.push(self.peer);
        Ok(())
    }
}

fn failure_of(error: PickError) -> Failure {
    match error {
        PickError::NoEndpoint | PickError::Unhealthy => Failure::NoEndpoint,
        PickError::Tripped => Failure::BreakerTripped,
        PickError::Overflow(_) => Failure::Overflow,
        PickError::Shed => Failure::Shed,
    }
}

/// The value of the cookie `name` in a `Cookie` header.
fn cookie_of<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|b| *b == b';').find_map(|pair| {
        let rest = pair.trim_ascii().strip_prefix(name.as_bytes())?;
        rest.strip_prefix(b"=").filter(|value| !value.is_empty())
    })
}

/// A host as routes know it: without its port and, of IPv6, brackets.
pub fn without_port(host: &[u8]) -> Option<&str> {
    let name = match host.strip_prefix(b"[") {
        Some(rest) => &rest[..memchr::memchr(b']', rest)?],
        None => &host[..memchr::memchr(b':', host).unwrap_or(host.len())],
    };
    std::str::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_without_its_port() {
        for (host, name) in [
            ("api.internal:8080", "api.internal"),
            ("api.internal", "api.internal"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("192.0.2.1:1", "192.0.2.1"),
        ] {
            assert_eq!(without_port(host.as_bytes()), Some(name), "{host}");
        }
        assert_eq!(without_port(b"[broken"), None);
        assert_eq!(without_port(b"\xff"), None);
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let header = b"xid=1; id=two ;ids=3; empty=";
        assert_eq!(cookie_of(header, "id"), Some(&b"two"[..]));
        assert_eq!(cookie_of(header, "d"), None);
        assert_eq!(cookie_of(header, "empty"), None);
    }

    #[test]
    fn a_source_is_hashed_as_its_text_in_whichever_clothes_it_comes() {
        let plain = Key::of_source("192.0.2.1".parse().expect("an address"));
        let mapped = Key::of_source("::ffff:192.0.2.1".parse().expect("an address"));
        assert_eq!(plain.hash, Some(hash_of(b"192.0.2.1")));
        assert_eq!(plain.hash, mapped.hash);
    }
}
