use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use super::*;
use crate::{
    cluster::{Outcome, PickContext, Rng},
    failure::Failure,
    observe::{Protocol, Record, SpanId, TraceId, TraceIds, record::tests::record},
};

/// A proxy that has served a little of everything.
fn shared() -> Arc<Shared> {
    let shared = Arc::new(Shared::uncaptured(2));
    for (worker, record) in [
        (0, record()),
        (1, record()),
        (
            1,
            Record {
                status: Some(502),
                failure: Some(Failure::ConnectRefused),
                ..record()
            },
        ),
        (
            0,
            Record {
                protocol: Protocol::Opaque,
                status: None,
                ..record()
            },
        ),
    ] {
        observe(&shared, worker, record.original.0, &record);
    }
    let route: Arc<str> = "api".into();
    let traffic = shared.configuration.traffic().of(&route);
    traffic.observe(0, &record(), false);
    shared.metrics.connection_accepted(1);
    shared.metrics.connection_refused(Failure::Loop);
    shared.clusters.fill(CLUSTERS);
    let cluster = shared.clusters.find("web").expect("the cluster");
    let picked = cluster.pick(&PickContext::default(), &Rng::new(1), Instant::now());
    picked
        .expect("an endpoint")
        .report(Outcome::Error, Instant::now());
    cluster.counts.traffic.observe(1, &record(), false);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("an event loop");
    shared.metrics.runtime_of(0, runtime.handle().metrics());
    shared
}

const CLUSTERS: &str = "
clusters:
  - { name: named, dns: { name: web.internal, port: 80 } }
  - name: web
    adaptive_concurrency: {}
    endpoints: [{ address: '192.0.2.1:80' }]
";

fn observe(shared: &Shared, worker: usize, address: SocketAddr, record: &Record<'_>) {
    let now = Instant::now();
    let destination = shared.registry.destination(address, now);
    destination
        .metrics
        .observe(worker, record, shared.metrics.has_native_histograms());
}

fn text(shared: &Shared, format: Format) -> String {
    String::from_utf8(Exposition::of(shared, format).flatten().collect()).expect("text")
}

#[test]
fn tells_what_was_counted() {
    let shared = shared();
    let _idle = shared.metrics.idle_upstream(1);
    let text = text(&shared, Format::Prometheus);
    for line in [
        "outrigger_connections_accepted_total 1",
        "outrigger_connections_refused_total{reason=\"loop\"} 1",
        "outrigger_requests_total{destination=\"203.0.113.7:80\",protocol=\"http1\",code=\"200\",reason=\"none\"} 2",
        "outrigger_requests_total{destination=\"203.0.113.7:80\",protocol=\"http1\",code=\"502\",reason=\"connect_refused\"} 1",
        "outrigger_requests_total{destination=\"203.0.113.7:80\",protocol=\"opaque\",code=\"none\",reason=\"none\"} 1",
        "outrigger_request_duration_seconds_bucket{le=\"0.001\",destination=\"203.0.113.7:80\"} 0",
        "outrigger_request_duration_seconds_bucket{le=\"0.0025\",destination=\"203.0.113.7:80\"} 3",
        "outrigger_request_duration_seconds_bucket{le=\"+Inf\",destination=\"203.0.113.7:80\"} 3",
        "outrigger_request_duration_seconds_count{destination=\"203.0.113.7:80\"} 3",
        "outrigger_received_bytes_total{destination=\"203.0.113.7:80\"} 400",
        "outrigger_sent_bytes_total{destination=\"203.0.113.7:80\"} 800",
        "outrigger_upstream_requests_total{destination=\"203.0.113.7:80\",connection=\"new\"} 3",
        "outrigger_upstream_connections{state=\"idle\"} 1",
        "outrigger_destinations 1",
        "outrigger_capture_active 0",
        "outrigger_cluster_endpoints{cluster=\"web\"} 1",
        "outrigger_cluster_threshold_used{cluster=\"web\",threshold=\"requests\"} 0",
        "outrigger_cluster_threshold_limit{cluster=\"web\",threshold=\"requests\"} 1024",
        "outrigger_cluster_refused_total{cluster=\"web\",reason=\"shed\"} 0",
        "outrigger_cluster_concurrency_limit{cluster=\"web\"} 3",
        "outrigger_cluster_discovery_last_successful{cluster=\"named\"} 1",
        "outrigger_endpoint_requests_total{cluster=\"web\",endpoint=\"192.0.2.1:80\"} 1",
        "outrigger_endpoint_outcomes_total{cluster=\"web\",endpoint=\"192.0.2.1:80\",outcome=\"error\"} 1",
        "outrigger_endpoint_healthy{cluster=\"web\",endpoint=\"192.0.2.1:80\"} 1",
        "outrigger_endpoint_request_duration_seconds_count{cluster=\"web\",endpoint=\"192.0.2.1:80\"} 1",
        "outrigger_cluster_requests_total{cluster=\"web\",protocol=\"http1\",code=\"200\",reason=\"none\"} 1",
        "outrigger_cluster_request_duration_seconds_count{cluster=\"web\"} 1",
        "outrigger_route_requests_total{route=\"api\",protocol=\"http1\",code=\"200\",reason=\"none\"} 1",
        "outrigger_route_request_duration_seconds_bucket{le=\"0.0025\",route=\"api\"} 1",
        "outrigger_worker_tasks{worker=\"0\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
    }
}

