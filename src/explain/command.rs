//! From the command line to the connection that it speaks of.

use std::net::{IpAddr, SocketAddr};

use outrigger_config::control::{Question, RequestHead};
use outrigger_iptables::verdict::{Cgroup, Connection};
use outrigger_proxy::dispatch::without_port;

use super::Args;

pub(super) fn connection(args: &Args, destination: SocketAddr) -> Result<Connection, String> {
    let mut connection = Connection {
        destination,
        source: args.from.map(|(ip, _)| ip),
        source_port: args.from.and_then(|(_, port)| port),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: Vec::new(),
        mark: 0,
        cgroup: None,
    };
    if let Some(from) = connection.source
        && from.is_ipv4() != destination.is_ipv4()
    {
        return Err("--from is of another address family than the destination".into());
    }
    if let Some(pid) = args.pid {
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| match error
                .kind()
            {
                std::io::ErrorKind::NotFound => format!("there is no process {pid}"),
                _ => format!("process {pid}: {error}"),
            })?;
        // Of real, effective, saved and file-system ids the last makes sockets.
        let ids = |key: &str| -> Vec<u32> {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap_or_default();
            line.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        connection.uid = ids("Uid:").get(3).copied().unwrap_or(connection.uid);
        connection.gid = ids("Gid:").get(3).copied().unwrap_or(connection.gid);
        connection.groups = ids("Groups:");
        connection.cgroup = cgroup(pid);
    }
    if let Some(uid) = args.uid {
        connection.uid = uid;
    }
    Ok(connection)
}

/// What a proxy is asked of it. Without a word of what it carries, nothing is taken for granted of that.
pub(super) fn question(args: &Args, connection: &Connection) -> Question {
    let is_http = args.host.is_some()
        || args.path.is_some()
        || args.method.is_some()
        || !args.headers.is_empty();
    Question {
        destination: connection.destination,
        client: connection.source,
        sni: args.sni.clone(),
        request: is_http.then(|| RequestHead {
            host: args.host.clone(),
            path: args.path.clone(),
            method: args.method.clone(),
            headers: args.headers.clone(),
        }),
    }
}

/// `None` where the hierarchy is not mounted at its usual place.
fn cgroup(pid: i32) -> Option<Cgroup> {
    use std::os::unix::fs::MetadataExt;
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?
        .to_owned();
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|root| std::fs::exists(format!("{root}/cgroup.procs")).unwrap_or(false))?;
    let mut place = std::path::PathBuf::from(root);
    let mut ids = vec![std::fs::metadata(&place).ok()?.ino()];
    for part in path.split('/').filter(|part| !part.is_empty()) {
        place.push(part);
        ids.push(std::fs::metadata(&place).ok()?.ino());
    }
    Some(Cgroup { path, ids })
}

pub(super) fn destination(text: &str) -> Result<SocketAddr, String> {
    const DEFAULT_PORT: u16 = 80;
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let whole = text.parse().or_else(|_| {
        bare.parse::<IpAddr>()
            .map(|ip| SocketAddr::new(ip, DEFAULT_PORT))
    });
    match whole {
        Ok(whole) if whole.port() > 0 => Ok(whole),
        Ok(_) => Err("port 0 is nobody's; write one from 1 on".into()),
        Err(_) => Err(
            "write an address, such as 203.0.113.7, 203.0.113.7:80 or [2001:db8::1]:80; of a name, `getent ahosts NAME` tells those that it stands for".into(),
        ),
    }
}

/// By number, or by a name that this host's /etc/passwd has.
pub(super) fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == text).then(|| fields.nth(1)?.parse().ok())?
    });
    uid.ok_or_else(|| "write a user's number, or a name that is in /etc/passwd; `id -u NAME` tells the number of others".into())
}

pub(super) fn process(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err("write a process' number, as `pidof NAME` and `ps` tell it".into()),
    }
}

pub(super) fn source(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip, None));
    }
    let whole: SocketAddr = text
        .parse()
        .map_err(|_| String::from("write an address, with or without a port"))?;
    Ok((whole.ip(), Some(whole.port())))
}

pub(super) fn host(text: &str) -> Result<String, String> {
    match without_port(text.as_bytes()) {
        Some(host) if !host.is_empty() && is_one_word(text) => Ok(host.into()),
        _ => Err("write a host, with or without a port".into()),
    }
}

pub(super) fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || !is_one_word(text) {
        return Err("write a path that begins with `/` and has no space".into());
    }
    Ok(text.into())
}

pub(super) fn method(text: &str) -> Result<String, String> {
    if text.is_empty() || !is_one_word(text) {
        return Err("write one word, such as POST".into());
    }
    Ok(text.into())
}

/// As everything is that stands in the first line of a request, and a host.
fn is_one_word(text: &str) -> bool {
    !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().into(), value.trim().into()))
        }
        _ => Err("write a name, a colon and a value, such as `x-user: ada`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_dialled_or_asked_for_is_refused() {
        for text in ["203.0.113.7:0", "203.0.113.7:http", "example.com", ""] {
            assert!(destination(text).is_err(), "{text}");
        }
        for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:80"] {
            let wanted = "[2001:db8::1]:80".parse();
            assert_eq!(destination(text).ok(), wanted.ok(), "{text}");
        }
        for text in ["a b", "", "a\n"] {
            assert!(host(text).is_err(), "{text}");
            assert!(method(text).is_err(), "{text}");
        }
        assert!(path("v1").is_err());
        assert!(path("/v1 HTTP/1.1").is_err());
        assert!(process("0").is_err());
    }

    #[test]
    fn a_user_goes_by_number_or_name() {
        assert_eq!(user("1337"), Ok(1337));
        assert_eq!(user("root"), Ok(0));
        assert!(user("nobody-of-that-name").is_err());
    }
}
