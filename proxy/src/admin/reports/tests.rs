use std::{fs, path::PathBuf};

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, json};

use super::*;
use crate::{
    admin::{clusters::ClustersReport, heap::Heap},
    reload::Outcome,
};

/// What each path answers.
fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    let mut answers = Map::new();
    let mut add = |path: &str, schema: fn(&mut SchemaGenerator) -> schemars::Schema| {
        answers.insert(path.into(), schema(&mut generator).into());
    };
    add("GET /ready", |g| g.subschema_for::<Readiness>());
    add("GET /config", |g| g.subschema_for::<ConfigReport>());
    add("GET /clusters", |g| g.subschema_for::<ClustersReport>());
    add("GET /connections", |g| {
        g.subschema_for::<ConnectionsReport>()
    });
    add("GET /routes", |g| g.subschema_for::<RoutesReport>());
    add("GET /logging", |g| g.subschema_for::<LevelsReport>());
    add("POST /logging", |g| g.subschema_for::<LevelsReport>());
    add("GET /debug/heap", |g| g.subschema_for::<Heap>());
    add("POST /reload", |g| g.subschema_for::<Outcome>());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What Outrigger's admin listener answers in JSON, by method and path",
        "type": "object",
        "properties": answers,
        "$defs": generator.take_definitions(true),
    })
}

/// `UPDATE_DOCS=1 cargo test -p outrigger-proxy --lib the_schema` writes it anew.
#[test]
fn the_schema_in_docs_is_current() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/admin.schema.json");
    let wanted = serde_json::to_string_pretty(&schema()).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).expect("docs/ can be written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == wanted,
        "docs/admin.schema.json is not what the types say; run this test with UPDATE_DOCS=1"
    );
}

#[test]
fn the_configuration_is_shown_whole_and_without_secrets() {
    let shared = Shared::uncaptured(1);
    let text = "routes: [{ name: api, match: { port: 80 }, cluster: web }]\nclusters: [{ name: web, endpoints: [{ address: '192.0.2.1:80' }] }]\n";
    let settings = outrigger_config::parse(text).expect("a configuration");
    let before = shared.configuration.snapshot();
    let snapshot = outrigger_config::Snapshot::compile(settings, Some(&before));
    shared
        .configuration
        .publish(snapshot.into(), &shared.clusters, &shared.rate_limits);
    let report = serde_json::to_value(ConfigReport::of(&shared)).expect("JSON");
    assert_eq!(report["generation"], 2);
    assert_eq!(report["settings"]["clusters"][0]["name"], "web");
    assert_eq!(report["settings"]["routes"][0]["name"], "api");
    assert_eq!(report["settings"]["timeouts"]["drain"], "30s");
    let routes = serde_json::to_value(RoutesReport::of(&shared)).expect("JSON");
    assert_eq!(routes["routes"][0]["name"], "api");
    assert_eq!(routes["routes"][0]["requests"], 0);
}
