//! The manifests, read by the types of those who will read them, and held against each other.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::read;

#[test]
fn kubernetes_knows_every_key_of_the_manifests() {
    let (config, pod) = kubernetes();
    // What a type does not know is lost on the way through it.
    assert_eq!(through::<ConfigMap>(&config), config);
    assert_eq!(through::<Pod>(&pod), pod);
    let mut mistaken = pod;
    mistaken["spec"]["initContainers"][0]["restartPolice"] = json!("Always");
    assert_ne!(through::<Pod>(&mistaken), mistaken);
}

#[test]
fn in_the_pod_each_container_has_what_it_needs_and_no_more() {
    let pod: Pod = serde_json::from_value(kubernetes().1).unwrap();
    let spec = pod.spec.unwrap();
    let sidecars = spec.init_containers.unwrap();
    let [proxy, capture] = &sidecars[..] else {
        panic!("other containers")
    };
    // Native sidecars, started in this order, each once the one before has passed its startup probe.
    for sidecar in [proxy, capture] {
        assert_eq!(sidecar.restart_policy.as_deref(), Some("Always"));
        assert!(sidecar.startup_probe.is_some());
    }
    assert_eq!(user_and_capabilities(proxy), (Some(1337), vec![]));
    assert_eq!(
        user_and_capabilities(capture),
        (Some(0), vec!["NET_ADMIN".into()])
    );
    for app in &spec.containers {
        assert_ne!(
            user_and_capabilities(app).0,
            Some(1337),
            "it would not be captured"
        );
    }
    let probes = [
        &proxy.startup_probe,
        &proxy.readiness_probe,
        &proxy.liveness_probe,
    ];
    let paths = probes.map(|probe| probe.clone().unwrap().http_get.unwrap().path.unwrap());
    assert_eq!(paths, ["/ready", "/ready", "/live"]);
    let drain = 30;
    assert!(spec.termination_grace_period_seconds.unwrap() > drain);
}

#[test]
fn compose_knows_every_key_and_each_service_has_what_it_needs_and_no_more() {
    let compose: Compose = parse(&read("docker/compose.yaml"));
    for (name, service) in &compose.services {
        let is_holder = name == "network";
        assert_eq!(
            service.network_mode.as_deref(),
            (!is_holder).then_some("service:network")
        );
        for needed in service.depends_on.keys() {
            assert!(
                compose.services.contains_key(needed),
                "{name} depends on {needed}"
            );
        }
        for volume in &service.volumes {
            let file = volume.split(':').next().unwrap();
            read(&format!("docker/{file}"));
        }
    }
    let [proxy, capture] = ["outrigger", "capture"].map(|name| &compose.services[name]);
    assert_eq!(proxy.user.as_deref(), Some("1337:1337"));
    assert_eq!(
        (&proxy.cap_drop[..], &proxy.cap_add[..]),
        (&["ALL".into()][..], &[][..])
    );
    assert_eq!(capture.user.as_deref(), Some("0:0"));
    assert_eq!(
        (&capture.cap_drop[..], &capture.cap_add[..]),
        (&["ALL".into()][..], &["NET_ADMIN".into()][..])
    );
    assert_ne!(compose.services["app"].user.as_deref(), Some("1337:1337"));
    assert_eq!(
        compose.services["app"].depends_on["capture"].condition,
        "service_healthy"
    );
    let build = proxy.build.as_ref().expect("how the image is built");
    let context = Path::new("packaging/docker").join(&build.context);
    let root = fs::canonicalize(env!("CARGO_MANIFEST_DIR")).unwrap();
    assert_eq!(fs::canonicalize(root.join(context)).unwrap(), root);
    assert!(root.join(&build.dockerfile).is_file());
}

#[test]
fn the_image_is_built_with_the_rust_that_the_workspace_asks_for() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let version = manifest
        .lines()
        .find_map(|l| l.strip_prefix("rust-version = "))
        .unwrap();
    let from = format!("FROM rust:{}-", version.trim_matches('"'));
    let dockerfile = read("docker/Dockerfile");
    assert!(
        dockerfile.lines().any(|line| line.starts_with(&from)),
        "no line begins with {from}"
    );
}