#[test]
fn open_metrics_describes_counters_by_their_bare_name_and_ends() {
    let text = text(&shared(), Format::OpenMetrics);
    assert!(
        text.contains("# TYPE outrigger_requests counter\n"),
        "{text}"
    );
    assert!(text.contains("\noutrigger_requests_total{"), "{text}");
    assert!(
        text.contains("# TYPE process_cpu_seconds counter\n"),
        "{text}"
    );
    assert!(text.ends_with("\n# EOF\n"), "{text}");
}

#[test]
fn promtool_finds_nothing_to_say() {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test runs `promtool`; install the Debian package `prometheus`");
    let text = text(&shared(), Format::Prometheus);
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn many_destinations_come_in_small_pieces_that_fit_together() {
    let shared = shared();
    for port in 1..=1000 {
        let address = SocketAddr::from(([192, 0, 2, 1], port));
        observe(&shared, 0, address, &record());
    }
    let pieces: Vec<_> = Exposition::of(&shared, Format::Prometheus).collect();
    assert!(pieces.iter().all(|p| p.len() < 512 * 1024));
    let text = String::from_utf8(pieces.concat()).expect("text");
    let mut described = HashSet::new();
    for head in text.lines().filter(|l| l.starts_with("# TYPE")) {
        assert!(described.insert(head), "{head} comes twice");
    }
    let counts = text
        .lines()
        .filter(|l| l.starts_with("outrigger_request_duration_seconds_count{"));
    assert_eq!(counts.count(), 1001);
}

#[test]
fn what_was_counted_for_forgotten_destinations_is_told_as_other() {
    let shared = Shared::uncaptured(1);
    let addresses = || (1..=u16::MAX).map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
    for address in addresses() {
        observe(&shared, 0, address, &record());
    }
    let text = text(&shared, Format::Prometheus);
    let requests = text
        .lines()
        .filter(|l| l.starts_with("outrigger_requests_total{"))
        .map(|l| l.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap());
    assert_eq!(requests.sum::<usize>(), addresses().count());
    assert!(text.contains("outrigger_requests_total{destination=\"other\""));
}

#[test]
fn the_accept_header_chooses_the_format() {
    for (accept, format) in [
        ("", Format::Prometheus),
        ("*/*", Format::Prometheus),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
            Format::OpenMetrics,
        ),
        ("application/openmetrics-text; q=0", Format::Prometheus),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format::OpenMetrics,
        ),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format::Protobuf,
        ),
        (
            "application/vnd.google.protobuf;proto=other.Message;encoding=delimited, text/plain;q=0.1",
            Format::Prometheus,
        ),
        (
            "text/plain, application/openmetrics-text",
            Format::Prometheus,
        ),
    ] {
        assert_eq!(Format::accepted(accept), format, "{accept}");
    }
}

