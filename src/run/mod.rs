//! `proxyctl run`: a sidecar for one command, or for a whole network namespace, that survives its own
//! death.
//!
//! Two threads. The keeper (`keeper.rs`) starts a proxy, captures for it and does so again when it
//! dies. This one has the command: its start, its signals, its end, and whatever else ends below.

mod breaker;
mod command;
mod deaths;
mod keeper;
mod proxy;
mod report;
mod scope;
mod sockets;
pub(crate) mod upgrade;

use std::{
    ffi::{OsStr, OsString},
    net::SocketAddr,
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use outrigger_config::Settings;
use outrigger_iptables::Backend;
use outrigger_proxy::fd_store::Passed;
use rustix::{
    event::{PollFd, PollFlags},
    process::{Pid, Signal, WaitStatus, getpid, set_child_subreaper},
};

use self::{
    deaths::Deaths,
    keeper::{Job, Keeper},
    proxy::{Program, poll_within},
    report::Capture,
    scope::{Place, ScopeArgument},
    sockets::Sockets,
    upgrade::{Request, Upgrades},
};
use crate::{
    logging::{self, LogFormat},
    privileges,
    settings::{self, USAGE_ERROR},
    sys::{Caught, Signals},
};

pub(crate) use report::Report;
pub(crate) use scope::{SweepArgs, sweep};

/// As `env`, `timeout` and `docker run` have it: it was this program that failed, not the command.
const REFUSED: u8 = 125;

const AFTER_HELP: &str = "\
What is captured is what CMD and its children dial; nothing else on this host is. When the proxy dies
or hangs, new connections go direct until the next one has proven itself, and CMD notices nothing.
The default ports are replaced by the next free ones where they are taken.

Examples:
  sudo proxyctl run -- curl http://example.com/
  sudo proxyctl run --config out.yaml -- ./service --flag
  sudo proxyctl run --scope uid:1000 -- ./service      start it as user 1000 and capture that user
  sudo proxyctl run --best-effort -- ./service         go direct where nothing can be captured
  sudo proxyctl run --scope netns                      no command: capture a whole namespace (a pod)

Exit codes:
  CMD's own, or 128 and the number of the signal that ended it
  125  not captured, so CMD was not started; the message says why
  126  CMD cannot be executed
  127  CMD was not found
  2    the command line or the configuration is wrong";

/// Run a command with a sidecar of its own
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Configuration file; without one everything passes through to its original destination
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Whose connections are captured: `cgroup` (those of CMD, in a cgroup made for it), `netns`
    /// (everybody's in this network namespace), `uid:UID` (that user's, whom CMD is started as)
    /// [default: cgroup, or netns without CMD]
    #[arg(long, value_name = "SCOPE")]
    scope: Option<ScopeArgument>,
    /// Listen here instead of what the file says (loopback only; once per address family)
    #[arg(long, value_name = "ADDRESS", value_parser = settings::listen_address)]
    listen: Vec<SocketAddr>,
    /// How rules are loaded: `nft`, `iptables`, `iptables-legacy`, `iptables-nft` or `auto`
    #[arg(long, value_name = "BACKEND", default_value_t = Backend::Nft)]
    backend: Backend,
    /// Start CMD even where nothing can be captured; its connections then go direct
    #[arg(long)]
    best_effort: bool,
    /// What to log: error, warn, info, debug, trace, or by module [default: RUST_LOG or warn]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to log, on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Another program to serve with than this one
    #[arg(
        long,
        value_name = "PROGRAM",
        hide = true,
        default_value = "/proc/self/exe"
    )]
    serve_with: OsString,
    /// The command and its arguments; without one, capture until a signal comes
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Signals that are for the command. Stop signals are not among them: the terminal stops and continues
/// the whole process group.
const FORWARDED: [Signal; 9] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::WINCH,
    Signal::CONT,
];

pub(crate) fn run(mut args: Args) -> ExitCode {
    let level = args.log_level.take().or_else(|| {
        let is_set = std::env::var_os("RUST_LOG").is_some_and(|value| !value.is_empty());
        (!is_set).then(|| "warn".to_owned())
    });
    let (config, settings) = match read_settings(&args) {
        Ok(read) => read,
        Err(code) => return code,
    };
    let filter = match logging::filter(level.as_deref()) {
        Ok(filter) => filter,
        Err(problem) => {
            eprintln!("proxyctl run: {problem}");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    // Both before the first thread, which inherits what is blocked, and may read the environment.
    let passed = match Passed::take_stored() {
        Ok(passed) => passed,
        Err(error) => {
            eprintln!(
                "proxyctl run: the sockets of the service manager's store (LISTEN_FDS) are not usable: {error}"
            );
            return ExitCode::from(REFUSED);
        }
    };
    let caught: Vec<_> = FORWARDED.into_iter().chain([Signal::CHILD]).collect();
    let started = Signals::block(&caught)
        .and_then(|signals| Ok((signals, logging::start(filter, args.log_format)?)));
    let (signals, log) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("proxyctl run: cannot start: {error}");
            return ExitCode::from(REFUSED);
        }
    };
    let code =
        Supervisor::new(signals, passed).supervise(&args, level.as_deref(), config, settings);
    log.close();
    ExitCode::from(code)
}

