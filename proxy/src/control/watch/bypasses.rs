//! Connections that went past the capture, as the rules log them (NFLOG): counted by reason, and
//! the last ones remembered.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use outrigger_config::control::{Bypass, BypassCount, BypassReason, Bypasses as Told};

use super::netlink::{attribute, messages, number, text};

/// Remembered; what `status` shows.
const RECENT: usize = 20;
/// Between two log lines about bypasses.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// `NFNL_SUBSYS_ULOG`, `NFULNL_MSG_PACKET`.
const PACKET: u16 = (libc::NFNL_SUBSYS_ULOG as u16) << 8;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_UID: u16 = 11;
const NFULA_CT: u16 = 18;

#[derive(Debug, Default)]
pub(super) struct Bypasses {
    pub(super) readers: usize,
    pub(super) live_before: u64,
    counts: [u64; BypassReason::ALL.len()],
    recent: VecDeque<Bypass>,
    pub(super) overruns: u64,
    logged: Option<Instant>,
    /// Since the last log line.
    unlogged: u64,
}

impl Bypasses {
    pub(super) fn take(&mut self, datagram: &[u8], now: Instant, at: u64) {
        for message in messages(datagram).filter(|message| message.kind == PACKET) {
            if let Some(bypass) = bypass(message.attributes, at) {
                self.add(bypass, now);
            }
        }
    }

    fn add(&mut self, bypass: Bypass, now: Instant) {
        self.counts[bypass.reason as usize] += 1;
        if !bypass.reason.is_chosen() {
            self.log(&bypass, now);
        }
        // What the settings ask for must not push out what nobody asked for.
        if self.recent.len() == RECENT {
            let chosen = self.recent.iter().rposition(|b| b.reason.is_chosen());
            match chosen {
                Some(index) => drop(self.recent.remove(index)),
                None if bypass.reason.is_chosen() => return,
                None => drop(self.recent.pop_back()),
            }
        }
        self.recent.push_front(bypass);
    }

    fn log(&mut self, bypass: &Bypass, now: Instant) {
        let is_due = self.logged.is_none_or(|then| now >= then + LOG_PAUSE);
        if !is_due {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(now);
        tracing::warn!(
            destination = %bypass.destination,
            uid = bypass.uid,
            reason = bypass.reason.label(),
            more = std::mem::take(&mut self.unlogged),
            "a connection went past the capture: {}",
            bypass.reason.explanation()
        );
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = (BypassReason, u64)> {
        BypassReason::ALL.into_iter().zip(self.counts)
    }

    pub(super) fn told(&self) -> Told {
        let counts = self.counts().filter(|(_, count)| *count > 0);
        Told {
            is_watched: self.readers > 0,
            live_before: self.live_before,
            counts: counts
                .map(|(reason, count)| BypassCount {
                    reason,
                    is_chosen: reason.is_chosen(),
                    explanation: reason.explanation().into(),
                    count,
                })
                .collect(),
            recent: self.recent.iter().cloned().collect(),
            overruns: self.overruns,
        }
    }
}

fn bypass(attributes: &[u8], at: u64) -> Option<Bypass> {
    let prefix = text(attributes, NFULA_PREFIX)?;
    let label = prefix.strip_prefix("outrigger:")?;
    let reason = BypassReason::ALL
        .into_iter()
        .find(|reason| reason.label() == label)?;
    // Connection tracking knows where it was going before anybody translated it.
    let original = attribute(attributes, NFULA_CT).and_then(original_destination);
    let destination =
        original.or_else(|| packet_destination(attribute(attributes, NFULA_PAYLOAD)?));
    Some(Bypass {
        reason,
        at,
        destination: destination?,
        uid: number(attributes, NFULA_UID),
    })
}

fn original_destination(ct: &[u8]) -> Option<SocketAddr> {
    const TUPLE_ORIG: u16 = 1;
    const TUPLE_IP: u16 = 1;
    const TUPLE_PROTO: u16 = 2;
    const IP_V4_DST: u16 = 2;
    const IP_V6_DST: u16 = 4;
    const PROTO_DST_PORT: u16 = 3;
    let tuple = attribute(ct, TUPLE_ORIG)?;
    let addresses = attribute(tuple, TUPLE_IP)?;
    let v4 = attribute(addresses, IP_V4_DST).and_then(ipv4);
    let ip = v4.or_else(|| attribute(addresses, IP_V6_DST).and_then(ipv6))?;
    let port = attribute(attribute(tuple, TUPLE_PROTO)?, PROTO_DST_PORT)?;
    Some((ip, u16::from_be_bytes(port.try_into().ok()?)).into())
}

/// Of TCP, whose SYN it is, by the rule that logged it.
fn packet_destination(packet: &[u8]) -> Option<SocketAddr> {
    let first = *packet.first()?;
    let (ip, header) = match first >> 4 {
        4 => (ipv4(packet.get(16..20)?)?, usize::from(first & 0xf) * 4),
        // Nobody puts extension headers before a SYN of his own.
        6 => (ipv6(packet.get(24..40)?)?, 40),
        _ => return None,
    };
    let port = packet.get(header + 2..header + 4)?;
    Some((ip, u16::from_be_bytes(port.try_into().ok()?)).into())
}

fn ipv4(bytes: &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into())
}

fn ipv6(bytes: &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn datagram(prefix: &str) -> Vec<u8> {
        let mut packet = vec![0x45; 20];
        packet[16..20].copy_from_slice(&[192, 0, 2, 7]);
        packet.extend([0xaa, 0xaa, 0, 80]);
        let mut body = [
            attribute(NFULA_PREFIX, format!("{prefix}\0").as_bytes()),
            attribute(NFULA_PAYLOAD, &packet),
            attribute(NFULA_UID, &1000u32.to_be_bytes()),
        ]
        .concat();
        let length = u32::try_from(20 + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(PACKET.to_ne_bytes());
        bytes.extend([0; 14]);
        bytes.append(&mut body);
        bytes
    }

    #[test]
    fn a_logged_packet_is_counted_under_its_reason() {
        let now = Instant::now();
        let mut bypasses = Bypasses::default();
        bypasses.take(&datagram("outrigger:untracked"), now, 5);
        bypasses.take(&datagram("outrigger:no such reason"), now, 6);
        bypasses.take(&datagram("somebody else's"), now, 7);
        let told = bypasses.told();
        assert_eq!(told.counts.len(), 1);
        assert_eq!(
            told.recent,
            [Bypass {
                reason: BypassReason::Untracked,
                at: 5,
                destination: "192.0.2.7:80".parse().unwrap(),
                uid: Some(1000),
            }]
        );
    }

    #[test]
    fn what_was_asked_for_never_pushes_out_what_was_not() {
        let now = Instant::now();
        let mut bypasses = Bypasses::default();
        bypasses.take(&datagram("outrigger:untracked"), now, 0);
        for at in 1..1000 {
            bypasses.take(&datagram("outrigger:loopback"), now, at);
        }
        let told = bypasses.told();
        assert_eq!(told.recent.len(), RECENT);
        assert!(
            told.recent
                .iter()
                .any(|b| b.reason == BypassReason::Untracked)
        );
    }

    #[test]
    fn a_cut_off_datagram_is_no_bypass_and_no_panic() {
        let whole = datagram("outrigger:lapsed");
        for length in 0..whole.len() - 12 {
            let mut bypasses = Bypasses::default();
            bypasses.take(&whole[..length], Instant::now(), 0);
            assert_eq!(bypasses.told().counts, []);
        }
    }
}
