//! `proxyctl upgrade`: another program or configuration for a running `proxyctl run`.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use outrigger_config::Settings;
use serde_json::json;

use crate::{
    run::upgrade::{Outcome, Request, door_name},
    settings,
};

/// Longer than a new proxy may take to start and to pass every check.
const PATIENCE: Duration = Duration::from_secs(60);

/// Put another program or configuration in the place of the proxy of `proxyctl run`
///
/// The new proxy starts beside the old one, takes over its listening sockets with what is queued there, and
/// must pass the same checks as at a start. Then capture changes hands without a gap, and the old proxy
/// drains. One that fails is refused, and the old proxy goes on. SIGUSR2 to `proxyctl run` does the same
/// with the program and the configuration file that it was started with.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Configuration file [default: the one that `run` was given, read again]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The program to serve with [default: the one that `run` was started from, as it is now]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// The proxy's listen port
    #[arg(long, value_name = "PORT", default_value_t = Settings::default().port(), value_parser = settings::port)]
    port: u16,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Only the user that `proxyctl run` runs as may ask.

Examples:
  sudo proxyctl upgrade                               a new version was put in the old one's place
  sudo proxyctl upgrade --config new.yaml
  sudo proxyctl upgrade --binary /opt/outrigger-2/proxyctl

Exit codes:
  0  the new proxy serves, the old one drains
  1  refused; the old proxy goes on
  2  the command line or the configuration is wrong";

pub(crate) fn run(args: Args) -> ExitCode {
    let config = match &args.config {
        None => None,
        Some(path) => match settings::load_with_text(Some(path), args.json) {
            Ok((_, text)) => Some(text),
            Err(code) => return code,
        },
    };
    let request = Request {
        config,
        binary: args.binary,
    };
    let outcome = ask(args.port, &request).unwrap_or_else(|error| {
        Outcome::Refused(format!(
            "no `proxyctl run` answers for port {}: {error}; `proxyctl status` tells what runs there",
            args.port
        ))
    });
    if args.json {
        println!("{}", json!(outcome));
    }
    match outcome {
        Outcome::Upgraded { proxy_pid } => {
            if !args.json {
                println!(
                    "upgraded: new connections go to the proxy with pid {proxy_pid}; the old one drains"
                );
            }
            ExitCode::SUCCESS
        }
        Outcome::Refused(why) => {
            if !args.json {
                eprintln!("proxyctl upgrade: refused, the proxy goes on as before: {why}");
            }
            ExitCode::FAILURE
        }
    }
}

fn ask(port: u16, request: &Request) -> io::Result<Outcome> {
    let name = SocketAddr::from_abstract_name(door_name(port))?;
    let mut supervisor = UnixStream::connect_addr(&name)?;
    supervisor.set_read_timeout(Some(PATIENCE))?;
    supervisor.write_all(&serde_json::to_vec(request)?)?;
    supervisor.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    supervisor.read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
