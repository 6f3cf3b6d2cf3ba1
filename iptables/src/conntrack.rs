//! Connections that ended before the capture began and that connection tracking still remembers. It
//! decides on translation once per entry, so a new connection between the same two ports would be
//! taken for the old one and go past the capture.
//!
//! Most need no help: where tracking saw a FIN, the next SYN makes an entry of its own. What was
//! reset by its other end, or whose end nobody saw, keeps its decision.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple,
        Protocol, Status, Tuple,
    },
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_ROUTE};

use crate::{
    error::Refusal,
    listeners::{is_live, live_connections},
    nft::{NetlinkSocket, NftError},
    plan::Family,
};

const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
/// `TCP_CONNTRACK_TIME_WAIT` and `TCP_CONNTRACK_CLOSE` (linux/netfilter/nf_conntrack_tcp.h).
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;
/// `IP_CT_TCP_FLAG_CLOSE_INIT`: this side sent a FIN (same header).
const CLOSE_INIT: u8 = 0x04;

/// Makes connection tracking forget them: of this host's own TCP connections, those that nobody
/// translated and that no socket lives on any more. A live one stays as it is, and so does what
/// is forwarded for others, since a firewall may let it pass for its entry only.
pub(crate) fn forget_ended(socket: &mut NetlinkSocket, families: &[Family]) -> Result<(), Refusal> {
    let Tracked { entries, own, live } = Tracked::look(socket, families)?;
    let ended = entries
        .into_iter()
        .filter(|entry| !entry.is_translated && !entry.is_renewed_by_syn)
        .map(|entry| ([entry.ends_at(&own)], entry))
        .filter(|([ends], _)| !live.contains(ends));
    forget_unless_live(socket, ended)
}

/// See [`forget_redirected`]; in both families, for a supervisor whose proxy has just died, or none has begun.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn forget_dead_proxy(port: u16) -> Result<(), Refusal> {
    let mut socket = NetlinkSocket::open()?;
    forget_redirected(&mut socket, &[Family::V4, Family::V6], port)
}

/// The same for those that were redirected to `port`. Nobody saw their end where the proxy was killed and
/// tracking ended with it; from such a port the next proxy's own connection would be led back to itself. And
/// where nothing else needs tracking it sleeps until the next install: a connection that goes direct meanwhile,
/// between the ends of one that was captured, would be led to the proxy in its midst when it wakes.
///
/// To be called while nothing is redirected there, and before the first rule that wakes it: a connection that
/// began meanwhile between the same ends may have an entry of the same name, and would hang without it.
pub(crate) fn forget_redirected(
    socket: &mut NetlinkSocket,
    families: &[Family],
    port: u16,
) -> Result<(), Refusal> {
    let is_ours = |end: &SocketAddr| end.ip().is_loopback() && end.port() == port;
    let Tracked { entries, own, live } = Tracked::look(socket, families)?;
    // A listener has no other end. While one is served tracking is awake, and a SYN renews what it can.
    let is_awake = live
        .iter()
        .any(|(here, there)| is_ours(here) && there.port() != 0);
    let ended = entries.into_iter().filter_map(|entry| {
        let proxy = (entry.answered_by.filter(is_ours)?, entry.from);
        let application = entry.ends_at(&own);
        // Each end may have outlived the other: the application's in a direct connection between the same ends,
        // the proxy's in waiting for what nobody translates any more.
        let has_both = live.contains(&application) && live.contains(&proxy);
        let is_renewed = entry.is_renewed_by_syn && !live.contains(&application);
        let is_ended = !(has_both || is_awake && is_renewed);
        (entry.is_translated && is_ended).then_some(([application, proxy], entry))
    });
    if is_awake {
        return forget_unless_live(socket, ended);
    }
    for (_, entry) in ended {
        forget(socket, entry)?;
    }
    Ok(())
}

fn look(doing: &str) -> impl Fn(io::Error) -> Refusal {
    move |cause| Refusal::Host {
        doing: doing.to_owned(),
        cause,
    }
}

