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

pub(crate) fn run(args: Args, mut cli: clap::Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli, "proxyctl", &mut script);
    match io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxyctl completions: cannot write the script: {error}");
            ExitCode::FAILURE
        }
    }
}
