//! Every path of the admin listener.

use std::fmt::Write;

use super::guard::Kind;

/// One path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) asks: Ask,
    pub(super) what: &'static str,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Index,
    Live,
    Ready,
    Metrics,
    Config,
    Clusters,
    Connections,
    Routes,
    Logging,
    Profile,
    Heap,
    SetLogging,
    Reload,
    Drain,
    Fail,
    Ok,
}

const fn path(path: &'static str, kind: Kind, asks: Ask, what: &'static str) -> Path {
    Path {
        path,
        kind,
        asks,
        what,
    }
}

pub(super) const PATHS: [Path; 16] = [
    path("/", Kind::Read, Ask::Index, "this list"),
    path(
        "/live",
        Kind::Probe,
        Ask::Live,
        "200 while every worker's event loop turns, else 503; it waits 0.9 s for them",
    ),
    path(
        "/ready",
        Kind::Probe,
        Ask::Ready,
        "200 while it accepts connections, else 503 with reasons",
    ),
    path(
        "/metrics",
        Kind::Probe,
        Ask::Metrics,
        "Prometheus text, OpenMetrics text or Prometheus protobuf, as Accept asks",
    ),
    path(
        "/config",
        Kind::Read,
        Ask::Config,
        "the configuration in force, JSON, without its secrets",
    ),
    path(
        "/clusters",
        Kind::Read,
        Ask::Clusters,
        "clusters and their endpoints, JSON",
    ),
    path(
        "/connections",
        Kind::Read,
        Ask::Connections,
        "live connections, JSON; ?limit=N of each worker, 1000 unless said",
    ),
    path(
        "/routes",
        Kind::Read,
        Ask::Routes,
        "routes in their order and what went over each, JSON",
    ),
    path(
        "/logging",
        Kind::Read,
        Ask::Logging,
        "what this program logs of itself, JSON",
    ),
    path(
        "/debug/profile",
        Kind::Read,
        Ask::Profile,
        "where the CPU is spent, pprof; ?seconds=N, 10 unless said, at most 60",
    ),
    path(
        "/debug/heap",
        Kind::Read,
        Ask::Heap,
        "what the allocator holds, JSON",
    ),
    path(
        "/logging",
        Kind::Order,
        Ask::SetLogging,
        "log by another filter until the end; ?level=FILTER as in --log-level",
    ),
    path(
        "/reload",
        Kind::Order,
        Ask::Reload,
        "read the configuration file again",
    ),
    path(
        "/drain",
        Kind::Order,
        Ask::Drain,
        "stop as at SIGTERM: without failing anything",
    ),
    path(
        "/healthcheck/fail",
        Kind::Order,
        Ask::Fail,
        "have /ready answer 503 until /healthcheck/ok",
    ),
    path(
        "/healthcheck/ok",
        Kind::Order,
        Ask::Ok,
        "take /healthcheck/fail back",
    ),
];

impl Path {
    pub(super) fn method(&self) -> &'static str {
        match self.kind {
            Kind::Order => "POST",
            Kind::Probe | Kind::Read => "GET",
        }
    }
}

/// The entry for `path`; where orders and questions share a path, the order's if `is_order`.
pub(super) fn find(path: &str, is_order: bool) -> Option<&'static Path> {
    let mut found = PATHS.iter().filter(|entry| entry.path == path);
    let first = found.next()?;
    let wants_other = is_order != (first.kind == Kind::Order);
    Some(found.next().filter(|_| wants_other).unwrap_or(first))
}

/// All of them as text.
pub(super) fn listing(title: &str) -> String {
    let mut text = format!("{title}:\n");
    for entry in PATHS {
        let (method, path) = (entry.method(), entry.path);
        let _ = writeln!(text, "  {method:<4} {path:<18} {}", entry.what);
    }
    text
}

/// The same for a browser, which may follow what only tells.
pub(super) fn page() -> String {
    let mut rows = String::new();
    for entry in PATHS {
        let name = match entry.kind {
            Kind::Order => format!("<code>POST {}</code>", entry.path),
            Kind::Probe | Kind::Read => {
                format!("<a href=\"{0}\"><code>{0}</code></a>", entry.path)
            }
        };
        let _ = writeln!(rows, "<tr><td>{name}</td><td>{}</td></tr>", entry.what);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Outrigger</title></head>\n<body>\n<h1>Outrigger {}</h1>\n<table>\n{rows}</table>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_tells_and_takes_orders_is_two() {
        assert_eq!(find("/logging", false).map(|p| p.asks), Some(Ask::Logging));
        assert_eq!(
            find("/logging", true).map(|p| p.asks),
            Some(Ask::SetLogging)
        );
        assert_eq!(find("/reload", false).map(|p| p.asks), Some(Ask::Reload));
        assert_eq!(find("/live", true).map(|p| p.asks), Some(Ask::Live));
        assert!(find("/nothing", false).is_none());
    }

    #[test]
    fn the_documentation_lists_exactly_the_paths_there_are() {
        let page = include_str!("../../../docs/admin.md");
        let documented: Vec<_> = page
            .lines()
            .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
            .filter(|name| name.starts_with("GET /") || name.starts_with("POST /"))
            .map(str::to_owned)
            .collect();
        let known: Vec<_> = PATHS
            .iter()
            .map(|p| format!("{} {}", p.method(), p.path))
            .collect();
        assert_eq!(documented, known);
    }
}
