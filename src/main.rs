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
#[command(name = "proxyctl", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  proxyctl demo                                    see it, in private namespaces, without root
  sudo proxyctl doctor                             who redirects connections here, and to where
  sudo proxyctl explain 203.0.113.7:80             where one would end, by which rules
  sudo proxyctl run -- curl http://203.0.113.7/    a sidecar for one command
  sudo proxyctl serve & sudo proxyctl install-rules --wait 10s
  sudo proxyctl status                             is capture on, since when, what goes where

`proxyctl COMMAND --help` has examples and exit codes of each.";

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

#[cfg(test)]
mod tests {
    use super::*;

    /// As a shell would, of what examples need of one.
    fn words(line: &str) -> Vec<String> {
        let mut found = vec![String::new()];
        let mut quote = None;
        for character in line.chars() {
            match (character, quote) {
                ('\'' | '"', None) => quote = Some(character),
                (c, Some(q)) if c == q => quote = None,
                (' ', None) => found.push(String::new()),
                ('|' | '>' | '&', None) => break,
                (c, _) => found.last_mut().expect("one at least").push(c),
            }
        }
        found.retain(|word| !word.is_empty());
        found
    }

    #[test]
    fn every_example_can_be_pasted() {
        let cli = Cli::command();
        let commands = cli.get_subcommands().filter(|c| !c.is_hide_set());
        let mut tried = 0;
        for command in std::iter::once(&cli).chain(commands) {
            let help = command.get_after_help().or(command.get_after_long_help());
            let help = help.unwrap_or_else(|| panic!("{} has no examples", command.get_name()));
            for line in help.to_string().lines() {
                let Some(line) = line.strip_prefix("  ") else {
                    continue;
                };
                let line = line.strip_prefix("sudo ").unwrap_or(line);
                // What follows two spaces is said of it.
                let line = line.split("  ").next().unwrap_or_default();
                if !line.starts_with("proxyctl ") {
                    continue;
                }
                tried += 1;
                let parsed = Cli::try_parse_from(words(line));
                parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
        assert!(tried > 40, "only {tried} examples were found");
    }
}
