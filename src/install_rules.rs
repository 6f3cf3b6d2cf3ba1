//! `proxyctl install-rules`: gate, capture, tether.

mod keep;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use outrigger_config::{Scope, Settings, Span};
use outrigger_iptables::{Backend, Installed, Refusal};
use serde_json::{Value, json};

use crate::settings;

/// Redirect this network namespace's outbound TCP connections to the running proxy
///
/// First the proxy must prove itself: the control socket answers, every listening socket on the
/// port is its own, probe connections come back from every worker over IPv4 and IPv6 with the right
/// original destination, and the proxy's own connections do not come back to it. Then the rules are
/// loaded in one transaction and handed to the proxy: the kernel removes them when it ends, however
/// it ends. On any failure the rules stay exactly as they were.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Configuration file, the same as the proxy's [default: all defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the proxy listens, instead of what the file says (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = settings::listen_address)]
    listen: Vec<SocketAddr>,
    /// How rules are loaded: `nft` (over netlink; no program is needed), `iptables` (this host's),
    /// `iptables-legacy`, `iptables-nft`, or `auto` (nft if it works here, else iptables). Rules in
    /// iptables go on until the lease has run out (2 s) after the proxy was killed
    #[arg(long, value_name = "BACKEND", default_value_t = Backend::Nft)]
    backend: Backend,
    /// Whose connections are captured: `netns` (everybody's in this network namespace), `cgroup:PATH`
    /// (of what runs in it or below; `cgroup:self`), `uid:UID[,UID…]`, `gid:GID[,GID…]` [default: the
    /// file's `capture.scope`, else netns]
    #[arg(long, value_name = "SCOPE")]
    scope: Option<Scope>,
    /// Wait this long for a proxy that is not there yet, or on its way out
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    wait: Span,
    /// Do not end: capture again, once a second, for whatever proxy takes the place of one that has gone.
    /// SIGTERM ends this, and leaves the capture to the proxy
    #[arg(long, conflicts_with_all = ["dry_run", "wait"])]
    keep: bool,
    /// Print what would be loaded, in the syntax of nft or iptables-restore, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  proxyctl serve &                               start the proxy (as user 1337)
  sudo proxyctl install-rules                    capture
  sudo proxyctl install-rules --config out.yaml  the same with a configuration, or change it
  proxyctl install-rules --dry-run | less        look first
  sudo proxyctl install-rules --scope uid:1000   only what user 1000 opens
  sudo proxyctl install-rules --scope cgroup:/system.slice/app.service
  sudo proxyctl install-rules --backend auto     where nft may not work
  sudo proxyctl install-rules --wait 10s         beside a proxy that is starting
  sudo proxyctl remove-rules                     end the capture

Exit codes:
  0  captured, or captured already in exactly this way
  1  a check failed; nothing was changed
  2  the command line or the configuration is wrong";

pub(crate) fn run(args: Args) -> ExitCode {
    let mut settings = match settings::load(args.config.as_deref(), args.json) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    if !args.listen.is_empty() || args.scope.is_some() {
        if !args.listen.is_empty() {
            settings.listen = args.listen;
        }
        settings.capture.scope = args.scope.unwrap_or(settings.capture.scope);
        settings = match settings::check(settings, "install-rules", args.json) {
            Ok(settings) => settings,
            Err(code) => return code,
        };
    }
    if args.dry_run {
        return finish(
            outrigger_iptables::dry_run(&settings, args.backend),
            args.json,
            |rules| println!("{}", rules.trim_end()),
            |rules| json!({ "result": "dry run", "rules": rules }),
        );
    }
    if args.keep {
        return keep::run(&settings, args.backend, args.json);
    }
    tell(install(&settings, args.backend, args.wait.0), args.json)
}

/// Installs, once a proxy has come within `patience`.
fn install(
    settings: &Settings,
    backend: Backend,
    patience: Duration,
) -> Result<Installed, Refusal> {
    const PAUSE: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + patience;
    loop {
        match outrigger_iptables::install(settings, backend) {
            Err(Refusal::NoProxy { .. } | Refusal::Draining) if Instant::now() < deadline => {
                thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn tell(outcome: Result<Installed, Refusal>, as_json: bool) -> ExitCode {
    finish(outcome, as_json, describe, |installed| {
        let mut value = json!(installed);
        value["result"] = json!(result_word(installed));
        value
    })
}

/// Prints what a command came to; shared with `remove-rules`.
pub(crate) fn finish<T, E: std::borrow::Borrow<Refusal>>(
    outcome: Result<T, E>,
    as_json: bool,
    describe: impl Fn(&T),
    to_json: impl Fn(&T) -> Value,
) -> ExitCode {
    match outcome {
        Ok(done) => {
            if as_json {
                println!("{}", to_json(&done));
            } else {
                describe(&done);
            }
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            let refusal = refusal.borrow();
            if as_json {
                println!(
                    "{}",
                    json!({
                        "result": "refused",
                        "check": refusal.check(),
                        "message": refusal.to_string(),
                        "advice": refusal.advice(),
                    })
                );
            } else {
                eprintln!("proxyctl: {refusal}");
                eprintln!("  failed check: {}", refusal.check());
                eprintln!("  what to do: {}", refusal.advice());
            }
            ExitCode::FAILURE
        }
    }
}

fn describe(installed: &Installed) {
    let families: Vec<_> = installed.families.iter().map(|f| f.name()).collect();
    println!(
        "{}: new {} connections{} go to the proxy (pid {}, user {}); {}",
        result_word(installed),
        families.join(" and "),
        match &installed.scope {
            Scope::Netns => String::new(),
            scope => format!(" of {scope}"),
        },
        installed.proxy_pid,
        installed.proxy_uid,
        place(installed),
    );
    for note in &installed.notes {
        println!("note: {note}");
    }
}

fn place(installed: &Installed) -> String {
    match installed.backend {
        "nft" => format!("table {}", installed.table),
        _ => format!("chain {}", installed.table),
    }
}

fn result_word(installed: &Installed) -> &'static str {
    if installed.changed {
        "captured"
    } else {
        "already captured"
    }
}
