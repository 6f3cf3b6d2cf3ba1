//! What a rule loads of its packet, and of what surrounds it, into the registers.

use std::{net::IpAddr, rc::Rc};

use super::{AT_CONNTRACK, Break, Known, Machine};
use crate::ruleset::{ct, meta};

impl Machine<'_, '_> {
    pub(super) fn meta(&mut self, key: u32, to: usize) -> Result<(), Break> {
        let packet = &self.packet;
        let is_v6 = packet.is_v6();
        let owner = |id: u32, what| {
            if packet.has_socket() {
                Ok(id)
            } else {
                Err(Break(format!("there is no {what} in {}", packet.hook)))
            }
        };
        let name = |device: &Option<(String, u32)>| {
            let mut bytes = [0; 16];
            let name = device.as_ref().map_or("", |d| d.0.as_str()).as_bytes();
            let length = name.len().min(15);
            bytes[..length].copy_from_slice(&name[..length]);
            bytes.to_vec()
        };
        let index = |device: &Option<(String, u32)>| {
            device.as_ref().map_or(0, |d| d.1).to_ne_bytes().to_vec()
        };
        let (value, label): (Known<Vec<u8>>, &'static str) = match key {
            meta::PROTOCOL => (
                Ok(if is_v6 { vec![0x86, 0xdd] } else { vec![8, 0] }),
                "meta protocol",
            ),
            meta::MARK => (
                packet.mark.clone().map(|m| m.to_ne_bytes().to_vec()),
                "meta mark",
            ),
            meta::IIF => (Ok(index(&packet.input)), "iif"),
            meta::OIF => (Ok(index(&packet.output)), "oif"),
            meta::IIFNAME => (Ok(name(&packet.input)), "iifname"),
            meta::OIFNAME => (Ok(name(&packet.output)), "oifname"),
            meta::SKUID => (
                Ok(owner(packet.connection.uid, "skuid")?
                    .to_ne_bytes()
                    .to_vec()),
                "meta skuid",
            ),
            meta::SKGID => (
                Ok(owner(packet.connection.gid, "skgid")?
                    .to_ne_bytes()
                    .to_vec()),
                "meta skgid",
            ),
            meta::NFPROTO => (Ok(vec![if is_v6 { 10 } else { 2 }]), "meta nfproto"),
            meta::L4PROTO => (Ok(vec![6]), "meta l4proto"),
            meta::CGROUP => (Err("the class of net_cls".into()), "meta cgroup"),
            other => (Err(format!("`meta` key {other}").into()), "meta"),
        };
        let length = value.as_ref().map_or(16, Vec::len);
        self.put(to, length, value, label);
        Ok(())
    }

    pub(super) fn ct(&mut self, key: u32, is_reply: bool, to: usize) -> Result<(), Break> {
        const INVALID: u32 = 1;
        const NEW: u32 = 8;
        const UNTRACKED: u32 = 64;
        let packet = &self.packet;
        if packet.is_at_conntrack() {
            self.put(to, 16, Err(AT_CONNTRACK.into()), "ct");
            return Ok(());
        }
        if key == ct::STATE {
            let state = if packet.is_untracked {
                UNTRACKED
            } else if packet.is_tracked() {
                NEW
            } else {
                INVALID
            };
            self.put(to, 4, Ok(state.to_ne_bytes().to_vec()), "ct state");
            return Ok(());
        }
        if !packet.is_tracked() {
            return Err(Break("conntrack does not know it here".into()));
        }
        // A reply comes from where the connection was turned to.
        let (from, goal) = if is_reply {
            (packet.destination.ip(), packet.source)
        } else {
            (packet.original_source, packet.original.ip())
        };
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let source_port = || {
            packet
                .connection
                .source_port
                .ok_or_else(|| Rc::from("the source port, which the kernel chooses"))
        };
        let port = |port: u16| port.to_be_bytes().to_vec();
        let (value, label): (Known<Vec<u8>>, &'static str) = match key {
            ct::DIRECTION => (Ok(vec![0]), "ct direction"),
            ct::STATUS => {
                let known = packet.status().1;
                self.put(to, 4, Err("`ct status` beyond NAT".into()), "ct status");
                self.status = Some((to, known));
                return Ok(());
            }
            ct::MARK => (
                packet.ct_mark.clone().map(|m| m.to_ne_bytes().to_vec()),
                "ct mark",
            ),
            ct::L3PROTOCOL => (Ok(vec![if packet.is_v6() { 10 } else { 2 }]), "ct l3proto"),
            ct::PROTOCOL => (Ok(vec![6]), "ct protocol"),
            ct::SRC | ct::SRC_IP | ct::SRC_IP6 => (Ok(octets(from)), "ct saddr"),
            ct::DST | ct::DST_IP | ct::DST_IP6 => (Ok(octets(goal)), "ct daddr"),
            ct::PROTO_SRC if is_reply => {
                (Ok(port(packet.destination.port())), "ct reply proto-src")
            }
            ct::PROTO_DST if is_reply => (source_port().map(port), "ct reply proto-dst"),
            ct::PROTO_SRC => (source_port().map(port), "ct proto-src"),
            ct::PROTO_DST => (Ok(port(packet.original.port())), "ct proto-dst"),
            ct::ZONE => (
                packet
                    .ct_zone
                    .clone()
                    .map(|zone| (zone as u16).to_ne_bytes().to_vec()),
                "ct zone",
            ),
            other => (Err(format!("`ct` key {other}").into()), "ct"),
        };
        let length = value.as_ref().map_or(16, Vec::len);
        self.put(to, length, value, label);
        Ok(())
    }

    pub(super) fn socket(&mut self, key: u32, level: u32, to: usize) -> Result<(), Break> {
        const CGROUP: u32 = 3;
        let value = match (&self.packet.connection.cgroup, key) {
            (Some(cgroup), CGROUP) if self.packet.has_socket() => {
                match cgroup.ids.get(level as usize) {
                    Some(id) => Ok(id.to_ne_bytes().to_vec()),
                    None => {
                        return Err(Break(format!(
                            "its cgroup {} has no level {level}",
                            cgroup.path
                        )));
                    }
                }
            }
            (None, CGROUP) => Err("the cgroup of the connecting process".into()),
            _ => Err("`socket`".into()),
        };
        self.put(to, 8, value, "socket cgroupv2");
        Ok(())
    }

    pub(super) fn fib(&mut self, result: u32, flags: u32, to: usize) {
        const ADDRESS_TYPE: u32 = 3;
        let address = match flags {
            1 => Some(self.packet.source),
            2 => Some(self.packet.destination.ip()),
            _ => None,
        };
        let kind = address
            .filter(|_| result == ADDRESS_TYPE)
            .and_then(|address| self.surroundings.address_type(address));
        let value = kind
            .map(|kind| u32::from(kind).to_ne_bytes().to_vec())
            .ok_or_else(|| "`fib`".into());
        self.put(to, 4, value, "fib type");
    }
}
