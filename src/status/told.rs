//! What `status` tells, in sentences and as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_config::{
    Span,
    control::{Bypasses, Drift, Status, Tether, TetherKind, Traffic},
};
use outrigger_iptables::{Overlap, Winner};
use serde_json::{Value, json};

use super::Look;
use crate::{output::count, run::Report, traffic::Column};

/// Destinations that are shown; `proxyctl top` shows all.
const SHOWN: usize = 10;

/// Destinations in JSON, those with the most requests: a proxy remembers ten thousand.
const SHOWN_IN_JSON: usize = 100;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn describe(port: u16, look: &Look) {
    let supervisor = Report::ask(port).map(|report| report.in_words());
    let Some(status) = &look.status else {
        match supervisor {
            Some(words) => println!("direct: {words}"),
            None => {
                println!("direct: no proxy runs on port {port}");
                println!("  {}", elsewhere("status", port));
            }
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
            "  the lease ran out {}, for {:.1} s in all; new connections went direct",
            count(status.lapses, "time"),
            status.lapsed_secs
        );
        describe_windows(status);
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
        "  proxy pid {}, user {}, instance {}, version {}, {}, up {}{}",
        proxy.pid,
        proxy.uid,
        proxy.instance,
        proxy.version,
        count(proxy.workers, "worker"),
        Span::from_secs(proxy.uptime_secs),
        if proxy.draining { ", draining" } else { "" }
    );
    if let Some(words) = supervisor {
        println!("  {words}");
    }
    describe_traffic(look);
}

/// What helps where no proxy runs on `port`.
pub(crate) fn elsewhere(command: &str, port: u16) -> String {
    let others = outrigger_iptables::other_ports(port);
    let lines = others
        .iter()
        .map(|other| format!("one runs here on port {other}: `proxyctl {command} --port {other}`"));
    match others.is_empty() {
        true => "nor on another in this network namespace; `proxyctl serve` starts one".into(),
        false => lines.collect::<Vec<_>>().join("\n  "),
    }
}

fn describe_windows(status: &Status) {
    for window in &status.windows {
        let ago = Span::from_secs(unix_now().saturating_sub(window.at));
        let lasting = if window.is_open { ", and still is" } else { "" };
        println!("    {ago} ago: direct for {:.1} s{lasting}", window.secs);
    }
}

fn describe_traffic(look: &Look) {
    let traffic = match &look.traffic {
        Ok(traffic) => traffic,
        Err(reason) => return println!("  traffic: {reason}"),
    };
    println!("  {}", configuration(traffic));
    println!(
        "  {} of at most {} connections live",
        traffic.live_connections, traffic.max_connections
    );
    let Some(mut table) = look.table() else {
        return;
    };
    table.sort(Column::Requests);
    if table.rows.is_empty() {
        return;
    }
    println!("  what went where, {}:", look.period());
    for line in table.lines(None, 0, SHOWN) {
        println!("    {line}");
    }
    let more = table.rows.len().saturating_sub(SHOWN);
    if more > 0 {
        println!("    and {more} more; `proxyctl top` shows all that are in use");
    }
}

fn configuration(traffic: &Traffic) -> String {
    let of = &traffic.configuration;
    let refused = match (of.is_latest_good, of.rejected) {
        (_, 0) => String::new(),
        (true, times) => format!(", refused {} before", count(times, "time")),
        (false, _) => {
            ", and THE LATEST FILE IS REFUSED: see the proxy's log, or `proxyctl validate`".into()
        }
    };
    format!(
        "configuration generation {}, reloaded {}{refused}",
        of.generation,
        count(of.applied, "time")
    )
}

pub(super) fn as_json(port: u16, look: &Look) -> Value {
    let status = look.status.as_ref();
    let mut value = status.map_or_else(|| json!({}), |status| json!(status));
    value["closed"] = json!(closed(port, status));
    value["result"] = json!(result_word(status));
    if let Some(report) = Report::ask(port) {
        value["supervisor"] = json!(report);
    }
    if status.is_none() {
        value["other_ports"] = json!(outrigger_iptables::other_ports(port));
    }
    value["scope_problem"] = json!(status.and_then(scope_problem));
    value["proxyctl_version"] = json!(VERSION);
    value["overlaps"] = json!(status.map(|status| overlaps(port, status)));
    if let Some(capture) = status.and_then(capture) {
        value["backend"] = json!(outrigger_iptables::backend_of(capture));
        value["generation"] = json!(capture.generation);
        value["scope"] = json!(capture.scope);
    }
    if status.is_some() {
        value["traffic"] = traffic(look);
    }
    value
}

fn traffic(look: &Look) -> Value {
    let traffic = match &look.traffic {
        Ok(traffic) => traffic,
        Err(reason) => return json!({ "unseen": reason }),
    };
    let Some(mut table) = look.table() else {
        return Value::Null;
    };
    table.sort(Column::Requests);
    json!({
        "configuration": traffic.configuration,
        "live_connections": traffic.live_connections,
        "max_connections": traffic.max_connections,
        "seconds": look.seconds(),
        "destinations": table.as_json(SHOWN_IN_JSON),
        "omitted": table.rows.len().saturating_sub(SHOWN_IN_JSON),
    })
}

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
            "  {} lived before the capture; such stay direct",
            count(bypasses.live_before, "connection")
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
            "  {} more came than could be counted",
            count(bypasses.overruns, "time")
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

pub(super) fn scope_problem(status: &Status) -> Option<String> {
    let mut tethers = status.proxy.tethers.iter();
    tethers.find_map(outrigger_iptables::scope_problem)
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
