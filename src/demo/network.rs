//! The wire between the application's namespace and the upstream's, laid through netlink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::{io::Errno, net::netdevice::name_to_index};

/// The wire comes up within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(1);

/// One end of the wire. The addresses are those that RFC 5737 and RFC 3849 keep for examples.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    interface: &'static str,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

pub(super) const APPLICATION: End = End {
    interface: "app0",
    v4: Ipv4Addr::new(203, 0, 113, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
};

pub(super) const UPSTREAM: End = End {
    interface: "up0",
    v4: Ipv4Addr::new(203, 0, 113, 80),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80),
};

/// Lays the wire from this network namespace to that of process `upstream`.
///
/// # Errors
/// The kernel's answer.
pub(super) fn lay_wire(upstream: u32) -> io::Result<()> {
    let mut far_end = LinkMessage::default();
    far_end.attributes = vec![
        LinkAttribute::IfName(UPSTREAM.interface.into()),
        LinkAttribute::NetNsPid(upstream),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(APPLICATION.interface.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far_end))),
        ]),
    ];
    Netlink::open()?.ask(
        RouteNetlinkMessage::NewLink(link),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Brings up the loopback interface and `end` in this network namespace; false when it has no IPv6.
///
/// # Errors
/// The kernel's answer.
pub(super) fn bring_up(end: End) -> io::Result<bool> {
    let mut netlink = Netlink::open()?;
    netlink.switch_on("lo")?;
    netlink.switch_on(end.interface)?;
    netlink.add_address(end.interface, end.v4.into(), 24)?;
    match netlink.add_address(end.interface, end.v6.into(), 64) {
        Ok(()) => Ok(true),
        Err(error) if lacks_ipv6(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until `end` carries packets. Both ends must have been brought up; the kernel connects them
/// a moment later, and until then it drops what is sent, which would cost the first call a second.
///
/// # Errors
/// The kernel's answer, or that it took too long.
pub(super) fn await_carrier(end: End) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let started = Instant::now();
    while !netlink.is_running(end.interface)? {
        if started.elapsed() > PATIENCE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} does not come up", end.interface),
            ));
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Not built in (EAFNOSUPPORT, EOPNOTSUPP) or switched off by sysctl (EACCES).
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::ACCESS)
    )
}

struct Netlink(Socket);

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    fn switch_on(&mut self, interface: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(interface)?;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn add_address(&mut self, interface: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.prefix_len = prefix;
        message.header.index = self.index(interface)?;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
            // Duplicate address detection would keep an IPv6 address unusable for a second.
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        self.ask(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    fn is_running(&mut self, interface: &str) -> io::Result<bool> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(interface)?;
        self.send(RouteNetlinkMessage::GetLink(link), 0)?;
        match self.receive()? {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                Ok(link.header.flags.contains(LinkFlags::Running))
            }
            _ => Err(io::Error::other("the kernel does not describe the link")),
        }
    }

    fn index(&self, interface: &str) -> io::Result<u32> {
        Ok(name_to_index(&self.0, interface)?)
    }

    /// Sends one request and waits for the kernel's yes or no.
    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(request, NLM_F_ACK | flags)?;
        self.receive().map(drop)
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }

    fn receive(&mut self) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
        let (answer, _) = self.0.recv_from_full()?;
        let answer = NetlinkMessage::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            payload => Ok(payload),
        }
    }
}
