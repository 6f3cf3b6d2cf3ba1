//! The live connections of a process with their true other ends. A redirected socket shows where it
//! was dialled to; where its packets go only connection tracking knows.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use procfs::process::FDTarget;
use serde::Serialize;

use crate::{
    listeners::tcp_sockets,
    ruleset::{Attributes, Dumper},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    pub local: SocketAddr,
    /// As the socket shows it, and `lsof`, `ss` and `netstat`.
    pub shown: SocketAddr,
    /// Where its packets really go, if that is another.
    pub truly: Option<SocketAddr>,
    /// Of a connection that came redirected: where its client dialled.
    pub meant_for: Option<SocketAddr>,
}

/// Of process `pid`, asked within its network namespace. The text says what could not be seen.
///
/// # Errors
/// When the process' descriptors or the TCP sockets cannot be listed.
pub fn of_process(pid: i32) -> io::Result<(Vec<Peer>, Option<String>)> {
    let own = sockets(pid)?;
    let tracked = tracked();
    let (translated, unseen) = match tracked {
        Ok(found) => (found, None),
        Err(error) => (
            Translated::default(),
            Some(format!(
                "connection tracking, so that true ends are not known: {error}"
            )),
        ),
    };
    let mut peers: Vec<Peer> = tcp_sockets()?
        .into_iter()
        .filter(|socket| own.contains(&socket.inode))
        .map(|socket| {
            let ends = (socket.local, socket.peer);
            Peer {
                local: socket.local,
                shown: socket.peer,
                truly: translated.dialled.get(&ends).copied(),
                meant_for: translated.accepted.get(&ends).copied(),
            }
        })
        .collect();
    peers.sort_by_key(|peer| (peer.local, peer.shown));
    Ok((peers, unseen))
}

fn sockets(pid: i32) -> io::Result<HashSet<u64>> {
    let process = procfs::process::Process::new(pid).map_err(io::Error::other)?;
    let descriptors = process.fd().map_err(io::Error::other)?;
    let sockets = descriptors.filter_map(|fd| match fd.ok()?.target {
        FDTarget::Socket(inode) => Some(inode),
        _ => None,
    });
    Ok(sockets.collect())
}

type Ends = (SocketAddr, SocketAddr);

/// Connections whose other end is not what their sockets show.
#[derive(Debug, Default)]
struct Translated {
    /// By what a client's socket shows: where it really goes.
    dialled: HashMap<Ends, SocketAddr>,
    /// By what a server's socket shows: where the client dialled.
    accepted: HashMap<Ends, SocketAddr>,
}

fn tracked() -> io::Result<Translated> {
    const GET: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 1;
    let mut found = Translated::default();
    Dumper::open()?.dump(GET, 0, &[], |_, bytes| {
        let entry = Attributes(bytes);
        let (Some(original), Some(reply)) = (ends(entry.nested(1)), ends(entry.nested(2))) else {
            return;
        };
        // Unless it is translated, a reply comes from where the first packet went.
        if original.1 != reply.0 {
            found.dialled.insert(original, reply.0);
            found.accepted.insert(reply, original.1);
        }
    })?;
    Ok(found)
}

/// Of `CTA_TUPLE_…`: source and destination, if it is TCP.
fn ends(tuple: Attributes<'_>) -> Option<Ends> {
    const TCP: &[u8] = &[6];
    let (addresses, protocol) = (tuple.nested(1), tuple.nested(2));
    if protocol.find(1) != Some(TCP) {
        return None;
    }
    let v4 = |kind| {
        Some(IpAddr::from(Ipv4Addr::from(
            <[u8; 4]>::try_from(addresses.find(kind)?).ok()?,
        )))
    };
    let v6 = |kind| {
        Some(IpAddr::from(Ipv6Addr::from(
            <[u8; 16]>::try_from(addresses.find(kind)?).ok()?,
        )))
    };
    let port = |kind| Some(u16::from_be_bytes(protocol.find(kind)?.try_into().ok()?));
    let from = v4(1).or_else(|| v6(3))?;
    let to = v4(2).or_else(|| v6(4))?;
    Some(((from, port(2)?).into(), (to, port(3)?).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_of_tcp_has_two_ends_and_a_cut_one_none() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let addresses = [attribute(1, &[10, 0, 0, 1]), attribute(2, &[10, 0, 0, 2])].concat();
        let ports = [
            attribute(1, &[6]),
            attribute(2, &[0, 9]),
            attribute(3, &[0, 80]),
        ]
        .concat();
        let tuple = [attribute(1, &addresses), attribute(2, &ports)].concat();
        let whole = (
            "10.0.0.1:9".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
        );
        assert_eq!(ends(Attributes(&tuple)), Some(whole));
        for length in 0..tuple.len() {
            assert_eq!(ends(Attributes(&tuple[..length])), None, "{length}");
        }
    }
}
