//! Whether the leases of xt_recent are renewed.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use super::{IptablesError, rules};
use crate::plan::{Family, Plan};

/// A look costs a read of /proc.
const LOOK: Duration = Duration::from_millis(10);

/// xt_recent counts in whole seconds, so a part of one is rounded up.
pub(super) fn seconds(plan: &Plan) -> u64 {
    plan.lease.millis.div_ceil(1000)
}

/// Of the network namespace of this thread, which need not be its process's: a supervisor may have entered it.
/// The entry of a lease, which tells when it was last seen; empty: never.
pub(super) fn entry(plan: &Plan, family: Family) -> String {
    let name = rules::lease_name(plan.port, family);
    fs::read_to_string(format!("/proc/thread-self/net/xt_recent/{name}")).unwrap_or_default()
}

/// Whether a beat comes after `before` was read, within the time that a lease lasts.
pub(super) fn is_renewed(plan: &Plan, family: Family, before: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds(plan));
    loop {
        let now = entry(plan, family);
        if now != before && !now.is_empty() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(LOOK);
    }
}

/// Whether a rule of ours is loaded: each list is there for as long as a rule names it.
pub(super) fn is_any_listed(port: u16) -> bool {
    let ours = format!("outrigger_{port}_");
    fs::read_dir("/proc/thread-self/net/xt_recent").is_ok_and(|lists| {
        lists
            .filter_map(Result::ok)
            .any(|list| list.file_name().to_string_lossy().starts_with(&ours))
    })
}

/// Starts the probe's own lease, which ends it should this process be killed.
pub(super) fn start_probe(target: SocketAddr) -> Result<(), IptablesError> {
    let family = Family::of(target.ip());
    let sent = UdpSocket::bind((family.loopback(), 0))
        .and_then(|socket| socket.send_to(b"probe", rules::probe_beat_address(target)));
    match sent {
        // The rule that renews the lease drops the datagram, and the kernel tells so.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        _ => Err(IptablesError::NoBeat { family }),
    }
}
