//! The netlink sockets that own the tables: closing one is what removes its table.
//!
//! When a process ends, the kernel closes its descriptors highest first (observed, not promised).
//! So a capture's lies above the listeners, to end before anything can be refused, and an anchor's
//! lies below every socket, to keep live connections translated until their own end.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd, RawFd},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrigger_config::control::{Lease, Tether, TetherKind};
use rustix::{
    io::{DupFlags, dup3, fcntl_dupfd_cloexec},
    net::{AddressFamily, netlink, sockopt},
};

use super::heartbeat;
use crate::fd_store;

/// Looks, a second apart, that must find no live connection before an anchor goes: the last
/// segments of a connection follow its sockets' close.
const QUIET_LOOKS: u32 = 2;
/// Captures held at once; an install adds one and releases the others.
const MAX_CAPTURES: usize = 8;
/// In milliseconds.
const SHORTEST_LEASE: u64 = 100;

#[derive(Debug)]
pub(super) struct Tethers {
    held: Vec<Held>,
    /// Low descriptors that an anchor may take.
    slots: Vec<OwnedFd>,
    /// What a free slot points to.
    nothing: OwnedFd,
    highest_listener: RawFd,
    captured_since: Option<u64>,
    quiet_looks: u32,
}

#[derive(Debug)]
struct Held {
    tether: Tether,
    descriptor: OwnedFd,
    /// The control connection that brought it: if that breaks before it says that the capture is
    /// in force, the capture goes with it.
    session: u64,
    in_force: bool,
}

impl Tethers {
    pub(super) fn new(slots: Vec<OwnedFd>, highest_listener: RawFd) -> io::Result<Self> {
        Ok(Self {
            held: Vec::new(),
            slots,
            nothing: File::open("/dev/null")?.into(),
            highest_listener,
            captured_since: None,
            quiet_looks: 0,
        })
    }

    pub(super) fn list(&self) -> Vec<Tether> {
        self.held.iter().map(|held| held.tether.clone()).collect()
    }

    /// The leases of the captures in force and, before it is, of `coming`.
    pub(super) fn leases(&self, coming: Option<u64>) -> Vec<heartbeat::Held> {
        self.held
            .iter()
            .filter(|held| held.in_force || Some(held.tether.generation) == coming)
            .filter_map(|held| {
                Some(heartbeat::Held {
                    generation: held.tether.generation,
                    lease: held.tether.lease.clone()?,
                })
            })
            .collect()
    }

    pub(super) fn captured_since(&self) -> Option<u64> {
        self.captured_since
    }

    pub(super) fn hold(
        &mut self,
        session: u64,
        tether: Tether,
        descriptor: OwnedFd,
    ) -> Result<(), String> {
        if !is_netfilter_socket(&descriptor) {
            return Err("the descriptor is not a netfilter netlink socket".into());
        }
        if let Some(lease) = &tether.lease {
            check(lease)?;
        }
        let moved = match tether.kind {
            TetherKind::Capture | TetherKind::Closed => self.move_above_listeners(&descriptor),
            TetherKind::Anchor => self.move_to_slot(&descriptor),
        };
        let descriptor = moved?;
        if tether.kind == TetherKind::Anchor {
            fd_store::put(&tether.table, &[descriptor.as_fd()]);
        }
        self.quiet_looks = 0;
        tracing::info!(
            table = tether.table,
            "holding a table for as long as this process lives"
        );
        self.held.push(Held {
            tether,
            descriptor,
            session,
            in_force: false,
        });
        Ok(())
    }

    pub(super) fn captured(&mut self, generation: u64) -> Result<(), String> {
        let mut found = false;
        for held in &mut self.held {
            if held.tether.generation == generation {
                held.in_force = true;
                found |= held.tether.kind == TetherKind::Capture;
            }
        }
        if !found {
            return Err(format!(
                "no capture of generation {generation} is held here"
            ));
        }
        self.captured_since.get_or_insert_with(unix_now);
        tracing::info!(generation, "capture is on");
        Ok(())
    }

    /// Closes the captures of `generation` (`None`: all). Their anchors go too, but
    /// never the last: without any, live connections would lose their translation.
    pub(super) fn release(&mut self, generation: Option<u64>) {
        let is_meant = |of: u64| generation.is_none_or(|wanted| of == wanted);
        self.close_captures("released", |held| is_meant(held.tether.generation));
        self.held.retain(|held| {
            held.tether.kind != TetherKind::Closed || !is_meant(held.tether.generation)
        });
        let another_stays = self.anchors().any(|anchor| !is_meant(anchor));
        let kept = self.anchors().max().filter(|_| !another_stays);
        self.close_anchors(|anchor| is_meant(anchor) && Some(anchor) != kept);
    }

