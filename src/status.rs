//! `proxyctl status`: whether capture is on, by whom, since when.

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use outrigger_config::{
    Span,
    control::{Bypasses, Drift, Status, Tether, TetherKind},
};
use outrigger_iptables::{Overlap, Winner};
use serde_json::json;

use crate::{install_rules::finish, run::Report, settings::Instance};

/// Tell whether connections are captured, by which proxy, and since when
///
/// The proxy itself is asked, over its control socket: it knows whether its rules are at work, which
/// connections went past them, and who changed them. Other proxies here are asked whether their captures
/// overlap with this one's.
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
Root and the proxy's own user may ask.

Examples:
  sudo proxyctl status
  sudo proxyctl status --port 15001 --json

Exit codes:
  0  connections are captured
  1  they are not: direct, lapsed, stale or given up; or the proxy does not answer, or not this user
  2  the command line or the configuration is wrong";

pub(crate) fn run(args: Args) -> ExitCode {
    let port = match args.instance.port(args.json) {
        Ok(port) => port,
        Err(code) => return code,
    };
    let status = outrigger_iptables::status(port);
    let is_captured = matches!(&status, Ok(Some(status)) if status.is_captured && scope_problem(status).is_none());
    let told = finish(
        status,
        args.json,
        |status| describe(port, status.as_ref()),
        |status| {
            let mut value = json!(status.as_ref().map_or_else(|| json!({}), |s| json!(s)));
            value["closed"] = json!(closed(port, status.as_ref()));
            value["result"] = json!(result_word(status.as_ref()));
            if let Some(report) = Report::ask(port) {
                value["supervisor"] = json!(report);
            }
            value["scope_problem"] = json!(status.as_ref().and_then(scope_problem));
            value["proxyctl_version"] = json!(VERSION);
            value["overlaps"] = json!(status.as_ref().map(|s| overlaps(port, s)));
            if let Some(capture) = status.as_ref().and_then(capture) {
                value["backend"] = json!(outrigger_iptables::backend_of(capture));
                value["generation"] = json!(capture.generation);
                value["scope"] = json!(capture.scope);
            }
            value
        },
    );
    if is_captured { told } else { ExitCode::FAILURE }
}

