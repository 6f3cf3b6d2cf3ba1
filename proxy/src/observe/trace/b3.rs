//! Zipkin's B3 headers, single and multiple (<https://github.com/openzipkin/b3-propagation>).

use super::{
    ids::{SpanId, TraceId},
    propagation::{Flags, Found, Parent},
};

/// Of a single header with all its parts.
const SINGLE_LEN: usize = 32 + 1 + 16 + 1 + 1 + 1 + 16;

/// What a `b3` header says: `{trace}-{span}-{sampling}-{parent}`, of which the last two may be missing,
/// or the sampling state alone.
pub(super) fn parse_single(value: &[u8]) -> Option<Found> {
    let mut parts = value.split(|b| *b == b'-');
    let (first, second, third) = (parts.next()?, parts.next(), parts.next());
    let Some(span) = second else {
        let (sampled, is_debug) = sampling(first)?;
        return Some(Found::decision(sampled, is_debug));
    };
    let (trace, span) = (trace_id(first)?, SpanId::parse(span)?);
    let decided = third.map(sampling);
    // The sender's own parent is of no use here, but it must be one.
    let parent = parts.next().map(SpanId::parse);
    if decided == Some(None) || parent == Some(None) || parts.next().is_some() {
        return None;
    }
    let decided = decided.flatten();
    Some(Found::Parent(Parent {
        trace,
        span,
        sampled: decided.map(|(sampled, _)| sampled),
        is_random: false,
        is_debug: decided.is_some_and(|(_, is_debug)| is_debug),
    }))
}