    /// For how long the rules of captures that own none work on once they are released: a lease, and
    /// the round of beats that may be under way.
    pub(super) fn outliving(&self) -> Duration {
        let leases = self.leases(None).into_iter();
        let outlives = |generation| {
            let of = |held: &&Held| held.tether.generation == generation;
            self.held.iter().filter(of).any(|held| held.tether.outlives)
        };
        leases
            .filter(|held| outlives(held.generation))
            .map(|held| held.length() + held.length() / heartbeat::BEATS_A_LEASE)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn release_all(&mut self) {
        self.release(None);
        self.close_anchors(|_| true);
    }

    /// The install ended: what it did not put into force is not captured.
    pub(super) fn end_session(&mut self, session: u64) {
        self.close_captures("its install broke off", |held| {
            held.session == session && !held.in_force
        });
    }

    /// An anchor is for the live connections of a capture; to be called every second or so.
    pub(super) fn drop_idle_anchors(&mut self, live_connections: usize) {
        let is_needed = live_connections > 0 || self.has_capture();
        if is_needed || self.held.is_empty() {
            self.quiet_looks = 0;
            return;
        }
        self.quiet_looks += 1;
        if self.quiet_looks >= QUIET_LOOKS {
            self.close_anchors(|_| true);
        }
    }

    pub(super) fn holds_capture(&self, generation: u64) -> bool {
        let is_capture = |held: &Held| held.tether.kind == TetherKind::Capture;
        let mut held = self.held.iter();
        held.any(|held| is_capture(held) && held.tether.generation == generation)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn has_anchor(&self) -> bool {
        self.anchors().next().is_some()
    }

    pub(super) fn has_capture(&self) -> bool {
        self.held
            .iter()
            .any(|held| held.tether.kind == TetherKind::Capture)
    }

    pub(super) fn has_closed(&self) -> bool {
        let mut held = self.held.iter();
        held.any(|held| held.tether.kind == TetherKind::Closed)
    }

    /// Whether nobody else can have taken rules of the captures away.
    pub(super) fn own_the_rules(&self) -> bool {
        self.held.iter().all(|held| !held.tether.outlives)
    }

    fn anchors(&self) -> impl Iterator<Item = u64> {
        self.held
            .iter()
            .filter(|held| held.tether.kind == TetherKind::Anchor)
            .map(|held| held.tether.generation)
    }

    fn move_above_listeners(&self, descriptor: &OwnedFd) -> Result<OwnedFd, String> {
        let captures = self.held.len() - self.anchors().count();
        if captures >= MAX_CAPTURES {
            return Err("too many captures are held already; run remove-rules first".into());
        }
        fcntl_dupfd_cloexec(descriptor, self.highest_listener + 1)
            .map_err(|error| format!("no descriptor above the listeners: {error}"))
    }

    fn move_to_slot(&mut self, descriptor: &OwnedFd) -> Result<OwnedFd, String> {
        let mut slot = self
            .slots
            .pop()
            .ok_or("too many anchors are held already; wait until connections have ended")?;
        match dup3(descriptor, &mut slot, DupFlags::CLOEXEC) {
            Ok(()) => Ok(slot),
            Err(error) => {
                self.slots.push(slot);
                Err(format!("the descriptor cannot be moved: {error}"))
            }
        }
    }

    fn close_captures(&mut self, why: &str, is_meant: impl Fn(&Held) -> bool) {
        let closed = self
            .held
            .extract_if(.., |held| {
                held.tether.kind == TetherKind::Capture && is_meant(held)
            })
            .collect::<Vec<_>>();
        for held in &closed {
            tracing::info!(table = held.tether.table, "capture ends: {why}");
        }
        drop(closed);
        if !self.has_capture() {
            self.captured_since = None;
        }
    }

    fn close_anchors(&mut self, is_meant: impl Fn(u64) -> bool) {
        let closed = self
            .held
            .extract_if(.., |held| {
                held.tether.kind == TetherKind::Anchor && is_meant(held.tether.generation)
            })
            .collect::<Vec<_>>();
        for mut held in closed {
            fd_store::forget(&held.tether.table);
            // Closes the netlink socket and keeps the low number. Should that fail, the number is
            // given up with the socket.
            if dup3(&self.nothing, &mut held.descriptor, DupFlags::CLOEXEC).is_ok() {
                self.slots.push(held.descriptor);
            }
        }
    }
}

/// Not a way to make the proxy send whatever one likes, or without end.
fn check(lease: &Lease) -> Result<(), String> {
    if lease.beats.is_empty() || lease.beats.len() > 2 {
        return Err("a lease has one beat for each family".into());
    }
    if let Some(beat) = lease.beats.iter().find(|beat| !beat.ip().is_loopback()) {
        return Err(format!("a beat goes to loopback, not to {beat}"));
    }
    if lease.millis < SHORTEST_LEASE {
        return Err(format!("a lease of {} ms is too short", lease.millis));
    }
    Ok(())
}

pub(crate) fn is_netfilter_socket(descriptor: &OwnedFd) -> bool {
    sockopt::socket_domain(descriptor) == Ok(AddressFamily::NETLINK)
        && sockopt::socket_protocol(descriptor) == Ok(Some(netlink::NETFILTER))
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
