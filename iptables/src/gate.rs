//! The checks that a proxy must pass before anything is captured, in order; the first that fails
//! names itself.

mod canary;
mod dialler;

use std::{io, net::IpAddr};

use outrigger_config::control::Identity;
use socket2::Socket;

use crate::{
    control::Proxy,
    error::Refusal,
    host::overflow_uid,
    listeners::{self, Listener},
    plan::{Family, Plan},
};

use dialler::Dialler;

pub(crate) use canary::{probe, redirect};

/// Finds the proxy and makes sure that it is the one configured: the control socket and every
/// socket that a redirected connection could reach must be its own, and its user's.
pub(crate) fn identify(plan: &Plan) -> Result<(Proxy, Identity), Refusal> {
    let Some(mut proxy) = Proxy::connect(plan.port)? else {
        let listeners = on_port(plan.port)?
            .into_iter()
            .map(Listener::name_owners)
            .collect();
        return Err(Refusal::NoProxy {
            port: plan.port,
            listeners,
        });
    };
    check_user(&proxy, plan.proxy.uid)?;
    let identity = proxy.hello()?;
    if identity.draining {
        return Err(Refusal::Draining);
    }
    check_listeners(plan, &identity, on_port(plan.port)?)?;
    Ok((proxy, identity))
}

/// For each captured family a TCP socket as an application of the scope would open it. It can reach no
/// farther than the next host: where the rules do not redirect it, nobody beyond is bothered.
pub(crate) fn application_sockets(plan: &Plan) -> Result<Vec<Socket>, Refusal> {
    let mut dialler = Dialler::new(plan)?;
    let mut socket_of = |&family: &Family| {
        let socket = dialler.socket(family, 0)?;
        let limited = match family {
            Family::V4 => socket.set_ttl_v4(1),
            Family::V6 => socket.set_unicast_hops_v6(1),
        };
        limited.map_err(|cause| Refusal::Host {
            doing: "preparing a probe's socket".into(),
            cause,
        })?;
        Ok(socket)
    };
    plan.families.iter().map(&mut socket_of).collect()
}

fn check_user(proxy: &Proxy, expected: u32) -> Result<(), Refusal> {
    let found = proxy.uid();
    if found == overflow_uid() {
        // It stands for every unmapped user, so it proves nothing.
        return Err(Refusal::UnmappedUser {
            peer: proxy.process(),
        });
    }
    if found != expected {
        return Err(Refusal::WrongUser {
            expected,
            found,
            peer: proxy.process(),
        });
    }
    Ok(())
}

/// Every socket on the port counts: a stale instance that shares it through SO_REUSEPORT would
/// take its part of the connections.
fn check_listeners(
    plan: &Plan,
    identity: &Identity,
    on_port: Vec<Listener>,
) -> Result<(), Refusal> {
    for listener in on_port.iter().filter(|l| l.takes_redirected()) {
        if !identity.listener_inodes.contains(&listener.inode) {
            return Err(Refusal::ForeignListener(listener.clone().name_owners()));
        }
        if listener.uid != plan.proxy.uid {
            return Err(Refusal::ListenerOfOtherUser {
                listener: listener.clone(),
                expected: plan.proxy.uid,
            });
        }
    }
    for &family in &plan.families {
        if count_of(family, &on_port) == 0 {
            return Err(Refusal::NotListening {
                address: (family.loopback(), plan.port).into(),
            });
        }
    }
    Ok(())
}

/// How many sockets share the redirected connections of a family.
fn count_of(family: Family, on_port: &[Listener]) -> usize {
    let loopback = family.loopback();
    on_port
        .iter()
        .filter(|listener| listener.address.ip() == loopback)
        .count()
}

fn on_port(port: u16) -> Result<Vec<Listener>, Refusal> {
    listeners::on_port(port).map_err(|cause: io::Error| Refusal::Host {
        doing: format!("listing who listens on port {port}"),
        cause,
    })
}

impl Family {
    pub(crate) fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
            Self::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::Settings;

    use super::*;
    use crate::host::Host;

    fn plan() -> Plan {
        let host = Host {
            ipv6_on_loopback: false,
            can_shorten_timeouts: true,
            can_outlive_owner: true,
            ..Host::default()
        };
        Plan::new(&Settings::default(), &host, 1).unwrap()
    }

    fn identity(inodes: &[u64]) -> Identity {
        Identity {
            instance: "i".into(),
            version: "0".into(),
            pid: 1,
            uid: 1337,
            workers: 1,
            listeners: Vec::new(),
            listener_inodes: inodes.to_vec(),
            mark: None,
            uptime_secs: 0,
            draining: false,
            tethers: Vec::new(),
            captured_since: None,
        }
    }

    fn listener(address: &str, inode: u64, uid: u32) -> Listener {
        Listener {
            address: address.parse().unwrap(),
            inode,
            uid,
            owners: Vec::new(),
        }
    }

    #[test]
    fn an_applications_probe_gets_no_farther_than_the_next_host() {
        let sockets = application_sockets(&plan()).unwrap();
        let limits: Vec<_> = sockets.iter().map(|of| of.ttl_v4().unwrap()).collect();
        assert_eq!(limits, [1]);
    }

    #[test]
    fn own_listeners_pass() {
        let own = vec![listener("127.0.0.1:15001", 7, 1337)];
        assert!(check_listeners(&plan(), &identity(&[7]), own).is_ok());
    }

    #[test]
    fn a_stale_instance_on_the_same_port_is_refused() {
        let both = vec![
            listener("127.0.0.1:15001", 7, 1337),
            listener("127.0.0.1:15001", 8, 1337),
        ];
        let refusal = check_listeners(&plan(), &identity(&[7]), both).unwrap_err();
        assert!(matches!(refusal, Refusal::ForeignListener(l) if l.inode == 8));
    }

    #[test]
    fn a_foreign_wildcard_is_refused_but_another_address_is_none_of_ours() {
        let own = listener("127.0.0.1:15001", 7, 1337);
        let wildcard = vec![own.clone(), listener("0.0.0.0:15001", 9, 0)];
        let refusal = check_listeners(&plan(), &identity(&[7]), wildcard).unwrap_err();
        assert!(matches!(refusal, Refusal::ForeignListener(l) if l.inode == 9));
        let elsewhere = vec![own, listener("10.0.0.1:15001", 9, 0)];
        assert!(check_listeners(&plan(), &identity(&[7]), elsewhere).is_ok());
    }

    #[test]
    fn a_listener_that_another_user_made_is_refused() {
        let made_by_root = vec![listener("127.0.0.1:15001", 7, 0)];
        let refusal = check_listeners(&plan(), &identity(&[7]), made_by_root).unwrap_err();
        assert!(matches!(
            refusal,
            Refusal::ListenerOfOtherUser { expected: 1337, .. }
        ));
    }

    #[test]
    fn a_family_without_listener_is_named() {
        let refusal = check_listeners(&plan(), &identity(&[]), Vec::new()).unwrap_err();
        assert!(matches!(
            refusal,
            Refusal::NotListening { address } if address == "127.0.0.1:15001".parse().unwrap()
        ));
    }
}
