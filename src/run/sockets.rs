//! The sockets of a proxy under supervision: bound here, so that what is queued at them outlives any
//! one proxy.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    thread,
};

use outrigger_config::{Admin, AdminAddress, Settings};
use outrigger_iptables::listeners;
use outrigger_proxy::{
    accept,
    admin::AdminListener,
    direct::Direct,
    fd_store::{self, Passed},
    supervised::MAX_DESCRIPTORS,
};
use rustix::fs::fstat;

use super::upgrade;

/// Ports looked at, two apart, where the default ones are taken.
const ATTEMPTS: u16 = 500;

#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) listeners: Vec<TcpListener>,
    pub(super) admin: Option<AdminListener>,
    /// Keeps other supervisors off the port, and answers `proxyctl status`.
    pub(super) door: UnixListener,
    /// Where `proxyctl upgrade` knocks.
    pub(super) upgrades: UnixListener,
}

impl Sockets {
    /// Binds what `settings` ask for, and writes into them where that is: default ports that are taken
    /// are replaced by the next that are free, others are an error. Listeners of an earlier supervisor of this
    /// service, which are in `passed`, are taken on with what is queued at them.
    pub(super) fn bind(settings: &mut Settings, passed: &mut Passed) -> Result<Self, String> {
        let defaults = Settings::default();
        let may_move = settings.listen == defaults.listen;
        let may_move_admin = settings.admin == defaults.admin;
        let stored = passed.stored_at(&settings.listen, may_move);
        let kept = stored
            .first()
            .and_then(|listener| listener.local_addr().ok());
        let first = kept.map_or(settings.port(), |kept| kept.port());
        let mut taken = String::new();
        for attempt in 0..ATTEMPTS {
            let port = first + 2 * attempt;
            for address in &mut settings.listen {
                address.set_port(port);
            }
            if may_move_admin && let Some(admin) = &mut settings.admin {
                admin.listen =
                    AdminAddress::Tcp((Ipv4Addr::LOCALHOST, port.wrapping_sub(1)).into());
            }
            match Self::bind_here(settings, &stored) {
                Ok(sockets) => return Ok(sockets),
                Err(error) if !may_move || !stored.is_empty() => return Err(error),
                Err(error) => taken = error,
            }
        }
        Err(taken)
    }

    /// Has what is queued go where it was going, without a proxy, for as long as what this returns lives.
    pub(super) fn serve_directly(&self) -> Option<Direct> {
        Direct::start(&self.listeners)
            .inspect_err(|error| tracing::error!(%error, "queued connections have to wait"))
            .ok()
    }

    fn bind_here(settings: &Settings, stored: &[TcpListener]) -> Result<Self, String> {
        let port = settings.port();
        let door = UnixAddr::from_abstract_name(door_name(port))
            .and_then(|name| UnixListener::bind_addr(&name))
            .map_err(|error| {
                format!("another `proxyctl run` has port {port} in this network namespace ({error}); choose another with --listen, or leave it out to have a free one")
            })?;
        let upgrades = UnixAddr::from_abstract_name(upgrade::door_name(port))
            .and_then(|name| UnixListener::bind_addr(&name))
            .map_err(|error| format!("cannot bind the socket for upgrades: {error}"))?;
        let _ = door.set_nonblocking(true);
        let _ = upgrades.set_nonblocking(true);
        // SO_REUSEPORT would let us join a group of the same user instead of failing.
        let on_port = listeners::on_port(port)
            .map_err(|error| format!("cannot list who listens on port {port}: {error}"))?;
        let own: Vec<_> = stored
            .iter()
            .filter_map(|listener| Some(fstat(listener).ok()?.st_ino))
            .collect();
        if let Some(holder) = on_port
            .into_iter()
            .find(|listener| listener.takes_redirected() && !own.contains(&listener.inode))
        {
            let holder = holder.name_owners();
            let who = holder.owners.first().map_or_else(
                || format!("a program of user {}", holder.uid),
                ToString::to_string,
            );
            return Err(format!(
                "port {port} is taken: {who} listens on {}; stop it, choose another port with --listen, or leave --listen out to have a free one",
                holder.address
            ));
        }
        let listeners = if stored.is_empty() {
            bind_listeners(settings)?
        } else {
            let copies: io::Result<Vec<_>> = stored.iter().map(TcpListener::try_clone).collect();
            copies.map_err(|error| format!("cannot take on the stored listeners: {error}"))?
        };
        let admin = settings.admin.as_ref().map(bind_admin).transpose()?;
        fd_store::put(fd_store::LISTENER, &fd_store::borrowed(&listeners));
        Ok(Self {
            listeners,
            admin,
            door,
            upgrades,
        })
    }
}

/// Where a supervisor tells about itself.
pub(crate) fn door_name(port: u16) -> String {
    format!("outrigger/{port}/run")
}

fn bind_listeners(settings: &Settings) -> Result<Vec<TcpListener>, String> {
    let workers = settings.workers.map_or_else(
        || thread::available_parallelism().map_or(1, usize::from),
        usize::from,
    );
    let most = (MAX_DESCRIPTORS - 1) / settings.listen.len().max(1);
    let group = accept::bind(&settings.listen, workers.min(most)).map_err(|e| e.to_string())?;
    Ok(group.per_worker.into_iter().flatten().collect())
}

fn bind_admin(admin: &Admin) -> Result<AdminListener, String> {
    AdminListener::bind(admin).map_err(|error| {
        let address = &admin.listen;
        format!("cannot listen on the admin address {address}: {error}; choose another in `admin` (`null` for none)")
    })
}
