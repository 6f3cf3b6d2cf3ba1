//! Series written in either format.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NativeHistogram,
        NativeHistogramBuckets, NoLabelSet,
    },
    metrics::MetricType,
};

use super::Format;
use crate::observe::metrics::{Latency, Native, SCHEMA, ZERO_THRESHOLD};

/// The series of one metric, written in either format.
pub(super) struct Series<'a, 'e> {
    pub(super) encoder: &'a mut MetricEncoder<'e>,
    pub(super) format: Format,
}

impl Series<'_, '_> {
    pub(super) fn gauge(&mut self, labels: &[(&str, &str)], value: u64) -> fmt::Result {
        self.encoder.encode_family(&labels)?.encode_gauge(&value)
    }

    /// With its native buckets where the format has any and they were kept.
    pub(super) fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        latency: &Latency,
        native: Option<&Native>,
    ) -> fmt::Result {
        if latency.count() == 0 {
            return Ok(());
        }
        let mut encoder = self.encoder.encode_family(&labels)?;
        let (sum, buckets) = (latency.sum_seconds(), latency.buckets());
        let Some(native) = native.filter(|_| self.format == Format::Protobuf) else {
            return encoder.encode_histogram::<NoLabelSet>(sum, latency.count(), &buckets, None);
        };
        let (spans, deltas) = native.spans();
        let none = NativeHistogramBuckets {
            spans: &[],
            deltas: &[],
        };
        encoder.encode_histogram_with_native::<NoLabelSet>(
            sum,
            // Of the two it is this one that Prometheus adds up.
            native.count(),
            &buckets,
            None,
            NativeHistogram {
                schema: SCHEMA,
                zero_threshold: ZERO_THRESHOLD,
                zero_count: native.zero(),
                negative: none,
                positive: NativeHistogramBuckets {
                    spans: &spans,
                    deltas: &deltas,
                },
                created: None,
            },
        )
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
        Format::OpenMetrics | Format::Protobuf => {
            encoder.encode_counter::<NoLabelSet, _, f64>(&count, None)
        }
        // The name carries `_total` already: see `open`.
        Format::Prometheus => encoder.encode_gauge(&count),
    }
}

/// Begins a metric. OpenMetrics, and the library for protobuf, describes a counter by its bare name and appends `_total` to its
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
