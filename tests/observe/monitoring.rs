//! The dashboard and the alert rules in packaging/monitoring.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use serde_json::Value;

pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring")
}

fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(directory())
        .output()
        .expect("this test runs `promtool`; install the Debian package `prometheus`");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_alert_rules_are_in_order_and_fire_when_they_should() {
    promtool(&["check", "rules", "alerts.yaml"]);
    let said = promtool(&["test", "rules", "alerts.test.yaml"]);
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn every_alert_has_a_test() {
    let tests = fs::read_to_string(directory().join("alerts.test.yaml")).expect("tests");
    let rules = fs::read_to_string(directory().join("alerts.yaml")).expect("rules");
    for alert in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(tests.contains(alert), "{alert} has no test");
    }
}

/// The metrics that docs/metrics.md lists.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter(|row| row.starts_with("| `"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or("").split('`'));
    names
        .filter(|name| name.contains('_'))
        .map(str::to_owned)
        .collect()
}

/// The metrics that an expression asks for.
fn asked(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c| !is_name(c));
    let named = words.filter(|w| w.starts_with("outrigger_") || w.starts_with("process_"));
    named
        .map(|name| match name.strip_suffix("_bucket") {
            Some(histogram) => histogram.to_owned(),
            None => name.to_owned(),
        })
        .collect()
}

pub(crate) fn dashboard_queries() -> Vec<String> {
    let text = fs::read_to_string(directory().join("dashboard.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let queries = targets
        .flatten()
        .map(|t| t["expr"].as_str().expect("a query").to_owned());
    queries.collect()
}

#[test]
fn dashboard_and_alerts_ask_only_for_metrics_that_there_are() {
    let documented = documented();
    let rules = fs::read_to_string(directory().join("alerts.yaml")).expect("rules");
    let queries = dashboard_queries();
    assert!(queries.len() > 25, "{}", queries.len());
    for text in queries.iter().chain([&rules]) {
        for name in asked(text) {
            assert!(documented.contains(&name), "{name} in {text}");
        }
    }
}
