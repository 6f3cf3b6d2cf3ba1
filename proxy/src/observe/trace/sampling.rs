//! Whether a trace is sampled.

use outrigger_config::{Ratio, RouteTracing, Tracing};

use super::{
    ids::TraceId,
    propagation::{Flags, Found},
};

/// Bits of a trace id that count as random (W3C Trace Context level 2).
const RANDOM_BITS: u32 = 56;

/// When a request's spans are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Export {
    Always,
    /// Not sampled, but told of if it fails.
    IfFailed,
    Never,
}

/// Decides on a request, from what its headers say and what its route asks for.
pub(super) fn decide(
    settings: &Tracing,
    route: Option<&RouteTracing>,
    found: Option<Found>,
    trace: TraceId,
) -> (Flags, Export) {
    let (sender, is_random, is_debug) = match found {
        Some(Found::Parent(parent)) => (parent.sampled, parent.is_random, parent.is_debug),
        Some(Found::Decision { sampled, is_debug }) => (Some(sampled), true, is_debug),
        None => (None, true, false),
    };
    let ratio = route.and_then(|r| r.sampling).unwrap_or(settings.sampling);
    let is_sampled = match sender.filter(|_| settings.parent_based) {
        Some(sampled) => sampled,
        None => is_within(trace, ratio),
    };
    let flags = Flags {
        is_sampled,
        is_random,
        is_debug: is_debug && is_sampled,
    };
    let sample_errors = route
        .and_then(|r| r.sample_errors)
        .unwrap_or(settings.sample_errors);
    let export = match (is_sampled, sample_errors) {
        (true, _) => Export::Always,
        (false, true) => Export::IfFailed,
        (false, false) => Export::Never,
    };
    (flags, export)
}

/// OpenTelemetry's way to sample by ratio: the last 56 bits of the trace id against a threshold, so
/// that what a lower ratio takes every higher one takes too, wherever it is decided
/// (<https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/>).
fn is_within(trace: TraceId, Ratio(ratio): Ratio) -> bool {
    let all = 1_u64 << RANDOM_BITS;
    let randomness = trace.number() as u64 & (all - 1);
    let rejected = ((1.0 - ratio) * all as f64).round() as u64;
    randomness >= rejected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::trace::{
        ids::{Ids, SpanId},
        propagation::Parent,
    };

    fn settings(keys: &str) -> Tracing {
        let text = format!("tracing: {{ endpoint: 'http://[::1]', {keys} }}");
        let settings = outrigger_config::parse(&text).expect("good settings");
        settings.tracing.expect("it is on")
    }

    fn parent(sampled: Option<bool>) -> Option<Found> {
        Some(Found::Parent(Parent {
            trace: TraceId::new(1).unwrap(),
            span: SpanId::new(1).unwrap(),
            sampled,
            is_random: false,
            is_debug: false,
        }))
    }

    #[test]
    fn a_ratio_takes_its_part_and_a_higher_one_all_of_that_too() {
        let ids = Ids::seeded(7, 8);
        let traces: Vec<_> = (0..20_000).map(|_| ids.trace()).collect();
        let taken = |ratio| {
            traces
                .iter()
                .filter(|t| is_within(**t, Ratio(ratio)))
                .count()
        };
        assert_eq!(taken(0.0), 0);
        assert_eq!(taken(1.0), traces.len());
        // Six standard deviations of a fair draw.
        for ratio in [0.01, 0.1, 0.5, 0.9] {
            let expected = ratio * traces.len() as f64;
            let deviation = (expected * (1.0 - ratio)).sqrt();
            let taken = taken(ratio) as f64;
            assert!(
                (taken - expected).abs() < 6.0 * deviation,
                "{ratio}: {taken}"
            );
        }
        for trace in &traces {
            let decisions = [0.01, 0.1, 0.5, 1.0].map(|ratio| is_within(*trace, Ratio(ratio)));
            assert!(decisions.is_sorted(), "{trace}");
        }
    }

    #[test]
    fn the_senders_decision_comes_first_unless_the_settings_say_otherwise() {
        let trace = TraceId::new(1).unwrap();
        let sampled = |keys: &str, found| decide(&settings(keys), None, found, trace).0.is_sampled;
        assert!(sampled("sampling: 0", parent(Some(true))));
        assert!(!sampled("sampling: 1", parent(Some(false))));
        assert!(sampled("sampling: 1", parent(None)));
        assert!(!sampled("sampling: 0", parent(None)));
        assert!(!sampled(
            "sampling: 0, parent_based: false",
            parent(Some(true))
        ));
        assert!(!sampled("sampling: 1", Some(Found::decision(false, false))));
        assert!(sampled("sampling: 0", Some(Found::decision(true, true))));
    }

    #[test]
    fn a_route_overrides_the_ratio_and_what_failures_do() {
        let trace = TraceId::new(1).unwrap();
        let export = |keys: &str, route: RouteTracing, found| {
            decide(&settings(keys), Some(&route), found, trace).1
        };
        let none = RouteTracing {
            sampling: Some(Ratio(0.0)),
            sample_errors: None,
        };
        assert_eq!(export("sampling: 1", none.clone(), None), Export::IfFailed);
        assert_eq!(
            export("sample_errors: false", none.clone(), None),
            Export::Never
        );
        assert_eq!(
            export("sampling: 0", none.clone(), parent(Some(true))),
            Export::Always
        );
        let silent = RouteTracing {
            sample_errors: Some(false),
            ..none
        };
        assert_eq!(export("sampling: 1", silent, None), Export::Never);
        assert_eq!(
            export("sampling: 1", RouteTracing::default(), None),
            Export::Always
        );
    }
}
