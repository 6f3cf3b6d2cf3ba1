//! `tracing`: which requests are traced, how their traces go on, and where the spans are sent.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::{CollectorUrl, Ratio, Secret, Span};

/// A server and a client span for each HTTP request, sent to an OpenTelemetry collector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// The collector, such as `http://127.0.0.1:4317`. Without a port: 4317 for `grpc`, 4318 for
    /// `http_protobuf`, OTLP's own; `/v1/traces` is appended for the latter. Required.
    pub endpoint: CollectorUrl,
    /// `grpc` or `http_protobuf`. Default `grpc`.
    #[serde(default)]
    pub protocol: OtlpProtocol,
    /// Sent with each export, such as a key that the collector asks for; never shown. Default: none.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// For one export to be answered, dialling included. Default 10 s, OTLP's.
    #[serde(default = "ten_seconds")]
    pub timeout: Span,
    /// `service.name` of the resource that all spans belong to. Default: OTEL_SERVICE_NAME, then
    /// `service.name` of OTEL_RESOURCE_ATTRIBUTES, then `outrigger`.
    #[serde(default)]
    pub service_name: Option<String>,
    /// More attributes of that resource, before those of OTEL_RESOURCE_ATTRIBUTES. Default: none.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    /// How many of the traces that begin here are sampled, from 0 to 1, decided by the trace id, so
    /// that every sampler of that ratio decides alike. Default 1: all, as Envoy and OpenTelemetry.
    #[serde(default = "all")]
    pub sampling: Ratio,
    /// A request that comes with a trace is sampled if its sender has sampled it, so that traces are
    /// whole. Default `true`; with `false` the ratio decides on each request here.
    #[serde(default = "yes")]
    pub parent_based: bool,
    /// Whether requests that were not sampled are exported all the same when they fail: this proxy's
    /// spans alone, for the others were told not to sample. Default `true`.
    #[serde(default = "yes")]
    pub sample_errors: bool,
    /// In which headers an incoming request's trace is looked for; the first that has one decides.
    /// Default `[tracecontext, b3, b3multi]`.
    #[serde(default = "every_format")]
    pub extract: Vec<TraceFormat>,
    /// In which headers the trace is passed on; what belongs to no format here goes on as it came.
    /// Default `[tracecontext]`.
    #[serde(default = "trace_context")]
    pub inject: Vec<TraceFormat>,
    /// Whether connections that are no HTTP get a span each, which begins a trace. Default `false`:
    /// they carry no trace to belong to.
    #[serde(default)]
    pub connections: bool,
    /// Spans that may wait to be sent, at 512 bytes each on average; what is beyond is dropped and
    /// counted. Default 16384: half a second of 15,000 requests a second, and 8 MiB.
    #[serde(default = "queue")]
    pub max_queue: u32,
    /// Spans in one export. Default 512, OpenTelemetry's.
    #[serde(default = "batch")]
    pub max_batch: u32,
    /// How long spans gather for a batch that is not full. Default 1 s: OpenTelemetry's 5 s are long
    /// for someone who waits for his trace.
    #[serde(default = "one_second")]
    pub batch_delay: Span,
}

/// Where a route samples otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteTracing {
    /// In place of `tracing.sampling`; a sender's decision still comes first. Default: that.
    pub sampling: Option<Ratio>,
    /// In place of `tracing.sample_errors`. Default: that.
    pub sample_errors: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OtlpProtocol {
    #[default]
    Grpc,
    HttpProtobuf,
}

impl OtlpProtocol {
    /// Where a collector listens for it unless told otherwise.
    pub fn port(self) -> u16 {
        match self {
            Self::Grpc => 4317,
            Self::HttpProtobuf => 4318,
        }
    }
}

/// Headers that carry a trace, by the names that OTEL_PROPAGATORS has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TraceFormat {
    /// W3C: `traceparent` and `tracestate`.
    TraceContext,
    /// Zipkin's single header, `b3`.
    B3,
    /// Zipkin's `X-B3-TraceId`, `X-B3-SpanId` and so on.
    B3Multi,
}

