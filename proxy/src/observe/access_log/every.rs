//! The line with every field that applies, as JSON or as text.

use super::{
    format::{Here, Shape},
    line::Line,
    shown_target,
    value::Shown,
    without_userinfo,
};
use crate::observe::{Record, decision::Decision};

pub(super) fn write(mut line: Line<'_>, here: &Here, now: jiff::Timestamp, record: &Record<'_>) {
    line.word("time", Shown(format_args!("{now:.6}")));
    line.word("protocol", record.protocol.label());
    line.bare("connection", record.connection);
    line.word("client", record.client.0);
    line.word("destination", record.original.0);
    if let Some(route) = record.routed.name() {
        line.text("route", &[route.as_bytes()]);
    }
    if let Some(cluster) = record.routed.target.cluster() {
        line.text("cluster", &[cluster.as_bytes()]);
    }
    if let Some(upstream) = record.upstream {
        line.word("upstream", upstream);
        line.bare("upstream_reused", record.upstream_reused);
    }
    if record.attempts > 1 {
        line.bare("attempts", record.attempts);
    }
    if let Some(request) = &record.request {
        line.text("method", &[request.method.as_bytes()]);
        line.text("target", &shown_target(request.target));
        if let Some(host) = request.host {
            line.text("host", &[without_userinfo(host).1]);
        }
    }
    if let Some(sni) = record.sni {
        line.text("sni", &[sni.as_bytes()]);
    }
    if let Some(status) = record.status {
        line.bare("status", status);
    }
    if let Some(trace) = record.trace {
        line.word("trace_id", Shown(trace.trace));
        line.word("span_id", Shown(trace.span));
    }
    if let Some(failure) = record.failure {
        line.word("flags", failure.flag().label());
        line.word("reason", failure.label());
        line.word("fault", failure.fault().label());
        line.text("details", &[failure.details().as_bytes()]);
    }
    if let Some(decision) = Decision::of(record) {
        match line.shape() {
            Shape::Json => line.bare("decision", &*decision.json()),
            Shape::Text => line.text("decision", &[decision.json().as_bytes()]),
        }
    }
    line.bare("bytes_received", record.bytes_received);
    line.bare("bytes_sent", record.bytes_sent);
    line.bare("duration_us", record.duration.as_micros());
    line.word("instance", &*here.instance);
    line.end();
}