/// What is being supervised, as far as it is there.
struct Supervisor {
    signals: Signals,
    deaths: Arc<Deaths>,
    keeper: Option<Keeper>,
    sockets: Option<Arc<Sockets>>,
    upgrades: Option<Upgrades>,
    /// Of an earlier supervisor of this service.
    passed: Passed,
    command: Option<Pid>,
    ended: Option<WaitStatus>,
    /// A signal that ends us where there is no command to tell it.
    stopped_by: Option<Signal>,
}

impl Supervisor {
    fn new(signals: Signals, passed: Passed) -> Self {
        Self {
            signals,
            deaths: Arc::default(),
            keeper: None,
            sockets: None,
            upgrades: None,
            passed,
            command: None,
            ended: None,
            stopped_by: None,
        }
    }

    /// From start to end; returns the exit code.
    fn supervise(
        mut self,
        args: &Args,
        level: Option<&str>,
        config: String,
        settings: Settings,
    ) -> u8 {
        // Orphans of the command come to us, so that none is left behind.
        if getpid() != Pid::INIT
            && let Err(error) = set_child_subreaper(Some(getpid()))
        {
            tracing::warn!(%error, "what the command leaves behind will not be ended");
        }
        let place = match self.start_sidecar(args, level, config, settings) {
            Ok(place) => place,
            Err(why) => return self.refuse(args, &why),
        };
        let captured = self.await_capture();
        let code = match (captured, self.stopped_by) {
            (_, Some(signal)) => 128 + u8::try_from(signal.as_raw()).unwrap_or(0),
            (Err(why), _) if !args.best_effort => {
                eprintln!("proxyctl run: {why}");
                REFUSED
            }
            (captured, _) => {
                if let Err(why) = captured {
                    tracing::error!("going on without capture (--best-effort): {why}");
                }
                self.run_command(args, &place)
            }
        };
        self.end(place);
        code
    }

    fn start_sidecar(
        &mut self,
        args: &Args,
        level: Option<&str>,
        config: String,
        mut settings: Settings,
    ) -> Result<Place, String> {
        if !privileges::may_load_rules() {
            return Err(
                "this user may not load rules (CAP_NET_ADMIN is missing): run it as root".into(),
            );
        }
        let asked = settings.clone();
        let sockets = Arc::new(Sockets::bind(&mut settings, &mut self.passed)?);
        let by_default = if args.command.is_empty() {
            ScopeArgument::Netns
        } else {
            ScopeArgument::Cgroup
        };
        let (place, scope) = Place::prepare(args.scope.unwrap_or(by_default))?;
        settings.capture.scope = scope;
        let mut arguments = vec![
            "--log-format".to_owned(),
            match args.log_format {
                LogFormat::Text => "text".into(),
                LogFormat::Json => "json".into(),
            },
        ];
        if let Some(level) = level {
            arguments.extend(["--log-level".into(), level.into()]);
        }
        self.upgrades = Some(Upgrades {
            asked,
            resolved: settings.clone(),
            listen: args.listen.clone(),
            config: args.config.clone(),
            binary: own_program(&args.serve_with),
            arguments: arguments.clone(),
        });
        let keeper = Keeper::start(Job {
            settings,
            backend: args.backend,
            program: Program {
                path: args.serve_with.clone(),
                arguments,
                config,
            },
            sockets: sockets.clone(),
            deaths: self.deaths.clone(),
            former_anchors: std::mem::take(&mut self.passed.anchors),
        });
        match keeper {
            Ok(keeper) => {
                self.keeper = Some(keeper);
                self.sockets = Some(sockets);
                Ok(place)
            }
            Err(error) => {
                place.remove();
                Err(format!("cannot start a thread: {error}"))
            }
        }
    }

    /// Without a sidecar: direct, or not at all.
    fn refuse(&mut self, args: &Args, why: &str) -> u8 {
        if args.command.is_empty() {
            eprintln!("proxyctl run: {why}");
            return REFUSED;
        }
        if !args.best_effort {
            eprintln!("proxyctl run: {why}");
            eprintln!("With --best-effort the command would be started without a sidecar.");
            return REFUSED;
        }
        tracing::error!("going on without a sidecar (--best-effort): {why}");
        let Ok((place, _)) = Place::prepare(ScopeArgument::Netns) else {
            return REFUSED;
        };
        self.run_command(args, &place)
    }

