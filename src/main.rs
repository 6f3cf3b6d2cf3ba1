//! `proxyctl`: a transparent outbound sidecar proxy, its capture rules and its diagnosis.

mod install_rules;
mod remove_rules;
mod serve;
mod settings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A transparent outbound sidecar proxy that can never take its application's traffic down with it.
#[derive(Debug, Parser)]
#[command(name = "proxyctl", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    InstallRules(install_rules::Args),
    RemoveRules(remove_rules::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::InstallRules(args) => install_rules::run(args),
        Command::RemoveRules(args) => remove_rules::run(args),
    }
}
