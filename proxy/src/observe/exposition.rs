//! Metrics as Prometheus reads them, made piece by piece as fast as the scraper takes them: ten
//! thousand destinations are tens of megabytes of text, which a slow scraper must not keep in
//! memory.

mod clusters;
mod destinations;
mod exemplars;
mod pages;
mod process_wide;
mod rate_limits;
mod series;

use std::iter;

use prometheus_client::{collector::Collector, encoding::text, registry::Registry};

use self::{exemplars::Annotations, pages::Pages, process_wide::ProcessWide};
use crate::shared::Shared;

/// Which of the two text formats is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's own, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header asks for.
    pub fn accepted(accept: &str) -> Self {
        let wants_open_metrics = accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            parts.next() == Some("application/openmetrics-text")
                && !parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        });
        if wants_open_metrics {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Every metric at one moment, as pieces of text.
pub struct Exposition(Box<dyn Iterator<Item = String> + Send>);

impl Exposition {
    pub fn of(shared: &Shared, format: Format) -> Self {
        let process_wide = ProcessWide::of(shared, format);
        let clusters = shared.clusters.all();
        let destinations = destinations::rows(shared);
        let annotations = (format == Format::OpenMetrics).then(|| Annotations::of(shared));
        let destinations = Pages::new(format, destinations::FAMILIES, destinations);
        let destinations = destinations.map(move |piece| match &annotations {
            Some(annotations) => annotations.annotate(piece),
            None => piece,
        });
        let (clusters, endpoints) = (clusters::rows(&clusters), clusters::endpoints(&clusters));
        let end = (format == Format::OpenMetrics).then(|| "# EOF\n".to_owned());
        let (limits, services) = rate_limits::rows(&shared.rate_limits);
        Self(Box::new(
            iter::once_with(|| encode(process_wide))
                .chain(destinations)
                .chain(Pages::new(format, clusters::FAMILIES, clusters))
                .chain(Pages::new(format, clusters::ENDPOINT_FAMILIES, endpoints))
                .chain(Pages::new(format, rate_limits::LIMIT_FAMILIES, limits))
                .chain(Pages::new(format, rate_limits::SERVICE_FAMILIES, services))
                .chain(end),
        ))
    }
}

impl Iterator for Exposition {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.0.next()
    }
}

fn encode(collector: impl Collector) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    text::encode_registry(&mut text, &registry).expect("a string takes whatever is written");
    text
}

#[cfg(test)]
mod tests;
