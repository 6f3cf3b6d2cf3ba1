//! What a pick would come to, without making one: by the code that picks run, less what these change.

use std::{collections::HashMap, net::SocketAddr, time::Instant};

use outrigger_config::{
    Labels,
    control::{ClusterOutlook, EndpointOutlook, Objection, Use},
};

use super::{
    BreakerState, Cluster, Endpoint, PickContext, PickError, Rng,
    host_set::{HostSet, Member},
    thresholds::Overflow,
};

/// Endpoints that are told one by one: what fits into a line of the control socket, with names and
/// labels of the rest of the answer.
const MOST_TOLD: usize = 100;

impl Cluster {
    /// What a pick in `context`, whose subset has `labels`, would find now, and why it would fail.
    pub(crate) fn outlook(
        &self,
        context: &PickContext<'_>,
        labels: &Labels,
        now: Instant,
    ) -> (ClusterOutlook, Option<PickError>) {
        let hosts = self.hosts();
        let settings = &hosts.policy.settings;
        let (limits, usage) = (&settings.circuit_breaker, self.thresholds().usage());
        let within = |now: u32, max: u32| Use {
            now: now.into(),
            max: max.into(),
        };
        let adaptive = self.adaptive();
        let found = Found::of(&hosts, context, now);
        let refusal = if usage.requests >= limits.max_requests {
            Some(PickError::Overflow(Overflow::Requests))
        } else if let Err(error) = hosts.view(context.subset) {
            Some(error)
        } else if adaptive.as_ref().is_some_and(|a| a.live() >= a.limit()) {
            Some(PickError::Shed)
        } else {
            found.shares.is_empty().then_some(PickError::Tripped)
        };
        let mut endpoints: Vec<_> = hosts
            .members
            .iter()
            .map(|member| found.tell(member, labels, now))
            .collect();
        endpoints.sort_by_key(|e| (!e.is_eligible, e.objections.len(), e.priority, e.address));
        let omitted = endpoints.len().saturating_sub(MOST_TOLD);
        endpoints.truncate(MOST_TOLD);
        let outlook = ClusterOutlook {
            name: (*self.name).into(),
            is_default: false,
            load_balancer: settings.load_balancer.label().into(),
            has_key: hosts.policy.is_by_key() && context.hash.is_some(),
            subset: labels.clone(),
            requests: within(usage.requests, limits.max_requests),
            connections: within(usage.connections, limits.max_connections),
            pending_requests: within(usage.pending, limits.max_pending_requests),
            retries: within(usage.retries, limits.max_retries),
            concurrency: adaptive.map(|a| within(a.live(), a.limit())),
            is_panicking: hosts
                .view(context.subset)
                .is_ok_and(|view| view.is_panicking()),
            chosen: found.chosen.filter(|_| refusal.is_none()),
            endpoints,
            omitted,
        };
        (outlook, refusal)
    }
}

/// What a view of a host set has for a request.
struct Found<'h> {
    hosts: &'h HostSet,
    /// Of each endpoint that may be picked.
    shares: HashMap<SocketAddr, f64>,
    chosen: Option<SocketAddr>,
}

impl<'h> Found<'h> {
    fn of(hosts: &'h HostSet, context: &PickContext<'_>, now: Instant) -> Self {
        let mut found = Self {
            hosts,
            shares: HashMap::new(),
            chosen: None,
        };
        let Ok(view) = hosts.view(context.subset) else {
            return found;
        };
        let would_admit = |endpoint: &Endpoint| found.breaker_objects(endpoint, now).is_none();
        let candidates = view.candidates(context, would_admit);
        let picked = (hosts.policy.is_by_key() && context.hash.is_some()).then(|| {
            let admit = |endpoint: &Endpoint| would_admit(endpoint).then_some(());
            // Nothing is drawn: the key decides.
            view.pick(&hosts.policy, context, &Rng::new(0), now, admit)
        });
        let chosen = match (picked, &candidates[..]) {
            (Some(picked), _) => picked.map(|(host, ())| host.endpoint.address),
            (None, [(host, _)]) => Some(host.endpoint.address),
            (None, _) => None,
        };
        let mut shares = HashMap::new();
        for (host, share) in candidates {
            // One in a pool of its zone stands in that of its priority too.
            *shares.entry(host.endpoint.address).or_default() += share;
        }
        found.shares = shares;
        found.chosen = chosen;
        found
    }

    fn breaker_objects(&self, endpoint: &Endpoint, now: Instant) -> Option<Objection> {
        let settings = self.hosts.policy.settings.endpoint_breaker.as_ref()?;
        if endpoint.breaker.would_admit(settings, endpoint.millis(now)) {
            return None;
        }
        Some(match endpoint.breaker_state() {
            BreakerState::Tripped => Objection::BreakerTripped,
            BreakerState::Probing | BreakerState::Admitting => Objection::BreakerProbing,
        })
    }

    fn tell(&self, member: &Member, labels: &Labels, now: Instant) -> EndpointOutlook {
        let endpoint = &*member.endpoint;
        let share = self.shares.get(&endpoint.address);
        // Where the subset has nobody, and anybody will do, its labels do not count.
        let is_outside = share.is_none() && !member.has_all(labels);
        let mut objections: Vec<_> = [
            is_outside.then_some(Objection::OtherSubset),
            endpoint.is_unhealthy().then_some(Objection::Unhealthy),
            endpoint.is_ejected().then_some(Objection::Ejected),
            self.breaker_objects(endpoint, now),
        ]
        .into_iter()
        .flatten()
        .collect();
        if share.is_none() && objections.is_empty() {
            objections.push(Objection::StandBy);
        }
        let has_breaker = self.hosts.policy.settings.endpoint_breaker.is_some();
        EndpointOutlook {
            address: endpoint.address,
            weight: member.weight,
            priority: member.priority,
            active: endpoint.active(),
            breaker: has_breaker.then(|| endpoint.breaker_state().label().into()),
            is_eligible: share.is_some(),
            share_percent: share.map_or(0.0, |share| (share * 10_000.0).round() / 100.0),
            objections,
        }
    }
}

#[cfg(test)]
mod tests;
