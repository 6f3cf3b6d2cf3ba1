//! `proxyctl doctor`: every redirect on this host that leads somewhere wrong.

use std::process::ExitCode;

use outrigger_iptables::{
    doctor::{self, Finding, Level, Options},
    ruleset,
};
use serde_json::{Value, json};

use crate::{
    netns,
    settings::USAGE_ERROR,
    terminal::{self, Colour},
};

/// Name every redirect of outbound connections that leads somewhere wrong
///
/// Reads nftables, iptables-nft and iptables-legacy without any of their programs, and changes
/// nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Look into this network namespace: its name in `ip netns`, a path, or the number of a process in it
    #[arg(long, value_name = "NAME|PATH|PID")]
    netns: Option<String>,
    /// Look into every network namespace that a process lives in
    #[arg(long, conflicts_with = "netns")]
    all_netns: bool,
    /// Prove that a listener is no proxy: ask it through the redirect and directly, and compare
    ///
    /// Sends `OPTIONS *` to where the redirect leads, which a real transparent proxy carries on to the
    /// host that the connection was meant for; without this option nothing is sent to anybody.
    #[arg(long)]
    probe: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sudo proxyctl doctor
  sudo proxyctl doctor --netns blue           as `ip netns` calls it
  sudo proxyctl doctor --netns 4711 --json    that of process 4711
  sudo proxyctl doctor --all-netns
  sudo proxyctl doctor --probe

Exit codes:
  0  nothing leads somewhere wrong
  1  something does; each finding names the command that removes just that rule
  2  it could not look at everything, and found nothing wrong in what it saw";

/// What was found in one network namespace.
struct Report {
    /// As `--netns` takes it; `None`: where the command runs.
    place: Option<String>,
    findings: Vec<Finding>,
    unseen: Vec<String>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let options = Options { probe: args.probe };
    let reports = match &args.netns {
        _ if args.all_netns => everywhere(options),
        Some(place) => {
            if let Err(error) = netns::enter(place) {
                eprintln!("proxyctl doctor: {error}");
                return ExitCode::from(USAGE_ERROR);
            }
            vec![look(Some(place.clone()), options)]
        }
        None => vec![look(None, options)],
    };
    if args.json {
        println!("{}", as_json(&reports, args.all_netns));
    } else {
        reports.iter().for_each(tell);
    }
    let mut findings = reports.iter().flat_map(|report| &report.findings);
    if findings.any(|finding| finding.level == Level::Error) {
        ExitCode::FAILURE
    } else if reports.iter().all(|report| report.unseen.is_empty()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    }
}

/// In the calling thread's network namespace.
fn look(place: Option<String>, options: Options) -> Report {
    let ruleset = ruleset::read();
    let mut findings = doctor::examine(&ruleset, options);
    if let Some(place) = &place {
        let path = netns::path(place);
        for fix in findings.iter_mut().filter_map(|f| f.fix.as_mut()) {
            // Only commands of one word after the other are meant for a shell.
            if is_command(fix) {
                *fix = format!("nsenter --net={} {fix}", path.display());
            }
        }
    }
    Report {
        place,
        findings,
        unseen: ruleset.unseen,
    }
}

fn is_command(fix: &str) -> bool {
    let program = fix.split(' ').next().unwrap_or_default();
    ["nft", "sysctl", "proxyctl"].contains(&program)
        || program.starts_with("iptables-")
        || program.starts_with("ip6tables-")
}

fn everywhere(options: Options) -> Vec<Report> {
    let (places, hidden) = netns::all();
    let mut reports: Vec<Report> = places
        .into_iter()
        .map(|pid| {
            let place = pid.to_string();
            // A namespace is entered by a thread, and left with its end.
            let look = || match netns::enter(&place) {
                Ok(()) => look(Some(place.clone()), options),
                Err(error) => Report {
                    place: Some(place.clone()),
                    findings: Vec::new(),
                    unseen: vec![error],
                },
            };
            std::thread::scope(|scope| scope.spawn(look).join())
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .collect();
    if hidden > 0 {
        reports.push(Report {
            place: None,
            findings: Vec::new(),
            unseen: vec![format!(
                "the network namespaces of {hidden} processes, which only root may see"
            )],
        });
    }
    reports
}

fn as_json(reports: &[Report], is_everywhere: bool) -> Value {
    let one = |report: &Report| {
        let mut value = json!({ "findings": report.findings, "unseen": report.unseen });
        if is_everywhere {
            value["netns"] = json!(report.place);
        }
        value
    };
    match reports {
        [only] if !is_everywhere => one(only),
        all => json!({ "namespaces": all.iter().map(one).collect::<Vec<_>>() }),
    }
}

fn tell(report: &Report) {
    let Report {
        place,
        findings,
        unseen,
    } = report;
    if let Some(place) = place {
        println!("{}:", heading(place));
    }
    for finding in findings {
        let (level, colour) = match finding.level {
            Level::Error => ("error", Colour::Red),
            Level::Warning => ("warning", Colour::Yellow),
            Level::Info => ("fine", Colour::Green),
        };
        println!(
            "{} {}",
            terminal::paint(colour, &format!("{level}:")),
            finding.what
        );
        for line in &finding.evidence {
            println!("  {line}");
        }
        if let Some(fix) = &finding.fix {
            println!("  {} {fix}", terminal::paint(Colour::Cyan, "fix:"));
        }
    }
    if findings.is_empty() && unseen.is_empty() {
        println!("no redirect of outbound connections leads somewhere wrong");
    }
    tell_unseen(unseen);
}

/// What could not be looked at, and what helps.
pub(crate) fn tell_unseen(unseen: &[String]) {
    for what in unseen {
        println!("not seen: {what}");
    }
    if !unseen.is_empty() && !rustix::process::geteuid().is_root() {
        println!("  what to do: run it as root (sudo)");
    }
}

/// Of the part that is about one network namespace.
fn heading(place: &str) -> String {
    let Ok(pid) = place.parse() else {
        return format!("network namespace {place}");
    };
    let named = netns::name_of(pid).map_or(String::new(), |name| format!(" {name}"));
    let program = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let program = program.map_or(String::new(), |name| format!(" ({})", name.trim_end()));
    format!("network namespace{named} of process {pid}{program}")
}
