//! Metrics as Prometheus reads them, made piece by piece as fast as the scraper takes them: ten
//! thousand destinations are tens of megabytes of text, which a slow scraper must not keep in
//! memory.

mod destinations;
mod process_wide;
mod series;

use std::sync::Arc;

use prometheus_client::{collector::Collector, encoding::text, registry::Registry};

use self::{
    destinations::{FAMILIES, Piece, Row, rows},
    process_wide::ProcessWide,
};
use crate::shared::Shared;

/// Destinations in one piece; their histograms take some 200 KiB.
const ROWS_PER_PIECE: usize = 128;

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
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    process_wide: Option<ProcessWide>,
    rows: Arc<[Row]>,
    family: usize,
    position: usize,
    is_ended: bool,
}

impl Exposition {
    pub fn of(shared: &Shared, format: Format) -> Self {
        Self {
            format,
            process_wide: Some(ProcessWide::of(shared, format)),
            rows: rows(shared),
            family: 0,
            position: 0,
            is_ended: false,
        }
    }
}

impl Iterator for Exposition {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if let Some(process_wide) = self.process_wide.take() {
            return Some(encode(process_wide));
        }
        if let Some(family) = FAMILIES.get(self.family) {
            let start = self.position;
            let end = (start + ROWS_PER_PIECE).min(self.rows.len());
            let piece = encode(Piece {
                family,
                format: self.format,
                rows: self.rows.clone(),
                range: start..end,
            });
            if end < self.rows.len() {
                self.position = end;
            } else {
                (self.family, self.position) = (self.family + 1, 0);
            }
            return Some(match start {
                0 => piece,
                _ => without_head(piece),
            });
        }
        let is_last = !std::mem::replace(&mut self.is_ended, true);
        (is_last && self.format == Format::OpenMetrics).then(|| "# EOF\n".into())
    }
}

fn encode(collector: impl Collector) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    text::encode_registry(&mut text, &registry).expect("a string takes whatever is written");
    text
}

/// Drops the description that a metric's first piece has already given.
fn without_head(piece: String) -> String {
    piece
        .split_inclusive('\n')
        .skip_while(|line| line.starts_with('#'))
        .collect()
}

#[cfg(test)]
mod tests;
