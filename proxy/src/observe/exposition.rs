//! Metrics as Prometheus reads them, made piece by piece as fast as the scraper takes them: ten
//! thousand destinations are tens of megabytes of text, which a slow scraper must not keep in
//! memory.

mod clusters;
mod exemplars;
mod pages;
mod process_wide;
mod rate_limits;
mod series;
mod traffic;

use std::iter;

use prometheus_client::{
    collector::Collector,
    encoding::{prometheus_protobuf, text},
    registry::Registry,
};

use self::{exemplars::Annotations, pages::Pages, process_wide::ProcessWide};
use crate::shared::Shared;

/// Which format is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's own text, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0, text.
    OpenMetrics,
    /// Prometheus's own messages, each after its length: what a Prometheus asks for that wants native
    /// histograms.
    Protobuf,
}

impl Format {
    /// What an `Accept` header asks for: of what is spoken here, the format with the highest weight,
    /// or the first of several.
    pub fn accepted(accept: &str) -> Self {
        let mut best = (Self::Prometheus, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut weight, mut is_spoken) = (1.0, true);
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                match key.trim() {
                    "q" => weight = value.trim().parse().unwrap_or(0.0),
                    "encoding" => is_spoken &= value == "delimited",
                    "proto" => is_spoken &= value == "io.prometheus.client.MetricFamily",
                    _ => {}
                }
            }
            let format = match kind {
                "application/openmetrics-text" => Self::OpenMetrics,
                "application/vnd.google.protobuf" => Self::Protobuf,
                "text/plain" => Self::Prometheus,
                _ => continue,
            };
            if is_spoken && weight > best.1 {
                best = (format, weight);
            }
        }
        best.0
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// Every metric at one moment, in pieces.
pub struct Exposition(Box<dyn Iterator<Item = Vec<u8>> + Send>);

impl Exposition {
    pub fn of(shared: &Shared, format: Format) -> Self {
        let process_wide = ProcessWide::of(shared, format);
        let clusters = shared.clusters.all();
        let destinations = traffic::destinations(shared);
        let (in_clusters, on_routes) = (traffic::clusters(&clusters), traffic::routes(shared));
        let annotations = (format == Format::OpenMetrics).then(|| Annotations::of(shared));
        let destinations = Pages::new(format, traffic::DESTINATION_FAMILIES, destinations);
        let destinations = destinations.map(move |piece| match &annotations {
            Some(annotations) => annotations.annotate(piece),
            None => piece,
        });
        let (clusters, endpoints) = (clusters::rows(&clusters), clusters::endpoints(&clusters));
        let end = (format == Format::OpenMetrics).then(|| b"# EOF\n".to_vec());
        let (limits, services) = rate_limits::rows(&shared.rate_limits);
        Self(Box::new(
            iter::once_with(move || encode(process_wide, format))
                .chain(destinations)
                .chain(Pages::new(format, traffic::CLUSTER_FAMILIES, in_clusters))
                .chain(Pages::new(format, traffic::ROUTE_FAMILIES, on_routes))
                .chain(Pages::new(format, clusters::FAMILIES, clusters))
                .chain(Pages::new(format, clusters::ENDPOINT_FAMILIES, endpoints))
                .chain(Pages::new(format, rate_limits::LIMIT_FAMILIES, limits))
                .chain(Pages::new(format, rate_limits::SERVICE_FAMILIES, services))
                .chain(end),
        ))
    }
}

impl Iterator for Exposition {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

fn encode(collector: impl Collector, format: Format) -> Vec<u8> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    if format == Format::Protobuf {
        return prometheus_protobuf::encode_to_vec(&registry)
            .expect("a vector takes whatever is written");
    }
    let mut text = String::new();
    text::encode_registry(&mut text, &registry).expect("a string takes whatever is written");
    text.into_bytes()
}

#[cfg(test)]
mod tests;
