//! `proxyctl explain`: what becomes of a connection, rule by rule.

mod command;
mod onward;
mod told;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use outrigger_iptables::{LiveSurroundings, peers, ruleset, verdict};
use serde_json::json;

use self::{onward::Onward, told::Told};
use crate::{doctor, netns, settings::USAGE_ERROR};

/// Tell where a connection would end, and by which rules
///
/// Reads the rules and follows the connection's first packet through them; nothing is sent. Where it ends
/// at Outrigger, that is asked for the route, the cluster and the endpoint. With --pid and no destination it
/// lists the process' live connections with their true other ends.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the connection is meant to go; without a port, 80
    #[arg(value_name = "DST[:PORT]", value_parser = command::destination, required_unless_present = "pid")]
    destination: Option<SocketAddr>,
    /// The user that connects, by number or name [default: who asks]
    #[arg(long, value_name = "UID", value_parser = command::user)]
    uid: Option<u32>,
    /// The process that connects: its user, group, cgroup and network namespace count
    #[arg(long, value_name = "PID", value_parser = command::process)]
    pid: Option<i32>,
    /// The local address that it connects from, with or without a port
    #[arg(long, value_name = "ADDR", value_parser = command::source)]
    from: Option<(IpAddr, Option<u16>)>,
    /// The host that the request names, for routes that ask for it
    #[arg(long, value_name = "HOST", requires = "destination", value_parser = command::host)]
    host: Option<String>,
    /// The path that it asks for, with its query [default, with one of the others: /]
    #[arg(long, value_name = "PATH", requires = "destination", value_parser = command::path)]
    path: Option<String>,
    /// Its method [default, with one of the others: GET]
    #[arg(long, value_name = "METHOD", requires = "destination", value_parser = command::method)]
    method: Option<String>,
    /// A header of it, for routes and for endpoints that are chosen by one; several times for several
    #[arg(long = "header", value_name = "NAME:VALUE", requires = "destination", value_parser = command::header)]
    headers: Vec<(String, String)>,
    /// The name that a TLS client asks for
    #[arg(long, value_name = "NAME", requires = "destination", conflicts_with_all = ["host", "path", "method", "headers"])]
    sni: Option<String>,
    /// Ask this configuration for the route, instead of the proxy that runs
    #[arg(long, value_name = "FILE", requires = "destination")]
    config: Option<PathBuf>,
    /// Look into this network namespace: its name in `ip netns`, a path, or the number of a process in it
    #[arg(long, value_name = "NAME|PATH|PID")]
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
  sudo proxyctl explain 203.0.113.7 --host api.internal --path /v1/users --header x-user:ada
  sudo proxyctl explain 203.0.113.7 --host api.internal --config new.yaml

Exit codes:
  0  it is certain where the connection ends; or the live connections are listed
  1  it depends on something that no rule tells; both ways are told
  2  the command line is wrong, or not all could be seen: rules, or what the proxy does";

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
        return fail(error);
    }
    let Some(connection) = connection else {
        return live(args.pid.unwrap_or_default(), args.json);
    };
    let ruleset = ruleset::read();
    let verdict = verdict::judge(&ruleset, &connection, &LiveSurroundings::default());
    let question = command::question(&args, &connection);
    let onward = match route {
        Some(settings) => Onward::of_file(&verdict, settings, &question),
        None => Onward::of_proxy(&verdict, &question),
    };
    let told = Told {
        ruleset: &ruleset,
        connection: &connection,
        verdict: &verdict,
        onward: &onward,
    };
    if args.json {
        println!("{}", told.as_json());
    } else {
        told.tell(args.all);
        onward.tell(&question);
        doctor::tell_unseen(&ruleset.unseen);
    }
    match verdict.certain() {
        _ if !ruleset.unseen.is_empty() || onward.is_unseen() => ExitCode::from(2),
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// The live connections of a process, with what no list of sockets shows.
fn live(pid: i32, as_json: bool) -> ExitCode {
    let (peers, unseen) = match peers::of_process(pid) {
        Ok(found) => found,
        Err(error) => {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => "there is no such process".into(),
                std::io::ErrorKind::PermissionDenied => format!("{error}; run it as root"),
                _ => error.to_string(),
            };
            eprintln!("proxyctl explain: the connections of process {pid}: {why}");
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
        doctor::tell_unseen(unseen.as_slice());
    }
    if unseen.is_some() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}