    /// Until the first capture, or until it is clear that there is none to be had now.
    fn await_capture(&mut self) -> Result<(), String> {
        loop {
            if self.stopped_by.is_some() {
                return Err("stopped".into());
            }
            let report = self.keeper.as_ref().map(Keeper::report);
            if report.as_ref().is_some_and(|report| report.has_captured) {
                return Ok(());
            }
            match report.map(|report| report.capture) {
                Some(Capture::Refused { why, check, advice }) => {
                    return Err(format!(
                        "{why}\n  failed check: {check}\n  what to do: {advice}"
                    ));
                }
                Some(Capture::Tripped(why)) => return Err(why),
                Some(Capture::Starting | Capture::Captured | Capture::Direct(_)) => self.turn(),
                None => return Err("the thread that keeps the proxy has ended".into()),
            }
        }
    }

    /// Starts the command, or none, and waits for the end.
    fn run_command(&mut self, args: &Args, place: &Place) -> u8 {
        if !args.command.is_empty() {
            match command::start(&args.command, place) {
                Ok(pid) => self.command = Some(pid),
                Err((code, why)) => {
                    eprintln!("proxyctl run: {why}");
                    return code;
                }
            }
        }
        loop {
            match (self.ended, self.command, self.stopped_by) {
                (Some(status), ..) => return deaths::exit_code(status),
                (None, None, Some(_)) => return 0,
                _ => self.turn(),
            }
        }
    }

    /// Leaves nothing behind: processes, capture, proxy, cgroup.
    fn end(&mut self, place: Place) {
        self.command = None;
        self.stopped_by = None;
        command::end_leftovers(&self.deaths, &place);
        let is_deserted = place.end_all();
        if let Some(keeper) = &mut self.keeper {
            if is_deserted {
                keeper.desert();
            } else {
                keeper.stop();
            }
        }
        while self.keeper.is_some() {
            self.turn();
            if self.stopped_by.take().is_some()
                && let Some(keeper) = &mut self.keeper
            {
                keeper.cut();
            }
        }
        place.remove();
    }

    /// Waits for one thing to happen, and does what it asks for.
    fn turn(&mut self) {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(
            self.keeper
                .as_ref()
                .map(|keeper| PollFd::from_borrowed_fd(keeper.news(), PollFlags::IN)),
        );
        fds.extend(
            self.sockets
                .as_ref()
                .map(|sockets| PollFd::from_borrowed_fd(sockets.door.as_fd(), PollFlags::IN)),
        );
        fds.extend(
            self.sockets
                .as_ref()
                .map(|s| PollFd::from_borrowed_fd(s.upgrades.as_fd(), PollFlags::IN)),
        );
        poll_within(&mut fds, Duration::from_secs(3600));
        let has_news = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        while let Some(caught) = self.signals.next() {
            self.obey(caught);
        }
        self.reap();
        if let (Some(keeper), Some(sockets)) = (&self.keeper, &self.sockets) {
            keeper.report().answer(&sockets.door);
        }
        while let Some(sockets) = &self.sockets
            && let Some((request, asker)) = upgrade::next_request(&sockets.upgrades)
        {
            self.upgrade(request, Some(asker));
        }
        if has_news && self.keeper.as_mut().is_some_and(|k| !k.take_news()) {
            let report = self.keeper.take().map(|keeper| keeper.report());
            if let Some(summary) = report.and_then(|report| report.summary()) {
                tracing::error!("{summary}");
            }
        }
    }

    /// Whenever anything happens, since there may have been no leave when a child's end was told; the
    /// keeper has news at the end of whatever bars it.
    fn reap(&mut self) {
        let Some(leave) = self.deaths.leave() else {
            return;
        };
        for (pid, status) in self.deaths.reap(&leave) {
            if Some(pid) == self.command {
                self.ended = Some(status);
            }
        }
    }

    fn upgrade(&mut self, request: Request, asker: Option<UnixStream>) {
        let (Some(upgrades), Some(keeper)) = (&self.upgrades, &mut self.keeper) else {
            return;
        };
        match upgrades.prepare(request, asker) {
            Ok(upgrade) => keeper.upgrade(upgrade),
            Err((asker, why)) => keeper::refuse(asker, why),
        }
    }

    fn obey(&mut self, caught: Caught) {
        match (caught.signal, self.command) {
            (Signal::CHILD, _) => {}
            (Signal::USR2, _) => self.upgrade(Request::default(), None),
            (_, Some(command)) => command::forward(caught, command),
            (signal @ (Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT), None) => {
                self.stopped_by = Some(signal);
            }
            (_, None) => {}
        }
    }
}

/// By its path, behind which a new version may have been put, and not as the file that is running.
fn own_program(serve_with: &OsStr) -> OsString {
    if serve_with != "/proc/self/exe" {
        return serve_with.into();
    }
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    program.map_or_else(|| serve_with.into(), PathBuf::into_os_string)
}

/// The text of the configuration and what it means, with the command line over it.
///
/// # Errors
/// Once everything that is wrong with it has been printed.
fn read_settings(args: &Args) -> Result<(String, Settings), ExitCode> {
    let (mut settings, text) = settings::load_with_text(args.config.as_deref(), false)?;
    if !args.listen.is_empty() {
        settings.listen.clone_from(&args.listen);
    }
    let settings = settings::check(settings, "run", false)?;
    Ok((text, settings))
}
