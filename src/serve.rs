//! `proxyctl serve`: the data plane.

use std::{
    fmt,
    io::{self, stdin},
    net::SocketAddr,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
};

use outrigger_config::{AdminAddress, Settings};
use outrigger_proxy::{
    Source,
    admin::Levels,
    fd_store::Passed,
    supervised::{self, Inherited},
};

use crate::{
    logging::{self, LogFormat},
    privileges,
    settings::{self, USAGE_ERROR},
};

const AFTER_HELP: &str = "\
Started as root it becomes the user capture.proxy_uid before it binds anything. Sockets passed by a
service manager (LISTEN_FDS) take the place of --listen.

Examples:
  proxyctl serve
  proxyctl serve --config /etc/outrigger.yaml
  proxyctl serve --listen 127.0.0.1:15001 --admin off --log-level debug

Signals: SIGTERM or SIGINT drains and ends, a second one cuts; SIGUSR1 reopens the access log;
SIGHUP, or a change of the file, reloads the configuration.

Exit codes:
  0  stopped by a signal, after the drain
  1  could not start, or could not go on
  2  the command line or the configuration is wrong";

/// Serve captured connections (unprivileged)
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Configuration file; without one everything passes through to its original destination
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen here instead of what the file says (loopback only; once per address family)
    #[arg(long, value_name = "ADDRESS", value_parser = settings::listen_address)]
    listen: Vec<SocketAddr>,
    /// Admin address instead of what the file says, `unix:PATH`, or `off`
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<Admin>,
    /// Number of event loops [default: CPUs allowed to the process]
    #[arg(long, value_name = "N", value_parser = workers)]
    workers: Option<NonZeroUsize>,
    /// What to log: error, warn, info, debug, trace, or by module as in RUST_LOG [default: RUST_LOG or info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to log, on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Take configuration and sockets from a supervisor (`proxyctl run`) at the other end of stdin
    #[arg(long, hide = true, conflicts_with_all = ["config", "listen", "admin"])]
    supervised: bool,
}

#[derive(Clone, Debug)]
enum Admin {
    Off,
    At(AdminAddress),
}

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| {
            "write an address and port, such as 127.0.0.1:15000, unix:/PATH, or `off`".into()
        })
    }
}

fn workers(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "write a whole number from 1 on".into())
}

