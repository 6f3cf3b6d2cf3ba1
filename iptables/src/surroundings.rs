//! Routes and addresses of the calling thread's network namespace, asked of the kernel.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    io,
    net::IpAddr,
    time::Duration,
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::verdict::{Route, RoutingPolicy, Surroundings};

const RTM_GETROUTE: u16 = 26;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETRULE: u16 = 34;
const RTM_NEWRULE: u16 = 32;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REQUEST: u16 = 1;
const HEADERS: usize = 16 + 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RTA_MARK: u16 = 16;
const RTA_UID: u16 = 25;
const RTN_LOCAL: u8 = 2;

type Question = (IpAddr, Option<IpAddr>, u32, u32);

/// Remembers its answers: many rules ask the same.
#[derive(Debug, Default)]
pub struct LiveSurroundings {
    routes: RefCell<HashMap<Question, Result<Found, String>>>,
    policy: OnceCell<RoutingPolicy>,
}

#[derive(Clone, Debug)]
struct Found {
    route: Route,
    kind: u8,
}

impl Surroundings for LiveSurroundings {
    fn route(
        &self,
        to: IpAddr,
        from: Option<IpAddr>,
        mark: u32,
        uid: u32,
    ) -> Result<Route, String> {
        self.ask((to, from, mark, uid)).map(|found| found.route)
    }

    fn address_type(&self, address: IpAddr) -> Option<u8> {
        match self.ask((address, None, 0, 0)) {
            Ok(found) => Some(found.kind),
            // Without a route rules see an unreachable destination as plain unicast.
            Err(_) => Some(1),
        }
    }

    fn routing_policy(&self) -> RoutingPolicy {
        *self.policy.get_or_init(|| {
            policy().unwrap_or(RoutingPolicy {
                by_mark: true,
                by_tos: true,
            })
        })
    }
}

/// Every family's rules; what cannot be read is taken to ask for all.
fn policy() -> io::Result<RoutingPolicy> {
    let mut policy = RoutingPolicy::default();
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(10)))?;
    let mut message = vec![0; HEADERS];
    message[..4].copy_from_slice(&(HEADERS as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_GETRULE.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    socket.send(&message, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some(head) = rest.first_chunk::<16>() {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let malformed = || io::Error::from(io::ErrorKind::InvalidData);
            let whole = rest.get(..length.max(16)).ok_or_else(malformed)?;
            match u16::from_ne_bytes([head[4], head[5]]) {
                RTM_NEWRULE => read_policy(&whole[16..], &mut policy).ok_or_else(malformed)?,
                NLMSG_DONE => return Ok(policy),
                NLMSG_ERROR => return Err(malformed()),
                _ => {}
            }
            rest = rest
                .get(whole.len().next_multiple_of(4)..)
                .unwrap_or_default();
        }
    }
}

/// `struct fib_rule_hdr` and its attributes.
fn read_policy(rule: &[u8], policy: &mut RoutingPolicy) -> Option<()> {
    const HEADER: usize = 12;
    const MARK: u16 = 10;
    const MARK_MASK: u16 = 16;
    const DSCP: u16 = 26;
    policy.by_tos |= *rule.get(3)? != 0;
    let mut rest = rule.get(HEADER..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let value = rest.get(4..length)?;
        match u16::from_ne_bytes([rest[2], rest[3]]) {
            MARK | MARK_MASK => policy.by_mark |= value.iter().any(|b| *b != 0),
            DSCP.. => policy.by_tos = true,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(())
}

impl LiveSurroundings {
    fn ask(&self, question: Question) -> Result<Found, String> {
        if let Some(known) = self.routes.borrow().get(&question) {
            return known.clone();
        }
        let found = ask(question).map_err(|error| error.to_string());
        self.routes.borrow_mut().insert(question, found.clone());
        found
    }
}

fn ask((to, from, mark, uid): Question) -> io::Result<Found> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(10)))?;
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut message = vec![0; HEADERS];
    message[4..6].copy_from_slice(&RTM_GETROUTE.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    let (family, bits) = if to.is_ipv4() {
        (libc::AF_INET, 32)
    } else {
        (libc::AF_INET6, 128)
    };
    message[16] = family as u8;
    message[17] = bits;
    let mut put = |kind: u16, value: &[u8]| {
        message.extend(((value.len() + 4) as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
    };
    put(RTA_DST, &octets(to));
    if let Some(from) = from {
        put(RTA_SRC, &octets(from));
    }
    put(RTA_MARK, &mark.to_ne_bytes());
    put(RTA_UID, &uid.to_ne_bytes());
    if from.is_some() {
        message[18] = bits;
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    socket.send(&message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let malformed = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer on a route is malformed",
        )
    };
    read(&answer, to).ok_or_else(malformed)?
}

fn read(answer: &[u8], to: IpAddr) -> Option<io::Result<Found>> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind == NLMSG_ERROR {
        let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
        return Some(Err(io::Error::from_raw_os_error(code.saturating_neg())));
    }
    if kind != RTM_NEWROUTE {
        return None;
    }
    let kind = *answer.get(23)?;
    let (mut device_index, mut source) = (0, None);
    let mut rest = answer.get(HEADERS..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let value = rest.get(4..length)?;
        match u16::from_ne_bytes([rest[2], rest[3]]) {
            RTA_OIF => device_index = u32::from_ne_bytes(value.try_into().ok()?),
            RTA_PREFSRC => {
                source = match <[u8; 4]>::try_from(value) {
                    Ok(octets) => Some(IpAddr::from(octets)),
                    Err(_) => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
                }
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let device = device_name(device_index).unwrap_or_default();
    let route = Route {
        device,
        device_index,
        source: source.unwrap_or(to),
        is_local: kind == RTN_LOCAL,
    };
    Some(Ok(Found { route, kind }))
}

fn device_name(index: u32) -> io::Result<String> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    Ok(rustix::net::netdevice::index_to_name(&socket, index)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_local() {
        let live = LiveSurroundings::default();
        let ip = "127.0.0.1".parse().unwrap();
        let route = live.route(ip, None, 0, 0).unwrap();
        assert!(route.is_local);
        assert_eq!(route.device, "lo");
        assert_eq!(live.address_type(ip), Some(RTN_LOCAL));
    }

    #[test]
    fn an_answer_cut_short_is_refused() {
        let mut answer = vec![0; 30];
        answer[4..6].copy_from_slice(&RTM_NEWROUTE.to_ne_bytes());
        let whole = [16, 0, 4, 0];
        answer[28..30].copy_from_slice(&whole[..2]);
        answer.extend(&whole[2..]);
        assert!(read(&answer, "127.0.0.1".parse().unwrap()).is_none());
        assert!(read(&answer[..20], "127.0.0.1".parse().unwrap()).is_none());
    }
}
