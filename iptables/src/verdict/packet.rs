//! The SYN as it is at one point of its way, and the bytes that rules read of it.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use super::{Connection, Route};
use crate::ruleset::{Base, Hook, RuleAt};

/// A value, or why it is not known.
pub(super) type Known<T> = Result<T, Rc<str>>;

#[derive(Clone, Debug)]
pub(super) struct Packet<'a> {
    pub(super) connection: &'a Connection,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) source: IpAddr,
    pub(super) destination: SocketAddr,
    /// As the application dialled; conntrack keeps it.
    pub(super) original: SocketAddr,
    pub(super) original_source: IpAddr,
    pub(super) mark: Known<u32>,
    pub(super) ct_mark: Known<u32>,
    pub(super) ct_zone: Known<u32>,
    /// Its type of service was changed, by which policy routing may choose.
    pub(super) is_tos_changed: bool,
    pub(super) route: Route,
    /// What rules see: it stays through a hook although the route changed.
    pub(super) output: Option<(String, u32)>,
    pub(super) input: Option<(String, u32)>,
    pub(super) is_untracked: bool,
    pub(super) redirected_by: Option<RuleAt>,
    pub(super) is_source_changed: bool,
}

const SYN: u8 = 0x02;

impl Packet<'_> {
    pub(super) fn is_v6(&self) -> bool {
        self.destination.is_ipv6()
    }

    /// Whether the packet still belongs to a socket, as it does until the loopback device.
    pub(super) fn has_socket(&self) -> bool {
        matches!(self.hook, Hook::Output | Hook::Postrouting)
    }

    /// Before conntrack has seen it there is no state of it.
    pub(super) fn is_tracked(&self) -> bool {
        !(self.is_untracked || (self.hook == Hook::Output && self.priority < -200))
    }

    /// Of `enum ip_conntrack_status` the bits that are known, and which those are.
    pub(super) fn status(&self) -> (u32, u32) {
        const EXPECTED: u32 = 1;
        const SEEN_REPLY: u32 = 1 << 1;
        const ASSURED: u32 = 1 << 2;
        const CONFIRMED: u32 = 1 << 3;
        const SOURCE_CHANGED: u32 = 1 << 4;
        const DESTINATION_CHANGED: u32 = 1 << 5;
        let mut set = 0;
        if self.redirected_by.is_some() {
            set |= DESTINATION_CHANGED;
        }
        if self.is_source_changed {
            set |= SOURCE_CHANGED;
        }
        // Confirmed is what leaves the last hook on the way out.
        if matches!(self.hook, Hook::Prerouting | Hook::Input) {
            set |= CONFIRMED;
        }
        let known =
            EXPECTED | SEEN_REPLY | ASSURED | CONFIRMED | SOURCE_CHANGED | DESTINATION_CHANGED;
        (set, known)
    }

    /// `None`: the packet has no such bytes, which ends the rule.
    pub(super) fn payload(
        &self,
        base: Base,
        offset: usize,
        length: usize,
    ) -> Option<Known<Vec<u8>>> {
        let bytes = match base {
            Base::Network => self.network_header(),
            Base::Transport => self.transport_header(),
            // There is none before a device has been entered.
            Base::Link => return None,
            Base::Inner => return Some(Err("the payload".into())),
        };
        let Some(part) = bytes.get(offset..offset + length) else {
            return Some(Err("TCP options".into()));
        };
        let known: Option<Vec<u8>> = part.iter().copied().collect();
        Some(known.ok_or_else(|| self.name(base, offset).into()))
    }

    fn name(&self, base: Base, offset: usize) -> &'static str {
        match base {
            Base::Transport if offset < 2 => "the source port, which the kernel chooses",
            Base::Transport => "a field of the TCP header",
            _ => "a field of the IP header",
        }
    }

    fn network_header(&self) -> Vec<Option<u8>> {
        let some = |bytes: &[u8]| bytes.iter().copied().map(Some).collect::<Vec<_>>();
        match (self.source, self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![None; 20];
                header[0] = Some(0x45);
                header[9] = Some(6);
                header[12..16].copy_from_slice(&some(&from.octets()));
                header[16..20].copy_from_slice(&some(&to.octets()));
                header
            }
            (from, to) => {
                let octets = |ip| match ip {
                    IpAddr::V6(ip) => ip.octets(),
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                };
                let mut header = vec![None; 40];
                header[6] = Some(6);
                header[8..24].copy_from_slice(&some(&octets(from)));
                header[24..40].copy_from_slice(&some(&octets(to)));
                header
            }
        }
    }

    fn transport_header(&self) -> Vec<Option<u8>> {
        let mut header = vec![None; 20];
        // Masquerading may choose another port.
        let port = self
            .connection
            .source_port
            .filter(|_| !self.is_source_changed);
        if let Some(port) = port {
            let [high, low] = port.to_be_bytes();
            (header[0], header[1]) = (Some(high), Some(low));
        }
        let [high, low] = self.destination.port().to_be_bytes();
        (header[2], header[3]) = (Some(high), Some(low));
        header[8..12].fill(Some(0));
        header[13] = Some(SYN);
        header
    }
}
