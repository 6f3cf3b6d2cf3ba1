//! Series written in either format.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
    },
    metrics::MetricType,
};

use super::Format;

/// The series of one metric, written in either format.
pub(super) struct Series<'a, 'e> {
    pub(super) encoder: &'a mut MetricEncoder<'e>,
    pub(super) format: Format,
}

impl Series<'_, '_> {
    pub(super) fn gauge(&mut self, labels: &[(&str, &str)], value: u64) -> fmt::Result {
        self.encoder.encode_family(&labels)?.encode_gauge(&value)
    }

    pub(super) fn counter(&mut self, labels: &[(&str, &str)], count: u64) -> fmt::Result {
        if labels.is_empty() {
            return write_counter(self.encoder, self.format, count);
        }
        write_counter(
            &mut self.encoder.encode_family(&labels)?,
            self.format,
            count,
        )
    }
}

pub(super) fn write_counter<N>(
    encoder: &mut MetricEncoder<'_>,
    format: Format,
    count: N,
) -> fmt::Result
where
    N: EncodeCounterValue + EncodeGaugeValue,
{
    match format {
        Format::OpenMetrics => encoder.encode_counter::<NoLabelSet, _, f64>(&count, None),
        // The name carries `_total` already: see `open`.
        Format::Prometheus => encoder.encode_gauge(&count),
    }
}

/// Begins a metric. OpenMetrics describes a counter by its bare name and appends `_total` to its
/// samples; Prometheus's own format describes it by the full name.
pub(super) fn open<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    format: Format,
    name: &'s mut String,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    if format == Format::Prometheus && matches!(kind, MetricType::Counter) {
        name.push_str("_total");
    }
    encoder.encode_descriptor(name, help, None, kind)
}

pub(super) fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}