const LIMITED: &str = "
rate_limit_services: [{ name: quotas, cluster: web, domain: shop }]
routes:
  - match: {}
    cluster: web
    rate_limits: [{ name: few, token_bucket: { max_tokens: 1, tokens_per_fill: 1, fill_interval: 1s } }]
clusters: [{ name: web, endpoints: [{ address: '192.0.2.1:80' }] }]
";

/// A metric by its name, with its type and its labels (`le` left out).
type Described = BTreeMap<String, (String, BTreeSet<String>)>;

#[test]
fn the_documentation_lists_exactly_what_is_told() {
    let page = include_str!("../../../../docs/metrics.md");
    let shared = shared();
    let settings = outrigger_config::parse(LIMITED).expect("good settings");
    let (limits, services) = (&shared.rate_limits, &settings.rate_limit_services);
    limits.follow(&shared, services, &shared.clusters);
    // There are series for as long as something has the limit.
    let _limits = limits.compile(&settings.routes[0].rate_limits, false);
    let told = described(&text(&shared, Format::Prometheus));
    let mut documented = Described::new();
    for row in page.lines().filter(|row| row.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [names, kind, labels, meaning] = cells[..] else {
            continue;
        };
        for name in words(names) {
            let is_told_now = told.contains_key(&name);
            // What is there at times only is not asked for, but described it must be.
            if is_told_now
                || !(meaning.contains("absent while") || meaning.contains("present while"))
            {
                documented.insert(name, (kind.to_owned(), words(labels).collect()));
            }
        }
    }
    for (name, (kind, labels)) in told {
        let found = documented.remove(&name);
        let Some((documented_kind, documented_labels)) = found else {
            panic!("docs/metrics.md lacks {name}, a {kind}");
        };
        // The process's own are described by those who named them.
        if !name.starts_with("process_") {
            assert_eq!(documented_kind, kind, "type of {name} in docs/metrics.md");
        }
        assert_eq!(
            documented_labels, labels,
            "labels of {name} in docs/metrics.md"
        );
    }
    assert_eq!(
        documented,
        Described::new(),
        "in docs/metrics.md, and not told"
    );
}

/// The words in backquotes.
fn words(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

fn described(text: &str) -> Described {
    let mut described = Described::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            described.insert(name.into(), (kind.into(), BTreeSet::new()));
        } else if let Some((name, labels)) = line.split_once('{') {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            let labels = labels
                .split("=\"")
                .filter_map(|part| part.rsplit(['"', ',']).next())
                .filter(|label| !label.starts_with('}') && *label != "le");
            let (_, known) = described.get_mut(family).expect("a type comes first");
            known.extend(labels.map(str::to_owned));
        }
    }
    described
}

