//! A real Prometheus that scrapes a captured proxy.

use std::{process::Command, time::Duration};

use serde_json::Value;

use crate::{
    ask::{answers, traffic},
    monitoring,
    support::{Process, World, wait_for},
};

/// A scrape every second, and some of them to have a rate.
const PATIENCE: Duration = Duration::from_secs(90);

struct Prometheus<'w> {
    world: &'w World,
    _process: Process,
}

impl<'w> Prometheus<'w> {
    fn start(world: &'w World, arguments: &[&str]) -> Self {
        let rules = monitoring::directory().join("alerts.yaml");
        let config = world.write(
            "prometheus.yml",
            format!(
                "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: ['{}']\nscrape_configs:\n  - job_name: outrigger\n    static_configs: [{{ targets: ['127.0.0.1:15000'] }}]\n",
                rules.display()
            ),
        );
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                world.dir().join("tsdb").display()
            ))
            .arg("--web.listen-address=127.0.0.1:9090")
            .args(arguments);
        let mut process = world.start("prometheus", &command);
        process.until("listens", || world.app.listeners_on(9090) > 0);
        Self {
            world,
            _process: process,
        }
    }

    fn get(&self, path: &str, data: &[(&str, &str)]) -> Value {
        let mut command = Command::new("curl");
        command.args(["-sS", "--get"]);
        for (key, value) in data {
            command
                .arg("--data-urlencode")
                .arg(format!("{key}={value}"));
        }
        command.arg(format!("http://127.0.0.1:9090{path}"));
        let output = self.world.app.output(&command);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// What a query finds.
    fn query(&self, query: &str) -> Vec<Value> {
        let answer = self.get("/api/v1/query", &[("query", query)]);
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    fn wait_for_value(&self, query: &str, is_it: impl Fn(f64) -> bool) -> f64 {
        wait_for(PATIENCE, query, || {
            let found = self.query(query);
            let value = found.first()?["value"][1].as_str()?.parse().ok()?;
            is_it(value).then_some(value)
        })
    }
}

const CONFIG: &str = "
workers: 1
metrics: { native_histograms: true }
routes: [{ name: shop, match: { port: 8081 }, cluster: web }]
clusters: [{ name: web, endpoints: [{ address: '198.51.100.2:8081' }] }]
";

#[test]
fn a_real_prometheus_scrapes_a_proxy_and_the_rules_and_the_dashboard_find_what_they_ask_for() {
    let world = World::new();
    let _direct = world.peer(80, answers);
    let _web = world.peer(8081, answers);
    let proxy = world.serve(CONFIG);
    world.capture(&proxy);
    let prometheus = Prometheus::start(&world, &["--enable-feature=native-histograms"]);
    traffic(&world, 80, 20);
    traffic(&world, 8081, 30);

    prometheus.wait_for_value("up{job='outrigger'}", |up| up == 1.0);
    let route = "sum(outrigger_route_requests_total{route='shop',code='200'})";
    prometheus.wait_for_value(route, |count| count == 30.0);
    let cluster = "sum(outrigger_cluster_requests_total{cluster='web'})";
    prometheus.wait_for_value(cluster, |count| count == 30.0);
    prometheus.wait_for_value("outrigger_capture_active", |active| active == 1.0);
    // In protobuf, for that it has asked: native buckets, of which it makes quantiles.
    let native = "histogram_count(outrigger_route_request_duration_seconds{route='shop'})";
    prometheus.wait_for_value(native, |count| count == 30.0);
    let quantile =
        "histogram_quantile(0.9, outrigger_route_request_duration_seconds{route='shop'})";
    prometheus.wait_for_value(quantile, |seconds| seconds > 0.0 && seconds < 60.0);

    let rules = prometheus.get("/api/v1/rules", &[]);
    for rule in rules["data"]["groups"][0]["rules"]
        .as_array()
        .expect("rules")
    {
        let (name, health) = (&rule["name"], &rule["health"]);
        assert_ne!(health, "err", "{name}: {rule}");
        assert_ne!(rule["state"], "firing", "{name}: {rule}");
    }
    for query in monitoring::dashboard_queries() {
        let query = query
            .replace("$job", "outrigger")
            .replace("$instance", ".*")
            .replace("$__rate_interval", "30s");
        // In order is what it must be; whether there is anything to show depends on what happened.
        prometheus.query(&query);
    }
}
