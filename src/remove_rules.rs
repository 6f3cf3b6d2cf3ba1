//! `proxyctl remove-rules`: ends capture.

use std::process::ExitCode;

use outrigger_iptables::Removed;
use serde_json::json;

use crate::{install_rules::finish, settings::Instance};

/// End the capture; live connections keep flowing, new ones go direct
///
/// The rules belong to the proxy, so it is asked to let them go. Running it again, or with nothing
/// captured, is no error.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    instance: Instance,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sudo proxyctl remove-rules
  sudo proxyctl remove-rules --port 15001 --json

Exit codes:
  0  nothing is captured any more
  1  something still is; the message says whose it is and how to end it
  2  the command line or the configuration is wrong";

pub(crate) fn run(args: Args) -> ExitCode {
    let port = match args.instance.port(args.json) {
        Ok(port) => port,
        Err(code) => return code,
    };
    finish(
        outrigger_iptables::remove(port),
        args.json,
        describe,
        |removed| {
            let mut value = json!(removed);
            value["result"] = json!(result_word(removed));
            value
        },
    )
}

fn describe(removed: &Removed) {
    match removed.tables.as_slice() {
        [] => println!("nothing to remove"),
        tables => println!("removed: {}; new connections go direct", tables.join(", ")),
    }
    for note in &removed.notes {
        println!("note: {note}");
    }
}

fn result_word(removed: &Removed) -> &'static str {
    if removed.tables.is_empty() {
        "nothing to remove"
    } else {
        "removed"
    }
}
