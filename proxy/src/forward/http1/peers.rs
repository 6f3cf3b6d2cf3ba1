//! The peers that a client's requests went to lately, with the idle connections to each: looked up
//! in the pool once and not once a request.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use crate::upstream::{IdleConnections, Lease, Pool};

/// Peers remembered besides the present one; of a larger cluster some are looked up again.
const REMEMBERED: usize = 8;

pub(super) struct Peers {
    present: Peer,
    /// The latest last.
    others: Vec<Peer>,
}

struct Peer {
    address: SocketAddr,
    idle: Rc<IdleConnections>,
    /// The connection to it that this client used last, wherever it is now.
    last: Option<u64>,
}

impl Peers {
    pub(super) fn new(pool: &Pool, address: SocketAddr) -> Self {
        Self {
            present: Peer::new(pool, address),
            others: Vec::new(),
        }
    }

    /// The next request goes to `address`.
    pub(super) fn turn_to(&mut self, pool: &Pool, address: SocketAddr) {
        if self.present.address == address {
            return;
        }
        let next = match self.others.iter().position(|p| p.address == address) {
            Some(at) => self.others.remove(at),
            None => Peer::new(pool, address),
        };
        self.others.push(std::mem::replace(&mut self.present, next));
        if self.others.len() > REMEMBERED {
            self.others.remove(0).forget(pool);
        }
    }

    pub(super) fn idle(&self) -> &Rc<IdleConnections> {
        &self.present.idle
    }

    /// An idle connection to the present peer: any, or the one that this client used last.
    pub(super) fn check_out(&self, is_any_good: bool, now: Instant) -> Option<Lease> {
        let Peer { idle, last, .. } = &self.present;
        if is_any_good {
            idle.check_out(now)
        } else {
            last.and_then(|id| idle.check_out_id(id, now))
        }
    }

    /// The client has used the connection `id` to the present peer.
    pub(super) fn note_used(&mut self, id: u64) {
        self.present.last = Some(id);
    }

    pub(super) fn forget(&self, pool: &Pool) {
        for peer in self.others.iter().chain([&self.present]) {
            peer.forget(pool);
        }
    }
}

impl Peer {
    fn new(pool: &Pool, address: SocketAddr) -> Self {
        Self {
            address,
            idle: pool.destination(address),
            last: None,
        }
    }

    fn forget(&self, pool: &Pool) {
        pool.forget(self.address, &self.idle);
    }
}
