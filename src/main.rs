//! `proxyctl`: a transparent outbound sidecar proxy, its capture rules and its diagnosis.

// First, since a macro is known from its definition on.
#[macro_use]
mod output;

mod completions;
mod demo;
mod doctor;
mod explain;
mod install_rules;
mod logging;
mod netns;
mod privileges;
mod problems;
mod remove_rules;
mod run;
mod serve;
mod settings;
mod status;
mod sys;
mod terminal;
mod top;
mod traffic;
mod upgrade;
mod validate;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

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
    Run(run::Args),
    Upgrade(upgrade::Args),
    InstallRules(install_rules::Args),
    RemoveRules(remove_rules::Args),
    Status(status::Args),
    Top(top::Args),
    Doctor(doctor::Args),
    Explain(explain::Args),
    Validate(validate::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    SweepCgroup(run::SweepArgs),
}

fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Run(args) => run::run(args),
        Command::Upgrade(args) => upgrade::run(args),
        Command::InstallRules(args) => install_rules::run(args),
        Command::RemoveRules(args) => remove_rules::run(args),
        Command::Status(args) => status::run(args),
        Command::Top(args) => top::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Explain(args) => explain::run(args),
        Command::SweepCgroup(args) => run::sweep(args),
        Command::Validate(args) => validate::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Completions(args) => completions::run(args, &Cli::command()),
    };
    output::judge(code)
}
