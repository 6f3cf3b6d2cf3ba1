//! `proxyctl doctor`: every redirect on this host that leads somewhere wrong.

use std::process::ExitCode;

use outrigger_iptables::{
    doctor::{self, Finding, Level},
    ruleset,
};
use serde_json::json;

use crate::{netns, settings::USAGE_ERROR};

/// Name every redirect of outbound connections that leads somewhere wrong
///
/// Reads nftables, iptables-nft and iptables-legacy without any of their programs, and changes
/// nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Look into this network namespace: a path, or the number of a process in it
    #[arg(long, value_name = "PATH|PID")]
    netns: Option<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sudo proxyctl doctor
  sudo proxyctl doctor --netns 4711 --json

Exit codes:
  0  nothing leads somewhere wrong
  1  something does; each finding names the command that removes just that rule
  2  it could not look at everything, and found nothing wrong in what it saw";

pub(crate) fn run(args: Args) -> ExitCode {
    if let Some(place) = &args.netns
        && let Err(error) = netns::enter(place)
    {
        eprintln!(
            "proxyctl doctor: cannot enter the network namespace {place}: {error}; run it as root, and give a path such as /run/netns/NAME or a pid"
        );
        return ExitCode::from(USAGE_ERROR);
    }
    let ruleset = ruleset::read();
    let mut findings = doctor::examine(&ruleset);
    if let Some(place) = &args.netns {
        let place = match place.parse::<u32>() {
            Ok(pid) => format!("/proc/{pid}/ns/net"),
            Err(_) => place.clone(),
        };
        for fix in findings.iter_mut().filter_map(|f| f.fix.as_mut()) {
            *fix = format!("nsenter --net={place} {fix}");
        }
    }
    if args.json {
        println!(
            "{}",
            json!({ "findings": findings, "unseen": ruleset.unseen })
        );
    } else {
        tell(&findings, &ruleset.unseen);
    }
    if findings.iter().any(|f| f.level == Level::Error) {
        ExitCode::FAILURE
    } else if ruleset.unseen.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    }
}

fn tell(findings: &[Finding], unseen: &[String]) {
    for finding in findings {
        let level = match finding.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "fine",
        };
        println!("{level}: {}", finding.what);
        for line in &finding.evidence {
            println!("  {line}");
        }
        if let Some(fix) = &finding.fix {
            println!("  fix: {fix}");
        }
    }
    if findings.is_empty() && unseen.is_empty() {
        println!("no redirect of outbound connections leads somewhere wrong");
    }
    for what in unseen {
        println!("not seen: {what}");
    }
}
