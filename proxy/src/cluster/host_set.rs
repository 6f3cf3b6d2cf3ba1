//! The endpoints of a cluster at one moment, arranged for picking: immutable, replaced as a whole.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use outrigger_config::{
    Cluster as Settings, Labels, LoadBalancer, Locality, SlowStart, SubsetFallback,
};

use super::{
    balance::view::View,
    endpoint::Endpoint,
    pick::{PickError, Subset},
};

/// An endpoint and what its cluster says of it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) weight: u32,
    pub(super) priority: u8,
    pub(super) locality: Locality,
    pub(super) labels: Labels,
    pub(super) hostname: Option<Arc<str>>,
}

impl Member {
    pub(super) fn has_all(&self, labels: &Labels) -> bool {
        labels.iter().all(|(k, v)| self.labels.get(k) == Some(v))
    }
}

/// What the user asked for.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) settings: Arc<Settings>,
    /// Where this proxy runs.
    pub(super) locality: Locality,
}

impl Policy {
    /// In percent. Of one destination there is no other endpoint whose load could become too much:
    /// it is out or it is not.
    pub(super) fn panic_threshold(&self) -> u8 {
        match self.settings.original_destination {
            Some(_) => 0,
            None => self.settings.panic_threshold.0,
        }
    }

    pub(super) fn slow_start(&self) -> Option<&SlowStart> {
        match self.settings.load_balancer {
            LoadBalancer::RoundRobin | LoadBalancer::LeastRequest(_) => {
                self.settings.slow_start.as_ref()
            }
            LoadBalancer::PeakEwma(_)
            | LoadBalancer::Random
            | LoadBalancer::RingHash(_)
            | LoadBalancer::Maglev(_) => None,
        }
    }

    pub(super) fn is_by_key(&self) -> bool {
        matches!(
            self.settings.load_balancer,
            LoadBalancer::RingHash(_) | LoadBalancer::Maglev(_)
        )
    }
}

#[derive(Debug)]
pub(super) struct HostSet {
    pub(super) policy: Arc<Policy>,
    pub(super) members: Arc<[Member]>,
    pub(super) all: View,
    /// By the number that `Cluster::subset` gave; `None`: no endpoint has the labels.
    pub(super) subsets: Box<[Option<View>]>,
}

impl HostSet {
    pub(super) fn new(
        policy: Arc<Policy>,
        members: Arc<[Member]>,
        subsets: &[Labels],
        seed: u64,
        now: Instant,
    ) -> Self {
        let everyone: Vec<_> = members.iter().collect();
        let subset = |labels: &Labels| {
            let some: Vec<_> = members.iter().filter(|m| m.has_all(labels)).collect();
            (!some.is_empty()).then(|| View::new(&some, &policy, seed, now))
        };
        Self {
            all: View::new(&everyone, &policy, seed, now),
            subsets: subsets.iter().map(subset).collect(),
            policy,
            members,
        }
    }

    /// What a request to `subset` picks from.
    pub(super) fn view(&self, subset: Option<Subset>) -> Result<&View, PickError> {
        let view = match subset.map(|s| self.subsets.get(s.0)) {
            None => &self.all,
            Some(Some(Some(view))) => view,
            Some(None | Some(None)) => match self.policy.settings.subset_fallback {
                SubsetFallback::NoFallback => return Err(PickError::NoEndpoint),
                SubsetFallback::AnyEndpoint => &self.all,
            },
        };
        match view.is_empty() {
            false => Ok(view),
            true if self.members.is_empty() => Err(PickError::NoEndpoint),
            true => Err(PickError::Unhealthy),
        }
    }

    /// Takes the place of `before`: what picks have made there by and by is made here at once.
    pub(super) fn prepare_as(&self, before: &Self) {
        let after = [&self.all].into_iter().chain(self.subsets.iter().flatten());
        if before.all.is_prepared() || before.subsets.iter().flatten().any(View::is_prepared) {
            after.for_each(View::prepare);
        }
    }
}

/// Endpoints by address, those that left lately included, so that one which comes back is the same.
pub(super) type Known = HashMap<SocketAddr, (Arc<Endpoint>, Option<Instant>)>;