/// What is tracked of this host's own connections, and what of it lives.
struct Tracked {
    entries: Vec<Entry>,
    own: HashSet<IpAddr>,
    live: HashSet<Ends>,
}

impl Tracked {
    fn look(socket: &mut NetlinkSocket, families: &[Family]) -> Result<Self, Refusal> {
        let own = own_addresses().map_err(look("listing the addresses of this host"))?;
        let mut entries = entries(socket)?;
        entries.retain(|entry| families.contains(&entry.family()) && entry.is_of(&own));
        // After the entries, so that none of a connection that has begun since is taken for ended.
        let live = live_connections().map_err(look("listing the TCP connections"))?;
        Ok(Self { entries, own, live })
    }
}

type Ends = (SocketAddr, SocketAddr);

/// Forgets entries, each unless all the sockets live that it takes.
fn forget_unless_live<const N: usize>(
    socket: &mut NetlinkSocket,
    ended: impl Iterator<Item = ([Ends; N], Entry)>,
) -> Result<(), Refusal> {
    for (sockets, entry) in ended {
        // Forgetting many takes long enough for one of them to be begun anew under the same entry. A
        // translated one would hang without it, of another the next connection would go past.
        let mut lives = true;
        for (here, there) in sockets {
            lives &= is_live(here, there).map_err(look("looking up a TCP connection"))?;
        }
        if !lives {
            forget(socket, entry)?;
        }
    }
    Ok(())
}

/// A TCP connection.
struct Entry {
    from: SocketAddr,
    to: SocketAddr,
    answered_by: Option<SocketAddr>,
    is_translated: bool,
    /// The next SYN between its ends makes a new entry.
    is_renewed_by_syn: bool,
    /// What names it to the kernel. Of its two directions the one that answers come from: a connection
    /// that has since begun between the same ends and is translated has another, while its number,
    /// made from where it lies in memory, may be the same.
    name: Vec<ConntrackAttribute>,
}

impl Entry {
    fn family(&self) -> Family {
        Family::of(self.from.ip())
    }

    /// Whether one end is this host's. It need not have begun the connection: one that tracking met on
    /// its way has for its beginning whoever spoke next.
    fn is_of(&self, own: &HashSet<IpAddr>) -> bool {
        own.contains(&self.from.ip()) || (own.contains(&self.to.ip()) && !self.is_translated)
    }

    /// This host's end, and the other.
    fn ends_at(&self, own: &HashSet<IpAddr>) -> (SocketAddr, SocketAddr) {
        if own.contains(&self.from.ip()) {
            (self.from, self.to)
        } else {
            (self.to, self.from)
        }
    }
}

/// Of both families at once: the kernel walks its whole table for a list, which takes milliseconds however
/// few are in it.
fn entries(socket: &mut NetlinkSocket) -> Result<Vec<Entry>, NftError> {
    let request = message(
        NetfilterProtoFamily::Unspec,
        ConntrackMessage::Get(Vec::new()),
    );
    let found = socket.dump_all("listing tracked connections", &request)?;
    let entry = |object| match object {
        NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => entry(attributes),
        _ => None,
    };
    Ok(found.into_iter().filter_map(entry).collect())
}

fn entry(attributes: Vec<ConntrackAttribute>) -> Option<Entry> {
    let (mut ends, mut answered_by) = (None, None);
    let (mut is_translated, mut is_renewed_by_syn) = (false, false);
    let mut name = Vec::new();
    for attribute in attributes {
        match &attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => ends = tcp_ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => {
                answered_by = tcp_ends(tuple).map(|(from, _)| from);
                name.push(attribute);
            }
            ConntrackAttribute::CtaStatus(status) => {
                is_translated = status.intersects(Status::NatMask);
            }
            ConntrackAttribute::CtaProtoInfo(infos) => {
                is_renewed_by_syn = infos.iter().any(is_renewed);
            }
            ConntrackAttribute::Other(other) if [CTA_ID, CTA_ZONE].contains(&other.kind()) => {
                name.push(attribute);
            }
            _ => {}
        }
    }
    let (from, to) = ends?;
    Some(Entry {
        from,
        to,
        answered_by,
        is_translated,
        is_renewed_by_syn,
        name,
    })
}

