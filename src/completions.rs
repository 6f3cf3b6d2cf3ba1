//! `proxyctl completions`: what the shell offers when Tab is pressed.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap_complete::Shell;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  proxyctl completions bash > /etc/bash_completion.d/proxyctl
  proxyctl completions zsh > \"${fpath[1]}/_proxyctl\"
  proxyctl completions fish > ~/.config/fish/completions/proxyctl.fish

Exit codes: 0 printed; 1 standard output could not be written; 2 wrong usage.")]
pub(crate) struct Args {
    /// The shell to complete for
    shell: Shell,
}

pub(crate) fn run(args: Args, cli: &clap::Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible(cli), "proxyctl", &mut script);
    match io::stdout()
        .write_all(&script)
        .and_then(|()| io::stdout().flush())
    {
        Ok(()) => ExitCode::SUCCESS,
        // The reader left by its own choice.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxyctl completions: cannot write the script: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What `--help` shows of a command. The generators of scripts offer hidden options too.
fn visible(command: &clap::Command) -> clap::Command {
    let mut shown = clap::Command::new(command.get_name().to_owned())
        .args(
            command
                .get_arguments()
                .filter(|a| !a.is_hide_set())
                .cloned(),
        )
        .subcommands(
            command
                .get_subcommands()
                .filter(|c| !c.is_hide_set())
                .map(visible),
        );
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    #[test]
    fn hidden_options_are_not_offered() {
        let cli = Command::new("proxyctl").subcommand(
            Command::new("demo")
                .arg(Arg::new("json").long("json"))
                .arg(Arg::new("role").long("role").hide(true)),
        );
        let shown = visible(&cli);
        let demo = shown.find_subcommand("demo").unwrap();
        let names: Vec<_> = demo.get_arguments().map(|a| a.get_id().as_str()).collect();
        assert_eq!(names, ["json"]);
    }
}
