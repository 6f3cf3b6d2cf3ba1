//! The reference in docs/ is made from the types: it is current, and says of every key what it does,
//! in which unit, and what its default is and why. `UPDATE_DOCS=1 cargo test -p outrigger-config
//! --test reference` writes it anew.

use std::{fmt::Write, fs, path::PathBuf};

use serde_json::{Map, Value};

#[test]
fn the_schema_in_docs_is_current() {
    is_current("config.schema.json", &(outrigger_config::schema() + "\n"));
}

#[test]
fn the_reference_in_docs_is_current() {
    is_current("configuration.md", &reference(&schema()));
}

#[test]
fn every_key_says_its_default_or_that_it_is_required() {
    let schema = schema();
    let mut silent = Vec::new();
    for (name, object) in objects(&schema) {
        for (key, value) in properties(object) {
            let text = description(value);
            // What a group of keys is for stands at the group.
            let is_group = value
                .get("$ref")
                .is_some_and(|r| properties(definition(&schema, r)).next().is_some());
            if !text.contains("Default") && !text.contains("Required") && !is_group {
                silent.push(format!("{name}.{key}: {text}"));
            }
        }
    }
    assert!(
        silent.is_empty(),
        "without a default:\n{}",
        silent.join("\n")
    );
}

fn schema() -> Value {
    serde_json::from_str(&outrigger_config::schema()).expect("it is JSON")
}

fn is_current(file: &str, wanted: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(file);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).expect("docs/ can be written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == wanted,
        "docs/{file} is not what the types say; run `UPDATE_DOCS=1 cargo test -p outrigger-config --test reference`"
    );
}

fn reference(schema: &Value) -> String {
    let mut text = "# Configuration\n\n\
        One YAML file. Every key has a default unless it is called required, so that an empty file is\n\
        valid; unknown keys are errors. `proxyctl validate FILE` tells everything that is wrong with one,\n\
        and [config.schema.json](config.schema.json) lets an editor do so while you write.\n\n\
        A bare name stands for an object of that name with every default: `load_balancer: maglev` is\n\
        `load_balancer: { maglev: {} }`. Durations carry their unit: `250ms`, `2s`, `1m 30s`.\n\n\
        This page is made from the types that read the file.\n"
        .to_owned();
    for (name, object) in objects(schema) {
        let title = if name.is_empty() { "The file" } else { name };
        let _ = write!(text, "\n## {title}\n\n{}\n", description(object));
        if properties(object).next().is_some() {
            text += "\n| key | meaning |\n| --- | --- |\n";
        }
        for (key, value) in properties(object) {
            let _ = writeln!(
                text,
                "| `{key}`{} | {} |",
                kind(value),
                cell(description(value))
            );
        }
        for choice in ["oneOf", "anyOf"]
            .into_iter()
            .filter_map(|c| object.get(c)?.as_array())
            .flatten()
        {
            let names = choice.get("const").into_iter().chain(
                choice
                    .get("enum")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten(),
            );
            let names: Vec<_> = names
                .filter_map(Value::as_str)
                .map(|n| format!("`{n}`"))
                .collect();
            let keyed: Vec<_> = properties(choice)
                .map(|(key, value)| format!("`{key}`{}", kind(value)))
                .collect();
            let names = [names, keyed].concat().join(", ");
            if !names.is_empty() {
                let _ = writeln!(text, "- {names}: {}", cell(description(choice)));
            }
        }
    }
    text
}

/// The file itself, then every group of keys, by name.
fn objects(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let definitions = schema["$defs"].as_object().expect("there are groups");
    std::iter::once(("", schema)).chain(
        definitions
            .iter()
            .map(|(name, value)| (name.as_str(), value)),
    )
}

fn properties(object: &Value) -> impl Iterator<Item = (&String, &Value)> + use<'_> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    object
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&NONE)
        .iter()
}

fn description(value: &Value) -> &str {
    value
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or("")
}

fn definition<'s>(schema: &'s Value, reference: &Value) -> &'s Value {
    let name = reference
        .as_str()
        .and_then(|r| r.rsplit('/').next())
        .expect("a reference is a path");
    &schema["$defs"][name]
}

/// Which group a key's value is.
fn kind(value: &Value) -> String {
    let references = |v: &Value| {
        v.get("$ref")
            .and_then(Value::as_str)
            .and_then(|r| r.rsplit('/').next().map(str::to_owned))
    };
    let found = references(value)
        .or_else(|| value.get("items").and_then(references))
        .or_else(|| value.get("anyOf")?.as_array()?.iter().find_map(references));
    found.map_or(String::new(), |name| {
        format!(" ([{name}](#{}))", name.to_lowercase())
    })
}

fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