pub(crate) fn run(args: Args) -> ExitCode {
    let (settings, text, inherited) = match start_values(&args) {
        Ok(values) => values,
        Err(code) => return code,
    };
    let filter = match logging::filter(args.log_level.as_deref()) {
        Ok(filter) => filter,
        Err(problem) => {
            eprintln!("proxyctl serve: {problem}");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    if let Err(error) = privileges::drop_all_but_needed(&settings.capture, inherited.sockets()) {
        return fail(error);
    }
    match logging::start(filter, args.log_format) {
        Ok(log) => {
            let served = serve(settings, inherited, source(args, text), log.levels());
            log.close();
            served.map_or_else(fail, |()| ExitCode::SUCCESS)
        }
        Err(error) => fail(format_args!("cannot start to log: {error}")),
    }
}

fn serve(
    settings: Settings,
    inherited: Inherited,
    source: Option<Source>,
    levels: Box<dyn Levels>,
) -> Result<(), String> {
    if let Err(error) = privileges::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    warn_of_other_user(&settings);
    warn_of_open_admin(&settings);
    let bound = outrigger_proxy::app::bind(settings, inherited).map_err(|e| e.to_string())?;
    let bound = bound.reloading(source).logging(levels);
    bound.serve().map_err(|e| e.to_string())
}

/// The settings and the text that they were read from, and the sockets that somebody else has bound.
///
/// # Errors
/// Once everything that is wrong has been printed.
fn start_values(args: &Args) -> Result<(Settings, String, Inherited), ExitCode> {
    if args.supervised {
        return supervised_values(args).map_err(fail);
    }
    // First of all, while no thread can be reading the environment.
    let mut passed = Passed::take().map_err(|error| {
        fail(format_args!(
            "the sockets passed to this process (LISTEN_FDS) are not usable: {error}"
        ))
    })?;
    let (settings, text) = settings(args)?;
    let are_stored = passed.activated.is_empty();
    let wanted = if are_stored {
        &settings.listen[..]
    } else {
        &[]
    };
    let stored = passed.stored_at(wanted, false).into_iter();
    let mut listeners = passed.activated;
    listeners.extend(stored.map(OwnedFd::from));
    let inherited = Inherited {
        listeners,
        anchors: passed.anchors,
        are_stored,
        ..Inherited::default()
    };
    Ok((settings, text, inherited))
}

/// The supervisor has read and checked the file, and decided where to listen.
fn supervised_values(args: &Args) -> Result<(Settings, String, Inherited), String> {
    let taken: io::Result<_> = stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(supervised::take);
    let (config, inherited) =
        taken.map_err(|error| format!("standard input is no supervisor's link: {error}"))?;
    let mut settings = outrigger_config::parse(&config).map_err(|problems| {
        let messages: Vec<_> = problems.into_iter().map(|p| p.message).collect();
        format!("the supervisor's configuration: {}", messages.join("; "))
    })?;
    settings.workers = args.workers.or(settings.workers);
    if inherited.admin.is_none() {
        settings.admin = None;
    }
    Ok((settings, config, inherited))
}

/// What the file says, with the command line over it.
///
/// # Errors
/// Once everything that is wrong with it has been printed.
fn settings(args: &Args) -> Result<(Settings, String), ExitCode> {
    let (mut settings, text) = settings::load_with_text(args.config.as_deref(), false)?;
    put_over(args, &mut settings);
    Ok((settings::check(settings, "serve", false)?, text))
}

/// What a reload reads, and how.
fn source(args: Args, text: String) -> Option<Source> {
    let path = args.config.clone()?;
    let over = Box::new(move |settings: &mut Settings| put_over(&args, settings));
    let text = text.into();
    Some(Source { path, text, over })
}

fn put_over(args: &Args, settings: &mut Settings) {
    if !args.listen.is_empty() {
        settings.listen.clone_from(&args.listen);
    }
    match &args.admin {
        Some(Admin::Off) => settings.admin = None,
        Some(Admin::At(listen)) => {
            let admin = settings.admin.get_or_insert_default();
            admin.listen = listen.clone();
            // Whoever writes it on the command line means it.
            admin.allow_remote = true;
        }
        None => {}
    }
    settings.workers = args.workers.or(settings.workers);
}

/// Another user than the settings name serves well enough, but is captured itself.
fn warn_of_other_user(settings: &Settings) {
    let uid = rustix::process::geteuid().as_raw();
    let capture = &settings.capture;
    if uid != capture.proxy_uid && capture.proxy_mark.is_none() {
        // `nobody` is refused as a setting, since it stands for every unmapped user too.
        let or_this_user = match uid {
            65534 => String::new(),
            _ => format!(", or set capture.proxy_uid to {uid} if nothing else runs as that user"),
        };
        tracing::warn!(
            "running as uid {uid}, but capture.proxy_uid is {}: `proxyctl install-rules` will refuse to capture for this process; start it as that user (or as root){or_this_user}",
            capture.proxy_uid
        );
    }
}

/// Allowed, since whoever scrapes a pod's metrics comes from elsewhere; never by oversight.
fn warn_of_open_admin(settings: &Settings) {
    let address = settings
        .admin
        .as_ref()
        .and_then(outrigger_config::Admin::tcp);
    if let Some(address) = address.filter(|a| !a.ip().is_loopback()) {
        tracing::warn!(
            "the admin listener on {address} is reachable from elsewhere: /metrics has no password, and tells every destination of the application; listen on 127.0.0.1, or let only your metrics collector reach it"
        );
    }
}

fn fail(error: impl fmt::Display) -> ExitCode {
    eprintln!("proxyctl serve: {error}");
    ExitCode::FAILURE
}