#[test]
fn endpoints_beyond_the_bound_are_told_together_and_no_count_is_lost() {
    let shared = Shared::uncaptured(1);
    let mut clusters = "clusters:\n".to_owned();
    for cluster in 0..110 {
        clusters += &format!("  - name: c{cluster:03}\n    endpoints:\n");
        for endpoint in 1..=100 {
            clusters += &format!("      - address: 10.0.{cluster}.{endpoint}:80\n");
        }
    }
    shared.clusters.fill(&clusters);
    let text = text(&shared, Format::Prometheus);
    let healthy = text
        .lines()
        .filter(|l| l.starts_with("outrigger_endpoint_healthy{"));
    let values: Vec<u64> = healthy
        .map(|l| l.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect();
    assert_eq!(values.len(), 10_010);
    assert_eq!(values.iter().sum::<u64>(), 11_000);
    assert!(text.contains("{cluster=\"c109\",endpoint=\"other\"} 100\n"));
}

/// The messages of a protobuf answer, by their metrics' names.
fn families(shared: &Shared) -> Vec<prometheus_protobuf::prometheus_data_model::MetricFamily> {
    let bytes: Vec<u8> = Exposition::of(shared, Format::Protobuf).flatten().collect();
    let mut rest = &bytes[..];
    let mut families = Vec::new();
    while !rest.is_empty() {
        families.push(prost::Message::decode_length_delimited(&mut rest).expect("a message"));
    }
    families
}

#[test]
fn native_histograms_are_told_in_protobuf_where_they_are_kept() {
    let shared = Shared::uncaptured(1);
    let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
    observe(&shared, 0, address(1), &record());
    shared.metrics.keep_native_histograms();
    for _ in 0..3 {
        observe(&shared, 0, address(2), &record());
    }
    let mut told = BTreeMap::new();
    for family in families(&shared) {
        if family.name == "outrigger_request_duration_seconds" {
            for metric in family.metric {
                told.insert(
                    metric.label[0].value.clone(),
                    metric.histogram.expect("it is one"),
                );
            }
        } else if family.name == "outrigger_requests_total" {
            assert_eq!(family.metric.len(), 2);
        }
    }
    let classic = &told["192.0.2.1:1"];
    assert!(
        classic.positive_span.is_empty() && classic.bucket.len() == 15,
        "{classic:?}"
    );
    let native = &told["192.0.2.1:2"];
    assert_eq!(
        (native.schema, native.sample_count, native.bucket.len()),
        (2, 3, 15)
    );
    // 1.5 ms lie between 2^(-38/4) and 2^(-37/4) seconds.
    let span = &native.positive_span[0];
    assert_eq!((span.offset, span.length), (-37, 1));
    assert_eq!(native.positive_delta, [3]);
}

/// The bound of the issue that asked for it: below a second, and little memory.
#[test]
fn ten_thousand_destinations_are_few_bytes_at_a_time() {
    let shared = Shared::uncaptured(1);
    for port in 1..=10_000 {
        observe(
            &shared,
            0,
            SocketAddr::from(([192, 0, 2, 1], port)),
            &record(),
        );
    }
    let (mut largest, mut whole) = (0, 0);
    for piece in Exposition::of(&shared, Format::Prometheus) {
        largest = largest.max(piece.len());
        whole += piece.len();
    }
    assert!(largest < 512 * 1024, "{largest} of {whole}");
}

#[test]
fn a_bucket_names_the_trace_of_the_last_exported_request_in_openmetrics_alone() {
    let shared = Shared::uncaptured(1);
    let address = SocketAddr::from(([192, 0, 2, 1], 80));
    let destination = shared.registry.destination(address, Instant::now());
    for (id, is_exported) in [(1, true), (2, true), (3, false)] {
        let ids = TraceIds {
            trace: TraceId::new(id).expect("not zero"),
            span: SpanId::new(7).expect("not zero"),
            is_exported,
        };
        let record = Record {
            trace: Some(ids),
            ..record()
        };
        destination.metrics.observe(0, &record, false);
        destination.exemplars.note(&record);
    }
    let text = text(&shared, Format::OpenMetrics);
    let annotated: Vec<_> = text.lines().filter(|line| line.contains(" # {")).collect();
    let [line] = annotated[..] else {
        panic!("{annotated:?}");
    };
    let (bucket, exemplar) = line.split_once(" # ").expect("an exemplar");
    assert!(
        bucket.contains("le=\"0.0025\"") && bucket.ends_with("} 3"),
        "{line}"
    );
    let expected =
        "{trace_id=\"00000000000000000000000000000002\",span_id=\"0000000000000007\"} 0.0015 ";
    assert!(exemplar.starts_with(expected), "{line}");
    assert!(!self::text(&shared, Format::Prometheus).contains("trace_id"));
}
