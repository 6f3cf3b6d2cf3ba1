//! The sockets of a proxy under supervision: bound here, so that what is queued at them outlives any
//! one proxy.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    thread,
};

use outrigger_config::{Admin, AdminAddress, Settings};
use outrigger_iptables::listeners;
use outrigger_proxy::{accept, admin::AdminListener, direct::Direct, supervised::MAX_DESCRIPTORS};

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
    /// are replaced by the next that are free, others are an error.
    pub(super) fn bind(settings: &mut Settings) -> Result<Self, String> {
        let defaults = Settings::default();
        let may_move = settings.listen == defaults.listen;
        let may_move_admin = settings.admin == defaults.admin;
        let first = settings.port();
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
            match Self::bind_here(settings) {
                Ok(sockets) => return Ok(sockets),
                Err(error) if !may_move => return Err(error),
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

    fn bind_here(settings: &Settings) -> Result<Self, String> {
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
        if let Some(holder) = on_port
            .into_iter()
            .find(listeners::Listener::takes_redirected)
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
        let workers = settings.workers.map_or_else(
            || thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        );
        let most = (MAX_DESCRIPTORS - 1) / settings.listen.len().max(1);
        let group = accept::bind(&settings.listen, workers.min(most)).map_err(|e| e.to_string())?;
        let admin = settings.admin.as_ref().map(bind_admin).transpose()?;
        Ok(Self {
            listeners: group.per_worker.into_iter().flatten().collect(),
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

fn bind_admin(admin: &Admin) -> Result<AdminListener, String> {
    AdminListener::bind(admin).map_err(|error| {
        let address = &admin.listen;
        format!("cannot listen on the admin address {address}: {error}; choose another in `admin` (`null` for none)")
    })
}