fn describe(port: u16, status: Option<&Status>) {
    let supervisor = Report::ask(port).map(|report| report.in_words());
    let Some(status) = status else {
        match supervisor {
            Some(words) => println!("direct: {words}"),
            None => println!("direct: no proxy runs on port {port}"),
        }
        for table in closed(port, None) {
            println!(
                "  table {table}: connections to capture.fail_closed are refused without the proxy"
            );
        }
        return;
    };
    let proxy = &status.proxy;
    let since = proxy.captured_since.map(|since| {
        let elapsed = unix_now().saturating_sub(since);
        format!("; rules held for {}", Span::from_secs(elapsed))
    });
    println!(
        "{}{}",
        result_word(Some(status)),
        since.as_deref().unwrap_or_default()
    );
    if let Some(reason) = &status.given_up {
        println!("  new connections go direct until install-rules is run again: {reason}");
    }
    if let Some(obstacle) = &status.obstacle {
        println!("  no beat: {obstacle}");
    }
    for tether in &proxy.tethers {
        let refused = match tether.kind {
            TetherKind::Closed => {
                ": connections to capture.fail_closed are refused without the proxy"
            }
            TetherKind::Capture | TetherKind::Anchor => "",
        };
        println!("  table {}{refused}", tether.table);
        if tether.kind == TetherKind::Capture {
            println!(
                "  scope {}, backend {}, generation {}",
                tether.scope,
                outrigger_iptables::backend_of(tether),
                tether.generation
            );
        }
        if let Some(problem) = outrigger_iptables::scope_problem(tether) {
            println!("  {problem}");
        }
        if let Some(lease) = &tether.lease {
            println!("  lease {}", Span::from_millis(lease.millis));
        }
    }
    if status.lapses > 0 {
        println!(
            "  the lease ran out {} times, for {:.1} s in all; new connections went direct",
            status.lapses, status.lapsed_secs
        );
    }
    describe_bypasses(&status.bypasses);
    describe_drift(&status.drift);
    for overlap in overlaps(port, status) {
        describe_overlap(&overlap);
    }
    if proxy.version != VERSION {
        println!(
            "  this proxyctl is version {VERSION}, the proxy {}: restart it, then install-rules again",
            proxy.version
        );
    }
    println!(
        "  proxy pid {}, user {}, instance {}, version {}, {} workers, up {}{}",
        proxy.pid,
        proxy.uid,
        proxy.instance,
        proxy.version,
        proxy.workers,
        Span::from_secs(proxy.uptime_secs),
        if proxy.draining { ", draining" } else { "" }
    );
    if let Some(words) = supervisor {
        println!("  {words}");
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn capture(status: &Status) -> Option<&Tether> {
    let mut tethers = status.proxy.tethers.iter();
    tethers.rfind(|tether| tether.kind == TetherKind::Capture)
}

fn overlaps(port: u16, status: &Status) -> Vec<Overlap> {
    outrigger_iptables::overlaps(port, &status.proxy)
}

fn describe_overlap(overlap: &Overlap) {
    println!(
        "  overlaps with the proxy on port {} (pid {}, user {}), scope {}, backend {}: {}",
        overlap.port,
        overlap.pid,
        overlap.uid,
        overlap.scope,
        overlap.backend,
        match overlap.wins {
            Winner::This => "what both are for comes here",
            Winner::Other => "what both are for goes there",
            Winner::Latest => "what both are for goes to the one installed last",
        }
    );
}

fn describe_bypasses(bypasses: &Bypasses) {
    if bypasses.live_before > 0 {
        println!(
            "  {} connections lived before the capture and stay direct",
            bypasses.live_before
        );
    }
    for of in &bypasses.counts {
        let word = if of.is_chosen {
            "direct as configured"
        } else {
            "WENT PAST"
        };
        let label = of.reason.label();
        println!("  {word}: {} {label}: {}", of.count, of.explanation);
    }
    for bypass in bypasses.recent.iter().filter(|b| !b.reason.is_chosen()) {
        let ago = Span::from_secs(unix_now().saturating_sub(bypass.at));
        let uid = bypass.uid.map(|uid| format!(", user {uid}"));
        println!(
            "    {ago} ago: {}{}, {}",
            bypass.destination,
            uid.unwrap_or_default(),
            bypass.reason.label()
        );
    }
    if bypasses.overruns > 0 {
        println!(
            "  {} times more came than could be counted",
            bypasses.overruns
        );
    }
}

fn describe_drift(drift: &Drift) {
    for chain in &drift.shadowed_by {
        println!(
            "  SHADOWED by table {} {} chain {}: it translates destinations before the capture",
            chain.family, chain.table, chain.chain
        );
    }
    if let Some(trouble) = drift.trouble {
        let word = if drift.needs_repair {
            "RULES GONE"
        } else {
            "RULES OVERRULED"
        };
        println!("  {word}: {}", trouble.explanation());
    }
    for event in &drift.recent {
        let ago = Span::from_secs(unix_now().saturating_sub(event.at));
        println!("    {ago} ago: {}", event.what);
    }
}

/// The tables that refuse what must not go direct. The proxy knows its own; those of one that is gone are
/// listed by the kernel, for root only.
fn closed(port: u16, status: Option<&Status>) -> Vec<String> {
    let Some(status) = status else {
        return outrigger_iptables::closed(port).unwrap_or_default();
    };
    let tethers = status.proxy.tethers.iter();
    tethers
        .filter(|tether| tether.kind == TetherKind::Closed)
        .map(|tether| tether.table.clone())
        .collect()
}

fn result_word(status: Option<&Status>) -> &'static str {
    match status {
        Some(status) if status.is_captured && scope_problem(status).is_some() => "stale",
        Some(status) if status.is_captured => "captured",
        Some(status) if status.proxy.captured_since.is_some() => "lapsed",
        Some(status) if status.given_up.is_some() => "given up",
        Some(_) | None => "direct",
    }
}

fn scope_problem(status: &Status) -> Option<String> {
    let mut tethers = status.proxy.tethers.iter();
    tethers.find_map(outrigger_iptables::scope_problem)
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
