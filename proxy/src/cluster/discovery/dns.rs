//! Endpoints from DNS: every address of a name, or of the targets of its SRV records. An answer
//! counts for its TTL; where no newer one can be had, the last one stays.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_resolver::{
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{RData, RecordType},
    },
};
use outrigger_config::{Dns as Settings, DnsFamily, Endpoint};

use super::{DiscoveryStatus, names::Asker};

/// The longest that an answer is believed, whatever its TTL: what moves is noticed within it.
const MAX_REFRESH: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(in crate::cluster) struct Dns {
    settings: Settings,
    asker: Rc<Asker>,
    /// When to ask; `None`: not asked yet.
    next: Option<Instant>,
    status: Arc<DiscoveryStatus>,
    last: Option<Vec<Endpoint>>,
}

impl Dns {
    pub(super) fn new(settings: Settings, asker: Rc<Asker>, status: Arc<DiscoveryStatus>) -> Self {
        Self {
            settings,
            asker,
            next: None,
            status,
            last: None,
        }
    }

    pub(super) async fn next(&mut self) -> Vec<Endpoint> {
        loop {
            if let Some(at) = self.next {
                tokio::time::sleep_until(at.into()).await;
            }
            let answer = self.ask().await;
            let now = Instant::now();
            let earliest = now + self.settings.min_refresh.0;
            match answer {
                Ok((mut endpoints, until)) => {
                    self.next = Some(until.clamp(earliest, earliest.max(now + MAX_REFRESH)));
                    self.status.succeeded(now);
                    // Servers rotate their answers; an order is no change.
                    endpoints.sort_by_key(|e| (e.priority, e.address));
                    if self.last.as_ref() != Some(&endpoints) {
                        self.last = Some(endpoints.clone());
                        return endpoints;
                    }
                }
                Err(error) => {
                    self.next = Some(earliest);
                    let answered_at = self.status.state().answered_at;
                    let age = answered_at.map(|at| now.duration_since(at).as_secs());
                    self.status.failed(&error);
                    tracing::warn!(name = self.settings.name, age, %error, "DNS lookup failed; the last answer stays");
                }
            }
        }
    }

    async fn ask(&self) -> Result<(Vec<Endpoint>, Instant), NetError> {
        // It is never closed.
        let _turn = self.asker.turns.acquire().await;
        if self.settings.srv {
            self.services().await
        } else {
            self.addresses().await
        }
    }

    async fn addresses(&self) -> Result<(Vec<Endpoint>, Instant), NetError> {
        let port = self.settings.port.map_or(0, |p| p.get());
        let Found { ips, until, .. } = self.ips(&self.settings.name).await?;
        let at = |ip| Endpoint {
            hostname: Some(self.settings.name.clone()),
            ..Endpoint::at(SocketAddr::new(ip, port))
        };
        Ok((ips.into_iter().map(at).collect(), until))
    }

    /// RFC 2782: a lower priority is used first; a weight of 0 is a very small one. Priorities become
    /// 0, 1, 2 …, for a cluster's have no gaps.
    async fn services(&self) -> Result<(Vec<Endpoint>, Instant), NetError> {
        let lookup = self
            .asker
            .resolver
            .lookup(self.settings.name.as_str(), RecordType::SRV);
        let lookup = lookup.await?;
        let mut until = lookup.valid_until();
        let records = lookup.answers().iter().filter_map(|r| match &r.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        });
        let records: Vec<_> = records.collect();
        let mut ranks: Vec<_> = records.iter().map(|r| r.priority).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let mut endpoints = Vec::new();
        for record in records {
            let rank = ranks.partition_point(|p| *p < record.priority);
            let found = self.ips(&record.target.to_string()).await?;
            until = until.min(found.until);
            endpoints.extend(found.ips.into_iter().map(|ip| Endpoint {
                weight: NonZeroU32::new(record.weight.into()).unwrap_or(NonZeroU32::MIN),
                hostname: Some(record.target.to_string().trim_end_matches('.').to_owned()),
                priority: u8::try_from(rank).unwrap_or(127).min(127),
                ..Endpoint::at(SocketAddr::new(ip, record.port))
            }));
        }
        Ok((endpoints, until))
    }

    /// The addresses of a name in the families wanted. One family without an answer is no failure
    /// as long as the other has one.
    async fn ips(&self, name: &str) -> Result<Found, NetError> {
        let ask = |kind| self.family(name, kind);
        match self.settings.family {
            DnsFamily::V4Only => ask(RecordType::A).await,
            DnsFamily::V6Only => ask(RecordType::AAAA).await,
            DnsFamily::V4Preferred => match ask(RecordType::A).await {
                Ok(found) => Ok(found),
                Err(_) => ask(RecordType::AAAA).await,
            },
            DnsFamily::V6Preferred => match ask(RecordType::AAAA).await {
                Ok(found) => Ok(found),
                Err(_) => ask(RecordType::A).await,
            },
            DnsFamily::All => {
                let found = match ask(RecordType::A).await {
                    Ok(found) => found,
                    Err(_) => return ask(RecordType::AAAA).await,
                };
                // At the very name that has the first family: a search list would lead on to others,
                // whose failures tell nothing of this one.
                match self.family(&found.name, RecordType::AAAA).await {
                    Ok(other) => Ok(found.and(other)),
                    Err(error) if error.is_no_records_found() || is_declined(&error) => Ok(found),
                    // A server that fails for one family must not take its endpoints away.
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn family(&self, name: &str, kind: RecordType) -> Result<Found, NetError> {
        let lookup = self.asker.resolver.lookup(name, kind).await?;
        let ips = lookup.answers().iter().filter_map(|r| match &r.data {
            RData::A(ip) => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
            _ => None,
        });
        Ok(Found {
            ips: ips.collect(),
            until: lookup.valid_until(),
            name: lookup.query().name().to_string(),
        })
    }
}

/// Whether the server does not answer such a question at all, which it will not do the next time
/// either: one that forwards nothing refuses AAAA of a name of which it has an A record.
fn is_declined(error: &NetError) -> bool {
    use ResponseCode::{NotImp, Refused};
    matches!(
        error,
        NetError::Dns(DnsError::ResponseCode(Refused | NotImp))
    )
}

/// What one name has.
struct Found {
    ips: Vec<IpAddr>,
    until: Instant,
    /// In full, with what the search list added.
    name: String,
}

impl Found {
    fn and(mut self, other: Self) -> Self {
        self.ips.extend(other.ips);
        self.until = self.until.min(other.until);
        self
    }
}

#[cfg(test)]
mod tests;
