//! `proxyctl demo`: the whole story in private namespaces, every claim checked.
//!
//! The processes are this one (the director, within the application's network namespace), the
//! application, the upstream (in a network namespace of its own), and the very commands that a
//! user would type. All are this program again: see [`child`].

mod application;
mod child;
mod narrator;
mod network;
mod ruleset;
mod sandbox;
mod scene;
mod server;
mod story;
mod trouble;

use std::process::ExitCode;

use narrator::Narrator;
use trouble::Trouble;

/// Watch capture, forwarding, kill -9 and recovery in private namespaces (rootless)
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "proxyctl demo [OPTIONS]",
    after_help = "\
Nothing outside the demo's own namespaces is touched, and everything ends with it.

Examples:
  proxyctl demo                  watch it, with a pause to read after each step
  proxyctl demo --no-pause
  proxyctl demo --json | jq 'select(.holds == false)'

Exit codes: 0 every claim was checked and is true; 1 a claim is not true, and is named;
2 wrong usage; 3 this host does not allow the namespaces, or lacks something else."
)]
pub(crate) struct Args {
    /// Print each step and claim as one JSON object a line
    #[arg(long)]
    json: bool,
    /// Do not pause after each step (nor does a demo whose output is not a terminal)
    #[arg(long)]
    no_pause: bool,
    /// Play a part in a demo that is under way
    #[arg(long, hide = true, requires = "parent")]
    role: Option<Role>,
    /// The process that runs the demo
    #[arg(long, hide = true)]
    parent: Option<i32>,
    /// The command that `--role command` becomes
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true, requires = "role")]
    command: Vec<String>,
}

/// Who this process is, when a demo has started it.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Role {
    Application,
    Upstream,
    /// Some other server on the proxy's port.
    Stranger,
    /// A command of proxyctl that is to end with the demo.
    Command,
}

pub(crate) fn run(args: Args) -> ExitCode {
    match (args.role, args.parent) {
        (Some(role), Some(parent)) => play(role, parent, &args.command),
        _ => direct(&args),
    }
}

fn direct(args: &Args) -> ExitCode {
    let users = match sandbox::enter(scene::PROXY_UID) {
        Ok(users) => users,
        Err(forbidden) => {
            eprintln!("proxyctl demo: {forbidden}");
            return ExitCode::from(3);
        }
    };
    let mut narrator = Narrator::new(args.json, args.no_pause);
    match story::tell(&mut narrator, users) {
        Ok(()) => {
            narrator.end(true);
            ExitCode::SUCCESS
        }
        Err(Trouble::Untrue(claim)) => {
            narrator.end(false);
            eprintln!("proxyctl demo: not true: {claim}");
            ExitCode::FAILURE
        }
        Err(Trouble::Io { doing, error }) => {
            eprintln!("proxyctl demo: {doing} failed: {error}");
            ExitCode::from(3)
        }
    }
}

fn play(role: Role, parent: i32, command: &[String]) -> ExitCode {
    let end = child::tie_to(parent).and_then(|()| match role {
        Role::Application => application::run(),
        Role::Upstream => server::upstream(),
        Role::Stranger => server::stranger(scene::PROXY_PORT),
        Role::Command => child::become_command(command).map(|never| match never {}),
    });
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxyctl demo: {role:?}: {error}");
            ExitCode::FAILURE
        }
    }
}