/// As `nf_conntrack_tcp_packet` decides on a SYN (net/netfilter/nf_conntrack_proto_tcp.c).
fn is_renewed(info: &ProtoInfo) -> bool {
    let ProtoInfo::TCP(parts) = info else {
        return false;
    };
    let (mut is_over, mut has_fin) = (false, false);
    for part in parts {
        match part {
            ProtoInfoTCP::State(state) => is_over = [TIME_WAIT, CLOSE].contains(state),
            ProtoInfoTCP::OriginalFlags(flags) | ProtoInfoTCP::ReplyFlags(flags) => {
                has_fin |= flags.flags & CLOSE_INIT != 0;
            }
            _ => {}
        }
    }
    is_over && has_fin
}

fn tcp_ends(tuple: &[Tuple]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut from, mut to) = (None::<IpAddr>, None::<IpAddr>);
    let (mut from_port, mut to_port, mut is_tcp) = (None, None, false);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(ip) => from = Some(*ip),
                        IPTuple::DestinationAddress(ip) => to = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(numbers) => {
                for number in numbers {
                    match number {
                        ProtoTuple::Protocol(protocol) => is_tcp = *protocol == Protocol::Tcp,
                        ProtoTuple::SourcePort(port) => from_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => to_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let ends = (
        SocketAddr::new(from?, from_port?),
        SocketAddr::new(to?, to_port?),
    );
    is_tcp.then_some(ends)
}

/// One that is gone already is no error.
fn forget(socket: &mut NetlinkSocket, entry: Entry) -> Result<(), NftError> {
    let order = message(entry.family().into(), ConntrackMessage::Delete(entry.name));
    match socket.tell("forgetting an ended connection", &order) {
        Err(error) if error.cause.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        told => told,
    }
}

impl From<Family> for NetfilterProtoFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::IPv4,
            Family::V6 => Self::IPv6,
        }
    }
}

fn message(family: NetfilterProtoFamily, message: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

/// Asked of the routing tables: trying to bind proves nothing where `ip_nonlocal_bind` is set.
fn own_addresses() -> io::Result<HashSet<IpAddr>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = HashSet::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                    found.extend(own_address(&address.attributes));
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
    }
}

/// On a point-to-point link `Address` is the far end's, and `Local` comes too.
fn own_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let mut found = None;
    for attribute in attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(*ip),
            AddressAttribute::Address(ip) => found = Some(*ip),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::conntrack::TCPFlags;

    use super::*;

    fn renewed(state: u8, original: u8, reply: u8) -> bool {
        let flags = |flags| TCPFlags::parse(&[flags, 0xff]).unwrap();
        is_renewed(&ProtoInfo::TCP(vec![
            ProtoInfoTCP::State(state),
            ProtoInfoTCP::OriginalFlags(flags(original)),
            ProtoInfoTCP::ReplyFlags(flags(reply)),
        ]))
    }

    #[test]
    fn only_what_has_ended_with_a_fin_is_renewed_by_a_syn() {
        const ESTABLISHED: u8 = 3;
        const SYN_SENT2: u8 = 9;
        assert!(renewed(TIME_WAIT, CLOSE_INIT, 0));
        assert!(renewed(CLOSE, 0x20, 0x20 | CLOSE_INIT));
        assert!(!renewed(CLOSE, 0x20, 0x20), "reset by its other end");
        assert!(!renewed(ESTABLISHED, CLOSE_INIT, 0), "its end was not seen");
        assert!(!renewed(SYN_SENT2, CLOSE_INIT, 0));
    }
}
