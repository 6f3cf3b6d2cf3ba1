//! `proxyctl explain`: what becomes of a connection, rule by rule.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use outrigger_iptables::{
    LiveSurroundings, listeners,
    ruleset::{self, Ruleset},
    verdict::{self, Cgroup, Connection, End, Matched, Verdict, Way},
};
use serde_json::{Value, json};

use crate::{netns, settings::USAGE_ERROR};

/// Tell where a connection would end, and by which rules
///
/// Reads the rules and follows the connection's first packet through them; nothing is sent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the connection is meant to go; without a port, 80
    #[arg(value_name = "DST[:PORT]", value_parser = destination)]
    destination: SocketAddr,
    /// The user that connects [default: who asks]
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// The process that connects: its user, group and cgroup count
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
    /// The local address that it connects from, with or without a port
    #[arg(long, value_name = "ADDR", value_parser = source)]
    from: Option<(IpAddr, Option<u16>)>,
    /// Look into this network namespace: a path, or the number of a process in it
    #[arg(long, value_name = "PATH|PID")]
    netns: Option<String>,
    /// Tell of the rules that did not match, too
    #[arg(long)]
    all: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sudo proxyctl explain 203.0.113.7:80
  sudo proxyctl explain '[2001:db8::1]:443' --uid 1000
  sudo proxyctl explain 203.0.113.7 --pid 4711 --all

Exit codes:
  0  it is certain where the connection ends
  1  it depends on something that no rule tells; both ways are told
  2  the command line is wrong, or not all of the rules could be read";

