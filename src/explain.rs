//! `proxyctl explain`: what becomes of a connection, rule by rule.

mod command;
mod told;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use outrigger_iptables::{LiveSurroundings, peers, ruleset, verdict};
use serde_json::json;

use crate::{netns, settings::USAGE_ERROR};

/// Tell where a connection would end, and by which rules
///
/// Reads the rules and follows the connection's first packet through them; nothing is sent. With --pid
/// and no destination it lists the process' live connections with their true other ends.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the connection is meant to go; without a port, 80
    #[arg(value_name = "DST[:PORT]", value_parser = command::destination, required_unless_present = "pid")]
    destination: Option<SocketAddr>,
    /// The user that connects [default: who asks]
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// The process that connects: its user, group, cgroup and network namespace count
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
    /// The local address that it connects from, with or without a port
    #[arg(long, value_name = "ADDR", value_parser = command::source)]
    from: Option<(IpAddr, Option<u16>)>,
    /// The host that the request names: tells the route of --config, where the proxy takes the connection
    #[arg(
        long,
        value_name = "HOST",
        requires = "destination",
        requires = "config"
    )]
    host: Option<String>,
    /// The proxy's configuration, for the route that it would take
    #[arg(long, value_name = "FILE", requires = "destination")]
    config: Option<PathBuf>,
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
  sudo proxyctl explain --pid 4711
  sudo proxyctl explain 203.0.113.7 --host api.internal --config outrigger.yaml

Exit codes:
  0  it is certain where the connection ends; or the live connections are listed
  1  it depends on something that no rule tells; both ways are told
  2  the command line is wrong, or not all of the rules could be read";

pub(crate) fn run(args: Args) -> ExitCode {
    let fail = |reason: String| {
        eprintln!("proxyctl explain: {reason}");
        ExitCode::from(USAGE_ERROR)
    };
    // Before the namespace is left, whose /proc and files are meant.
    let route = match &args.config {
        None => None,
        Some(file) => match crate::settings::load(Some(file), args.json) {
            Ok(settings) => Some(settings),
            Err(code) => return code,
        },
    };
    let connection = match args.destination {
        None => None,
        Some(to) => match command::connection(&args, to) {
            Ok(connection) => Some(connection),
            Err(reason) => return fail(reason),
        },
    };
    let place = args.netns.clone().or_else(|| {
        let pid = args.pid?.to_string();
        (!netns::is_here(&pid)).then_some(pid)
    });
    if let Some(place) = &place
        && let Err(error) = netns::enter(place)
    {
        return fail(format!(
            "cannot enter the network namespace {place}: {error}; run it as root, and give a path such as /run/netns/NAME or a pid"
        ));
    }
    let Some(connection) = connection else {
        return live(args.pid.unwrap_or_default(), args.json);
    };
    let ruleset = ruleset::read();
    let verdict = verdict::judge(&ruleset, &connection, &LiveSurroundings::default());
    let route = route.and_then(|settings| {
        told::route(
            &verdict,
            settings,
            connection.destination,
            args.host.as_deref(),
        )
    });
    if args.json {
        println!(
            "{}",
            told::as_json(&ruleset, &connection, &verdict, route.as_deref())
        );
    } else {
        told::tell(&ruleset, &connection, &verdict, route.as_deref(), args.all);
    }
    match verdict.certain() {
        _ if !ruleset.unseen.is_empty() => ExitCode::from(2),
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// The live connections of a process, with what no list of sockets shows.
fn live(pid: i32, as_json: bool) -> ExitCode {
    let (peers, unseen) = match peers::of_process(pid) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("proxyctl explain: the connections of process {pid}: {error}");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    if as_json {
        println!("{}", json!({ "connections": peers, "unseen": unseen }));
    } else {
        if peers.is_empty() {
            println!("process {pid} has no TCP connections");
        }
        for peer in &peers {
            print!("{} -> {}", peer.local, peer.shown);
            match (peer.truly, peer.meant_for) {
                (Some(truly), _) => {
                    let who = told::listener(truly).map(|who| format!(", at the local {who}"));
                    println!(", truly {truly}{}", who.unwrap_or_default());
                }
                (None, Some(meant)) => println!(", redirected here, meant for {meant}"),
                (None, None) => println!(""),
            }
        }
        if let Some(what) = &unseen {
            println!("not seen: {what}");
        }
    }
    if unseen.is_some() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}
