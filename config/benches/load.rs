//! How long a large configuration takes to load, to load again, and to be asked for a route; and the
//! memory that it takes.

use std::{fmt::Write, fs, hint::black_box, time::Instant};

use criterion::{BenchmarkId, Criterion, criterion_group};
use outrigger_config::{Headers, HttpRequest, Snapshot, Subject, check, parse};

const CLUSTERS: usize = 10_000;
const ENDPOINTS_EACH: usize = 10;

/// `clusters` clusters of ten endpoints, and a route by host to each.
fn text(clusters: usize) -> String {
    let mut text = "clusters:\n".to_owned();
    for cluster in 0..clusters {
        let _ = writeln!(
            text,
            "  - name: cluster-{cluster}\n    load_balancer: least_request\n    outlier_detection: {{}}\n    endpoints:"
        );
        for endpoint in 0..ENDPOINTS_EACH {
            let (high, low) = (cluster / 256, cluster % 256);
            let _ = writeln!(
                text,
                "      - address: 10.{high}.{low}.{}:8080\n        weight: {}",
                endpoint + 1,
                endpoint + 1
            );
        }
    }
    text += "routes:\n";
    for cluster in 0..clusters {
        let _ = writeln!(
            text,
            "  - match: {{ host: service-{cluster}.internal, port: 80 }}\n    cluster: cluster-{cluster}"
        );
    }
    text
}

fn load(c: &mut Criterion) {
    let text = text(CLUSTERS);
    let mut group = c.benchmark_group("configuration");
    group.sample_size(10);
    group.bench_function("load 100,000 endpoints", |b| {
        b.iter(|| Snapshot::compile(parse(black_box(&text)).unwrap(), None));
    });
    let before = Snapshot::compile(parse(&text).unwrap(), None);
    let changed = text.replacen("weight: 1\n", "weight: 7\n", 1);
    group.bench_function("reload 100,000 endpoints", |b| {
        b.iter(|| {
            let after = Snapshot::compile(parse(black_box(&changed)).unwrap(), Some(&before));
            assert_eq!(after.changes_since(&before).changed.len(), 1);
            after
        });
    });
}

/// `count` routes, told apart by what `matches` writes for each.
fn routes(count: usize, matches: impl Fn(usize) -> String) -> Snapshot {
    let mut text = "routes:\n".to_owned();
    for route in 0..count {
        let _ = writeln!(
            text,
            "  - {{ match: {{ {} }}, cluster: original_destination }}",
            matches(route)
        );
    }
    Snapshot::compile(parse(&text).unwrap(), None)
}

/// One header line.
#[derive(Debug)]
struct Tenant(&'static str);

impl Headers for Tenant {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        if name.eq_ignore_ascii_case("x-tenant") {
            visit(self.0.as_bytes());
        }
    }
}

type Written = fn(usize) -> String;

fn decide(c: &mut Criterion) {
    let request = HttpRequest {
        host: Some("service-7.internal"),
        method: "GET",
        path: Some(b"/service-7/users/1?page=2"),
        headers: &Tenant("tenant-7"),
    };
    let subject = Subject {
        request: Some(request),
        ..Subject::at("10.0.0.1:80".parse().unwrap())
    };
    let kinds: [(&str, Written); 5] = [
        ("hosts", |n| format!("host: service-{n}.internal, port: 80")),
        ("paths", |n| format!("path: {{ prefix: /service-{n}/ }}")),
        ("paths of one host", |n| {
            format!("host: service-7.internal, path: {{ separated_prefix: /service-{n} }}")
        }),
        ("headers", |n| {
            format!("headers: [{{ name: x-tenant, exact: tenant-{n} }}]")
        }),
        // As many hosts as each has paths.
        ("hosts with paths", |n| {
            format!(
                "host: service-{}.internal, path: {{ prefix: /service-{}/ }}",
                n % 100,
                n / 100 + n % 100
            )
        }),
    ];
    for (kind, written) in kinds {
        let mut group = c.benchmark_group(format!("route among {kind}"));
        for count in [10, 10_000] {
            let snapshot = routes(count, written);
            assert!(snapshot.routes.decide(&subject).is_some());
            group.bench_with_input(
                BenchmarkId::from_parameter(count),
                &snapshot,
                |b, snapshot| {
                    b.iter(|| snapshot.routes.decide(black_box(&subject)));
                },
            );
        }
        group.finish();
    }
}

/// Before anything else has grown the heap.
fn figures() {
    let text = text(CLUSTERS);
    let started = Instant::now();
    let checked = check(&text);
    assert!(
        checked.problems.is_empty(),
        "{:?}",
        checked.problems.first()
    );
    let snapshot = Snapshot::compile(checked.settings.unwrap(), None);
    let took = started.elapsed();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    println!(
        "{} clusters, {} bytes of YAML: loaded in {took:?}; {peak}",
        snapshot.clusters.len(),
        text.len()
    );
}

criterion_group!(benches, load, decide);

fn main() {
    figures();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