pub(crate) fn run(args: Args) -> ExitCode {
    // Before the namespace is left, whose /proc shows the process.
    let connection = match connection(&args) {
        Ok(connection) => connection,
        Err(reason) => {
            eprintln!("proxyctl explain: {reason}");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    if let Some(place) = &args.netns
        && let Err(error) = netns::enter(place)
    {
        eprintln!(
            "proxyctl explain: cannot enter the network namespace {place}: {error}; run it as root, and give a path such as /run/netns/NAME or a pid"
        );
        return ExitCode::from(USAGE_ERROR);
    }
    let ruleset = ruleset::read();
    let verdict = verdict::judge(&ruleset, &connection, &LiveSurroundings::default());
    if args.json {
        println!("{}", as_json(&ruleset, &connection, &verdict));
    } else {
        tell(&ruleset, &connection, &verdict, args.all);
    }
    match verdict.certain() {
        _ if !ruleset.unseen.is_empty() => ExitCode::from(2),
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

fn connection(args: &Args) -> Result<Connection, String> {
    let mut connection = Connection {
        destination: args.destination,
        source: args.from.map(|(ip, _)| ip),
        source_port: args.from.and_then(|(_, port)| port),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: Vec::new(),
        mark: 0,
        cgroup: None,
    };
    if let Some(from) = connection.source
        && from.is_ipv4() != args.destination.is_ipv4()
    {
        return Err("--from is of another address family than the destination".into());
    }
    if let Some(pid) = args.pid {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|error| format!("process {pid}: {error}"))?;
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

fn tell(ruleset: &Ruleset, connection: &Connection, verdict: &Verdict, all: bool) {
    let to = connection.destination;
    match verdict.certain() {
        Some(end) => println!("A connection to {to} {}.", sentence(end, to)),
        None => println!(
            "A connection to {to} may end in {} ways; which, no rule tells:",
            verdict.ways.len()
        ),
    }
    let shown = if verdict.certain().is_some() {
        &verdict.ways[..1]
    } else {
        &verdict.ways[..]
    };
    for (n, way) in shown.iter().enumerate() {
        if verdict.certain().is_none() {
            println!("{}. It {}, if:", n + 1, sentence(&way.end, to));
            for assumption in &way.assumptions {
                println!("     {assumption}");
            }
        }
        if let Some(at) = way.decided_by {
            println!("  by the rule: {}", ruleset.text(at));
            let (table, chain, rule) = ruleset.rule(at);
            let handle = rule
                .handle
                .map(|h| format!(", handle {h}"))
                .unwrap_or_default();
            println!(
                "  which is in: {}, chain {}, line {}{handle}",
                table.title(),
                chain.name,
                rule.line
            );
        }
        steps(ruleset, way, all);
    }
    for what in &ruleset.unseen {
        println!("not seen: {what}");
    }
}

fn steps(ruleset: &Ruleset, way: &Way, all: bool) {
    let mut left_out = 0;
    for event in &way.events {
        let (table, chain, rule) = ruleset.rule(event.at);
        let came = match &event.matched {
            Matched::Yes(what) => format!("matches: {what}"),
            Matched::Perhaps(why) => format!("may match: {why}"),
            Matched::No(_) if !all => {
                left_out += 1;
                continue;
            }
            Matched::No(why) => format!("does not match: {why}"),
        };
        println!(
            "  {}: {}, {} line {}: {}",
            event.hook,
            table.title(),
            chain.name,
            rule.line,
            ruleset.text(event.at)
        );
        println!("      {came}");
    }
    if left_out > 0 {
        println!("  {left_out} rules did not match; --all tells why");
    }
}

fn sentence(end: &End, meant: SocketAddr) -> String {
    match end {
        End::Here { to } => match listener(*to) {
            Some(who) if *to == meant => format!("ends on this host, at {who}"),
            Some(who) => format!("never leaves this host: it ends at the local {who}, on {to}"),
            None if *to == meant => "ends on this host, where nobody listens: it is refused".into(),
            None => format!(
                "never leaves this host: it is redirected to {to}, where nobody listens, and refused"
            ),
        },
        End::Leaves { to, device } if *to == meant => {
            format!("goes to where it is meant to, out through {device}")
        }
        End::Leaves { to, device } => format!("is turned to {to}, out through {device}"),
        End::Dropped => "is dropped: the client waits until it gives up".into(),
        End::Rejected => {
            "is rejected: the client is told at once, unless another rule drops that answer".into()
        }
        End::NoRoute { reason } => format!("goes nowhere, for want of a route: {reason}"),
        End::Unknown { reason } => format!("ends in a way that cannot be told: {reason}"),
    }
}

fn listener(to: SocketAddr) -> Option<String> {
    let found = listeners::on_port(to.port()).ok()?;
    let at = |ip: IpAddr| ip == to.ip() || ip.is_unspecified();
    let listener = found.into_iter().find(|l| at(l.address.ip()))?;
    Some(listener.name_owners().who())
}

fn as_json(ruleset: &Ruleset, connection: &Connection, verdict: &Verdict) -> Value {
    let ways: Vec<_> = verdict
        .ways
        .iter()
        .map(|way| {
            json!({
                "end": way.end,
                "says": sentence(&way.end, connection.destination),
                "assumptions": way.assumptions,
                "rule": way.decided_by.map(|at| ruleset.text(at)),
                "removal": way.redirected_by.map(|at| ruleset.removal(at)),
            })
        })
        .collect();
    json!({
        "destination": connection.destination.to_string(),
        "certain": verdict.certain().is_some(),
        "ways": ways,
        "unseen": ruleset.unseen,
    })
}

fn destination(text: &str) -> Result<SocketAddr, String> {
    const DEFAULT_PORT: u16 = 80;
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse()
        .or_else(|_| {
            bare.parse::<IpAddr>()
                .map(|ip| SocketAddr::new(ip, DEFAULT_PORT))
        })
        .map_err(|_| {
            "write an address, such as 203.0.113.7, 203.0.113.7:80 or [2001:db8::1]:80".into()
        })
}

fn source(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip, None));
    }
    let whole: SocketAddr = text
        .parse()
        .map_err(|_| String::from("write an address, with or without a port"))?;
    Ok((whole.ip(), Some(whole.port())))
}