fn sampling(state: &[u8]) -> Option<(bool, bool)> {
    match state {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

/// Values of the `X-B3-` headers, as far as there are any.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Multi<'a> {
    pub(super) trace: Option<&'a [u8]>,
    pub(super) span: Option<&'a [u8]>,
    pub(super) sampled: Option<&'a [u8]>,
    pub(super) flags: Option<&'a [u8]>,
}

pub(super) fn parse_multi(headers: Multi<'_>) -> Option<Found> {
    let is_debug = headers.flags == Some(b"1");
    let sampled = match headers.sampled {
        _ if is_debug => Some(true),
        // Written so before B3 was written down.
        Some(b"1" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        _ => None,
    };
    let ids = headers
        .trace
        .and_then(trace_id)
        .zip(headers.span.and_then(SpanId::parse));
    match ids {
        Some((trace, span)) => Some(Found::Parent(Parent {
            trace,
            span,
            sampled,
            is_random: false,
            is_debug,
        })),
        None => sampled.map(|sampled| Found::decision(sampled, is_debug)),
    }
}

fn trace_id(hex: &[u8]) -> Option<TraceId> {
    TraceId::parse(hex).or_else(|| TraceId::parse_short(hex))
}

pub(super) fn write_single(
    trace: TraceId,
    span: SpanId,
    parent: SpanId,
    flags: Flags,
) -> [u8; SINGLE_LEN] {
    let mut value = *b"................................-................-.-................";
    value[..32].copy_from_slice(&trace.hex());
    value[33..49].copy_from_slice(&span.hex());
    value[50] = match flags {
        Flags { is_debug: true, .. } => b'd',
        Flags {
            is_sampled: true, ..
        } => b'1',
        _ => b'0',
    };
    value[52..].copy_from_slice(&parent.hex());
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SPAN: &str = "e457b5a2e4d86bd1";

    fn parent(found: Option<Found>) -> Option<Parent> {
        match found {
            Some(Found::Parent(parent)) => Some(parent),
            _ => None,
        }
    }

    #[test]
    fn a_single_header_has_two_to_four_parts_or_a_decision() {
        let parse = |value: &str| parse_single(value.as_bytes());
        for (rest, sampled, is_debug) in [
            ("", None, false),
            ("-1", Some(true), false),
            ("-0", Some(false), false),
            ("-d", Some(true), true),
            ("-1-05e3ac9a4f6e3b90", Some(true), false),
        ] {
            let read = parent(parse(&format!("{TRACE}-{SPAN}{rest}"))).unwrap();
            assert_eq!(read.trace.to_string(), TRACE);
            assert_eq!(read.span.to_string(), SPAN);
            assert_eq!((read.sampled, read.is_debug), (sampled, is_debug), "{rest}");
        }
        assert_eq!(parse("0"), Some(Found::decision(false, false)));
        assert_eq!(parse("1"), Some(Found::decision(true, false)));
        assert_eq!(parse("d"), Some(Found::decision(true, true)));
        for wrong in [
            "",
            "2",
            "-",
            TRACE,
            &format!("{TRACE}-"),
            &format!("{TRACE}-{SPAN}-"),
            &format!("{TRACE}-{SPAN}-2"),
            &format!("{TRACE}-{SPAN}-1-"),
            &format!("{TRACE}-{SPAN}-1-x"),
            &format!("{TRACE}-{SPAN}-1-{SPAN}-"),
            &format!("{}-{SPAN}-1", &TRACE[1..]),
            &format!("{}-{SPAN}-1", "0".repeat(32)),
            &format!("{TRACE}-{}-1", "0".repeat(16)),
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_short_trace_id_is_the_lower_half() {
        let found = parse_single(format!("{SPAN}-{SPAN}-1").as_bytes());
        assert_eq!(
            parent(found).unwrap().trace.to_string(),
            format!("0000000000000000{SPAN}")
        );
    }

    #[test]
    fn many_headers_say_the_same() {
        let ids = Multi {
            trace: Some(TRACE.as_bytes()),
            span: Some(SPAN.as_bytes()),
            ..Multi::default()
        };
        for (sampled, flags, expected) in [
            (None, None, (None, false)),
            (Some("1"), None, (Some(true), false)),
            (Some("true"), None, (Some(true), false)),
            (Some("0"), None, (Some(false), false)),
            (Some("false"), Some("0"), (Some(false), false)),
            (Some("0"), Some("1"), (Some(true), true)),
            (Some("nonsense"), None, (None, false)),
        ] {
            let headers = Multi {
                sampled: sampled.map(str::as_bytes),
                flags: flags.map(str::as_bytes),
                ..ids
            };
            let read = parent(parse_multi(headers)).unwrap();
            assert_eq!((read.sampled, read.is_debug), expected);
            let alone = Multi {
                trace: None,
                ..headers
            };
            let decision = expected
                .0
                .map(|sampled| Found::decision(sampled, expected.1));
            assert_eq!(parse_multi(alone), decision);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            trace in 1_u128..,
            span in 1_u64..,
            above in 1_u64..,
            is_sampled: bool,
            is_debug: bool,
        ) {
            let (trace, span) = (TraceId::new(trace).unwrap(), SpanId::new(span).unwrap());
            let above = SpanId::new(above).unwrap();
            let flags = Flags { is_sampled: is_sampled || is_debug, is_random: false, is_debug };
            let written = write_single(trace, span, above, flags);
            let read = parent(parse_single(&written)).unwrap();
            prop_assert_eq!((read.trace, read.span), (trace, span));
            prop_assert_eq!((read.sampled, read.is_debug), (Some(flags.is_sampled), is_debug));
        }

        #[test]
        fn hostile_bytes_are_taken_by_nobody(
            value in proptest::collection::vec(
                proptest::sample::select(&b"01d-abcdef\xff "[..]), 0..100),
            any: Vec<u8>,
        ) {
            let _ = parse_single(&any);
            if let Some(read) = parent(parse_single(&value)) {
                prop_assert!(value.len() <= SINGLE_LEN);
                prop_assert_ne!(read.trace.number(), 0);
            }
            let multi = Multi { trace: Some(&value), span: Some(&any), sampled: None, flags: None };
            let _ = parse_multi(multi);
        }
    }
}