impl Tracing {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |is_wrong: bool, path, message: &str| {
            if is_wrong {
                problems.push((path, message.to_owned()));
            }
        };
        let is_grpc = self.protocol == OtlpProtocol::Grpc;
        problem(
            is_grpc && !self.endpoint.path.is_empty(),
            "tracing.endpoint",
            "it has a path, which gRPC has no use for; remove it, or write `protocol: http_protobuf`",
        );
        problem(
            self.timeout.0.is_zero(),
            "tracing.timeout",
            "no export can be answered in no time; write a duration such as `10s`",
        );
        problem(
            self.max_queue == 0,
            "tracing.max_queue",
            "nothing could wait to be sent; write at least 1",
        );
        problem(
            self.max_batch == 0 || self.max_batch > MAX_BATCH,
            "tracing.max_batch",
            "an export has 1 to 8192 spans, for collectors refuse messages beyond 4 MiB",
        );
        problem(
            self.max_batch > self.max_queue,
            "tracing.max_batch",
            "it is more than `max_queue`, so that no batch would ever be full; lower it, or raise that",
        );
        for (path, formats) in [
            ("tracing.extract", &self.extract),
            ("tracing.inject", &self.inject),
        ] {
            let is_twice = |(at, format)| formats[..at].contains(format);
            problem(
                formats.iter().enumerate().any(is_twice),
                path,
                "a format is there twice; name each once",
            );
        }
        for (name, value) in &self.headers {
            let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            problem(
                name.is_empty() || !name.bytes().all(is_token),
                "tracing.headers",
                &format!("`{name}` is no header name; write a name such as `x-api-key`"),
            );
            problem(
                OURS.contains(&name.to_ascii_lowercase().as_str()),
                "tracing.headers",
                &format!("`{name}` is for the exporter itself to set; remove it"),
            );
            problem(
                !value.reveal().bytes().all(|b| matches!(b, b' '..=b'~')),
                "tracing.headers",
                &format!(
                    "the value of `{name}` holds more than visible ASCII; write it without line ends and other control characters"
                ),
            );
        }
        let is_named_twice =
            self.service_name.is_some() && self.resource.contains_key(SERVICE_NAME);
        problem(
            is_named_twice,
            "tracing.resource",
            "`service.name` is there and `service_name` too; keep one of them",
        );
        problems
    }
}

/// A batch of spans of ordinary size stays within what collectors take in one message.
const MAX_BATCH: u32 = 8192;

/// Headers that make an export what it is.
const OURS: [&str; 6] = [
    "content-type",
    "content-length",
    "connection",
    "host",
    "te",
    "transfer-encoding",
];

const SERVICE_NAME: &str = "service.name";

fn ten_seconds() -> Span {
    Span::from_secs(10)
}

fn one_second() -> Span {
    Span::from_secs(1)
}

fn all() -> Ratio {
    Ratio(1.0)
}

fn yes() -> bool {
    true
}

fn every_format() -> Vec<TraceFormat> {
    vec![
        TraceFormat::TraceContext,
        TraceFormat::B3,
        TraceFormat::B3Multi,
    ]
}

fn trace_context() -> Vec<TraceFormat> {
    vec![TraceFormat::TraceContext]
}

fn queue() -> u32 {
    16384
}

fn batch() -> u32 {
    512
}

#[cfg(test)]
mod tests {
    use crate::{parse, settings::TraceFormat};

    fn errors(text: &str) -> Vec<String> {
        let problems = parse(text).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_endpoint_is_all_that_it_takes() {
        let settings = parse("tracing: { endpoint: 'http://127.0.0.1:4317' }").unwrap();
        let tracing = settings.tracing.expect("it is on");
        assert_eq!(tracing.endpoint.port, Some(4317));
        assert_eq!(tracing.inject, [TraceFormat::TraceContext]);
        assert!(parse("").unwrap().tracing.is_none());
        assert!(!errors("tracing: { sampling: 0.5 }").is_empty());
    }

    #[test]
    fn what_cannot_work_is_refused_where_it_stands() {
        for (keys, path) in [
            ("sampling: 1.5", "tracing.sampling"),
            ("sampling: -1", "tracing.sampling"),
            ("sampling: .nan", "tracing.sampling"),
            ("max_queue: 0, max_batch: 1", "tracing.max_queue"),
            ("max_batch: 0", "tracing.max_batch"),
            ("max_batch: 600, max_queue: 500", "tracing.max_batch"),
            ("inject: [b3, b3]", "tracing.inject"),
            ("extract: [jaeger]", "tracing.extract"),
            ("headers: { 'a b': x }", "tracing.headers"),
            ("headers: { a: \"x\\r\\ny\" }", "tracing.headers"),
            ("headers: { Content-Type: x }", "tracing.headers"),
            ("timeout: 0s", "tracing.timeout"),
            (
                "service_name: a, resource: { service.name: b }",
                "tracing.resource",
            ),
        ] {
            let text = format!("tracing: {{ endpoint: 'http://[::1]:4317', {keys} }}");
            let errors = errors(&text);
            assert!(
                errors.iter().any(|e| e.contains(path)),
                "{keys}: {errors:?}"
            );
        }
        let errors = errors("tracing: { endpoint: 'http://a/in' }");
        assert!(errors[0].contains("http_protobuf"), "{errors:?}");
    }
}
