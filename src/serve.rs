//! `proxyctl serve`: the data plane.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, process::ExitCode};

use outrigger_config::Settings;

/// Serve captured connections (unprivileged)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file; without one everything passes through to its original destination
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen here instead of what the file says (repeatable; loopback only)
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<SocketAddr>,
    /// Admin address instead of what the file says
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Number of event loops [default: CPUs allowed to the process]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let mut settings = match &args.config {
        None => Settings::default(),
        Some(path) => match outrigger_config::read(path) {
            Ok(settings) => settings,
            Err(problems) => {
                for problem in problems {
                    eprintln!("{}: {problem}", path.display());
                }
                return ExitCode::from(2);
            }
        },
    };
    if !args.listen.is_empty() {
        settings.listen = args.listen;
    }
    settings.admin = args.admin.or(settings.admin);
    settings.workers = args.workers.or(settings.workers);
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    match outrigger_proxy::app::bind(settings, Vec::new()) {
        Ok(bound) => match bound.serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("proxyctl serve: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("proxyctl serve: {error}");
            ExitCode::FAILURE
        }
    }
}
