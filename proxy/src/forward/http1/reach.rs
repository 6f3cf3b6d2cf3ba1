//! The upstream connection that carries a try: one at hand, an idle one, or a fresh one.

use std::{pin::pin, time::Instant};

use super::{Session, exchange::Exchange};
use crate::{
    dispatch::{Dialled, Hop, Key, Target, Tried, Way},
    failure::Failure,
    forward::{deadlines, policed::Policed},
    upstream::Lease,
};

/// How a try gets its upstream connection.
pub(super) enum Through {
    /// Whichever the request may go over.
    Any,
    /// A fresh one, since an idle one to the same peer turned out dead.
    Fresh(Hop),
    /// Whichever to another endpoint, if there is one.
    Another,
}

impl Session {
    /// An upstream connection that may carry the request, which `is_whole` if nothing of it is still
    /// to come.
    pub(super) async fn reach(
        &mut self,
        exchange: &mut Exchange,
        through: Through,
        is_whole: bool,
    ) -> Result<(Lease, Hop), Failure> {
        let Exchange {
            head,
            outcome,
            key,
            policed,
            tried,
            ..
        } = exchange;
        let policed = policed.as_deref();
        let target = &outcome.routed.target;
        let mut reaching = pin!(async {
            let hop = match through {
                Through::Any => {
                    if let Some(reached) = self.at_hand(target, outcome.started) {
                        return Ok(reached);
                    }
                    self.way(target, key).choose()?
                }
                Through::Fresh(hop) => return self.dial(target, key, hop, tried).await,
                Through::Another => {
                    let prefers_others = policed.is_none_or(Policed::prefers_others);
                    self.way(target, key)
                        .choose_another(tried, prefers_others)?
                }
            };
            let pool = &self.connection.worker.http1_pool;
            self.peers.turn_to(pool, hop.peer);
            // A request that can be sent again may go over any idle connection, which might die under
            // it. Every other goes over the one that this client used last, whose death it would have
            // met without us too, or over a fresh one.
            let is_any_good = head.is_idempotent() && is_whole && !head.authenticates_connection;
            match self.peers.check_out(is_any_good, outcome.started) {
                Some(lease) => Ok((lease, hop)),
                None => self.dial(target, key, hop, tried).await,
            }
        });
        let Some(policed) = policed else {
            return reaching.await;
        };
        let progress = || deadlines::Progress {
            is_received: is_whole,
            ..Default::default()
        };
        match policed.deadlines.within(reaching.as_mut(), progress).await {
            Ok(reached) => reached,
            Err(passed) => Err(policed.passed(passed)),
        }
    }

    /// A connection that this client has already, if it leads to `target`.
    fn at_hand(&mut self, target: &Target, now: Instant) -> Option<(Lease, Hop)> {
        if let Some(pinned) = self.pinned.take_if(|p| p.target.is_same(target)) {
            let hop = Hop::to(pinned.lease.upstream.peer);
            return Some((pinned.lease, hop));
        }
        let Dialled { upstream, hop } = self.dialled.take()?;
        let worker = &self.connection.worker;
        let pool = &worker.http1_pool;
        let lease = pool.lease(upstream);
        if hop.is_towards(target) {
            self.peers.turn_to(pool, hop.peer);
            return Some((lease, hop));
        }
        // The host that the request names leads elsewhere.
        pool.destination(hop.peer).check_in(worker, lease, now);
        None
    }

    /// A fresh connection to where `hop` leads, or to another endpoint.
    async fn dial(
        &mut self,
        target: &Target,
        key: &Key,
        hop: Hop,
        tried: &mut Tried,
    ) -> Result<(Lease, Hop), Failure> {
        // Large while under way, and rare.
        let failed = &self.connection.failed;
        let dialled = Box::pin(
            self.way(target, key)
                .connect(hop, &self.client, tried, failed),
        )
        .await;
        let Dialled { upstream, hop } = dialled?;
        let pool = &self.connection.worker.http1_pool;
        self.peers.turn_to(pool, hop.peer);
        Ok((pool.lease(upstream), hop))
    }

    pub(super) fn way<'a>(&'a self, target: &'a Target, key: &'a Key) -> Way<'a> {
        Way {
            worker: &self.connection.worker,
            original: self.connection.original,
            target,
            key,
        }
    }
}
