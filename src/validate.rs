//! `proxyctl validate`: every problem of a configuration.

use std::{path::PathBuf, process::ExitCode};

use outrigger_config::{Checked, Problem};
use serde::Serialize;

use crate::{output::count, problems};

const AFTER_HELP: &str = "\
Examples:
  proxyctl validate /etc/outrigger.yaml
  proxyctl validate --json *.yaml
  proxyctl validate --schema > outrigger.schema.json

Exit codes:
  0  every file can be used; there may be warnings
  1  a file has an error or cannot be read
  2  the command line is wrong";

/// Tell everything that is wrong with configuration files
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Configuration files
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    files: Vec<PathBuf>,
    /// Print an object for each problem, in one JSON array
    #[arg(long)]
    json: bool,
    /// Print the JSON Schema of configuration files instead, for editors
    #[arg(long, conflicts_with_all = ["files", "json"])]
    schema: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    file: String,
    #[serde(flatten)]
    problem: &'a Problem,
}

pub(crate) fn run(args: Args) -> ExitCode {
    if args.schema {
        println!("{}", outrigger_config::schema());
        return ExitCode::SUCCESS;
    }
    let found: Vec<_> = args
        .files
        .iter()
        .map(|path| {
            let problems = match outrigger_config::text(path) {
                Ok(text) => {
                    let Checked { problems, .. } = outrigger_config::check(&text);
                    problems
                }
                Err(problem) => vec![problem],
            };
            (path, problems)
        })
        .collect();
    let all = || {
        found
            .iter()
            .flat_map(|(path, problems)| problems.iter().map(move |p| (path, p)))
    };
    if args.json {
        let rows: Vec<_> = all()
            .map(|(path, problem)| Row {
                file: path.display().to_string(),
                problem,
            })
            .collect();
        println!(
            "{}",
            serde_json::to_string_pretty(&rows).expect("plain data is JSON")
        );
    } else {
        for (path, problem) in all() {
            println!("{}", problems::in_full(path, problem));
        }
        for (path, problems) in &found {
            let errors = problems.iter().filter(|p| p.is_error()).count();
            let verdict = if errors == 0 { "valid" } else { "not valid" };
            println!(
                "{}: {verdict}, {}, {}",
                path.display(),
                count(errors, "error"),
                count(problems.len() - errors, "warning")
            );
        }
    }
    match all().any(|(_, problem)| problem.is_error()) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}