#[test]
fn every_configuration_and_every_command_line_is_one_that_proxyctl_takes() {
    let (config, pod) = kubernetes();
    let mut files = vec![read("docker/outrigger.yaml")];
    files.push(config["data"]["outrigger.yaml"].as_str().unwrap().into());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outrigger.yaml");
    for text in files {
        fs::write(&path, text).unwrap();
        assert_accepted(&[json!("validate"), json!(path)]);
    }
    let compose: Compose = parse(&read("docker/compose.yaml"));
    let mut lines: Vec<Vec<Value>> = Vec::new();
    for container in pod["spec"]["initContainers"].as_array().unwrap() {
        lines.push(container["args"].as_array().unwrap().clone());
        if let Some(probe) = container["startupProbe"]["exec"]["command"].as_array() {
            lines.push(probe[1..].to_vec());
        }
    }
    for name in ["outrigger", "capture"] {
        lines.push(
            compose.services[name]
                .command
                .iter()
                .map(|word| json!(word))
                .collect(),
        );
    }
    for unit in ["outrigger.service", "outrigger-capture.service"] {
        let unit = read(&format!("systemd/{unit}"));
        let starts = unit
            .lines()
            .filter_map(|l| l.split_once("=/usr/bin/proxyctl "));
        lines.extend(starts.map(|(_, line)| line.split(' ').map(|word| json!(word)).collect()));
    }
    assert_eq!(lines.len(), 8);
    for mut line in lines {
        // `--help` reads the words before it, and does nothing.
        line.push(json!("--help"));
        assert_accepted(&line);
    }
}

#[track_caller]
fn assert_accepted(words: &[Value]) {
    let words: Vec<_> = words.iter().map(|word| word.as_str().unwrap()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxyctl"));
    let output = command.args(&words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// The two documents of the manifest.
fn kubernetes() -> (Value, Value) {
    let text = read("kubernetes/pod.yaml");
    let (config, pod) = text.split_once("\n---\n").expect("two documents");
    (parse(config), parse(pod))
}

fn parse<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

fn through<T: DeserializeOwned + Serialize>(value: &Value) -> Value {
    let typed: T = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}"));
    serde_json::to_value(typed).unwrap()
}

fn user_and_capabilities(container: &Container) -> (Option<i64>, Vec<String>) {
    let context = container.security_context.clone().unwrap();
    let capabilities = context.capabilities.unwrap();
    assert_eq!(
        capabilities.drop,
        Some(vec!["ALL".into()]),
        "{}",
        container.name
    );
    assert_eq!(
        context.allow_privilege_escalation,
        Some(false),
        "{}",
        container.name
    );
    (context.run_as_user, capabilities.add.unwrap_or_default())
}

/// The part of the Compose specification that is used; another key is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    services: BTreeMap<String, Service>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    #[serde(rename = "image")]
    _image: String,
    build: Option<Build>,
    #[serde(default)]
    command: Vec<String>,
    network_mode: Option<String>,
    user: Option<String>,
    #[serde(default)]
    cap_drop: Vec<String>,
    #[serde(default)]
    cap_add: Vec<String>,
    #[serde(default, rename = "security_opt")]
    _security_opt: Vec<String>,
    #[serde(default, rename = "read_only")]
    _read_only: bool,
    #[serde(default, rename = "init")]
    _init: bool,
    #[serde(rename = "restart")]
    _restart: String,
    #[serde(rename = "stop_grace_period")]
    _stop_grace_period: Option<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
    #[serde(rename = "healthcheck")]
    _healthcheck: Option<Healthcheck>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    context: String,
    dockerfile: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    condition: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
struct Healthcheck {
    #[serde(rename = "test")]
    _test: Vec<String>,
    #[serde(rename = "start_interval")]
    _start_interval: String,
    #[serde(rename = "start_period")]
    _start_period: String,
    #[serde(rename = "interval")]
    _interval: String,
}
