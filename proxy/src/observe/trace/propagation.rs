//! Which trace a request belongs to by its headers, and the headers by which it goes on.

use outrigger_config::TraceFormat;

use super::{
    b3,
    ids::{SpanId, TraceId},
    w3c::{self, TraceState},
};
use crate::retry::grpc;

/// The sender's span, of which ours is a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    /// None: that is left to us.
    pub(super) sampled: Option<bool>,
    pub(super) is_random: bool,
    pub(super) is_debug: bool,
}

/// What goes on with a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) is_sampled: bool,
    /// Whether the trace id was drawn so that samplers may take it for random.
    pub(super) is_random: bool,
    /// B3's request to sample everywhere.
    pub(super) is_debug: bool,
}

/// What headers of one format say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Parent(Parent),
    /// Whether to sample, and no trace.
    Decision {
        sampled: bool,
        is_debug: bool,
    },
}

impl Found {
    pub(super) fn decision(sampled: bool, is_debug: bool) -> Self {
        Self::Decision { sampled, is_debug }
    }
}

/// A header that is there once at most, or else says nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Once<'a> {
    value: Option<&'a [u8]>,
    count: u8,
}

impl<'a> Once<'a> {
    fn visit(&mut self, value: &'a [u8]) {
        self.value = Some(value.trim_ascii());
        self.count = self.count.saturating_add(1);
    }

    fn get(&self) -> Option<&'a [u8]> {
        self.value.filter(|_| self.count == 1)
    }
}

/// The headers of a request that matter for its trace.
#[derive(Debug, Default)]
pub(crate) struct Incoming<'a> {
    traceparent: Once<'a>,
    tracestate: TraceState,
    has_tracestate: bool,
    b3: Once<'a>,
    trace: Once<'a>,
    span: Once<'a>,
    parent: Once<'a>,
    sampled: Once<'a>,
    flags: Once<'a>,
    /// Whether the request is a gRPC call.
    pub(super) is_grpc: bool,
}

/// Which of the headers that we may write a request came with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    traceparent: bool,
    tracestate: bool,
    b3: bool,
    /// Any of them.
    b3_multi: bool,
}

pub(super) const TRACEPARENT: &str = "traceparent";
pub(super) const TRACESTATE: &str = "tracestate";
const B3: &str = "b3";
const B3_TRACE: &str = "x-b3-traceid";
const B3_SPAN: &str = "x-b3-spanid";
const B3_PARENT: &str = "x-b3-parentspanid";
const B3_SAMPLED: &str = "x-b3-sampled";
const B3_FLAGS: &str = "x-b3-flags";

impl<'a> Incoming<'a> {
    /// To be called with each header.
    pub(crate) fn visit(&mut self, name: &[u8], value: &'a [u8]) {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        // The length first: few headers have one of these.
        match name.len() {
            2 if is(B3) => self.b3.visit(value),
            10 if is(TRACESTATE) => {
                self.has_tracestate = true;
                self.tracestate.visit(value);
            }
            10 if is(B3_FLAGS) => self.flags.visit(value),
            11 if is(TRACEPARENT) => self.traceparent.visit(value),
            11 if is(B3_SPAN) => self.span.visit(value),
            12 if is("content-type") => self.is_grpc |= grpc::is_grpc(value),
            12 if is(B3_TRACE) => self.trace.visit(value),
            12 if is(B3_SAMPLED) => self.sampled.visit(value),
            17 if is(B3_PARENT) => self.parent.visit(value),
            _ => {}
        }
    }

    /// The trace that the request belongs to: of the first of `formats` that has one; or a decision
    /// without a trace.
    pub(super) fn extract(&self, formats: &[TraceFormat]) -> Option<Found> {
        let mut decision = None;
        for format in formats {
            let found = match format {
                TraceFormat::TraceContext => self.traceparent().map(Found::Parent),
                TraceFormat::B3 => self.b3.get().and_then(b3::parse_single),
                TraceFormat::B3Multi => b3::parse_multi(b3::Multi {
                    trace: self.trace.get(),
                    span: self.span.get(),
                    sampled: self.sampled.get(),
                    flags: self.flags.get(),
                }),
            };
            match found {
                Some(Found::Parent(_)) => return found,
                Some(Found::Decision { .. }) => decision = decision.or(found),
                None => {}
            }
        }
        decision
    }

    /// Whether `tracestate` is good and belongs to this trace.
    pub(super) fn has_state_of(&self, trace: TraceId) -> bool {
        self.has_tracestate
            && self.tracestate.is_valid()
            && self
                .traceparent()
                .is_some_and(|parent| parent.trace == trace)
    }

    pub(super) fn present(&self) -> Present {
        let multi = [
            &self.trace,
            &self.span,
            &self.parent,
            &self.sampled,
            &self.flags,
        ];
        Present {
            traceparent: self.traceparent.count > 0,
            tracestate: self.has_tracestate,
            b3: self.b3.count > 0,
            b3_multi: multi.iter().any(|header| header.count > 0),
        }
    }

    fn traceparent(&self) -> Option<Parent> {
        self.traceparent.get().and_then(w3c::parse_traceparent)
    }
}

/// One header to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Edit<'a> {
    /// In place of all of that name.
    Replace(&'static str, &'a [u8]),
    /// There is none of that name.
    Add(&'static str, &'a [u8]),
    Remove(&'static str),
}

/// Where a trace goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Onward {
    pub(super) trace: TraceId,
    /// The client span.
    pub(super) span: SpanId,
    /// The span above it.
    pub(super) parent: SpanId,
    pub(super) flags: Flags,
    pub(super) present: Present,
    pub(super) keeps_tracestate: bool,
}

impl Onward {
    /// Shows each header to be written. They are as long each time, so that those of another attempt
    /// fit where the first one's are.
    pub(super) fn each_edit(&self, formats: &[TraceFormat], mut edit: impl FnMut(Edit<'_>)) {
        let Self {
            trace,
            span,
            parent,
            flags,
            present,
            ..
        } = *self;
        for format in formats {
            match format {
                TraceFormat::TraceContext => {
                    let value = w3c::write_traceparent(trace, span, flags);
                    edit(set(present.traceparent, TRACEPARENT, &value));
                    if present.tracestate && !self.keeps_tracestate {
                        edit(Edit::Remove(TRACESTATE));
                    }
                }
                TraceFormat::B3 => {
                    let value = b3::write_single(trace, span, parent, flags);
                    edit(set(present.b3, B3, &value));
                }
                TraceFormat::B3Multi => {
                    let is_present = present.b3_multi;
                    edit(set(is_present, B3_TRACE, &trace.hex()));
                    edit(set(is_present, B3_SPAN, &span.hex()));
                    edit(set(is_present, B3_PARENT, &parent.hex()));
                    // Debug implies sampled, which is then not said (as B3 asks).
                    let (said, unsaid, value) = match flags {
                        Flags { is_debug: true, .. } => (B3_FLAGS, B3_SAMPLED, b"1"),
                        Flags {
                            is_sampled: true, ..
                        } => (B3_SAMPLED, B3_FLAGS, b"1"),
                        _ => (B3_SAMPLED, B3_FLAGS, b"0"),
                    };
                    edit(set(is_present, said, value));
                    if is_present {
                        edit(Edit::Remove(unsaid));
                    }
                }
            }
        }
    }

    /// Of the headers that [`Self::each_edit`] has written for `formats`.
    pub(super) fn written(&mut self, formats: &[TraceFormat]) {
        for format in formats {
            match format {
                TraceFormat::TraceContext => {
                    self.present.traceparent = true;
                    self.present.tracestate &= self.keeps_tracestate;
                }
                TraceFormat::B3 => self.present.b3 = true,
                TraceFormat::B3Multi => self.present.b3_multi = true,
            }
        }
    }
}

fn set<'a>(is_present: bool, name: &'static str, value: &'a [u8]) -> Edit<'a> {
    if is_present {
        Edit::Replace(name, value)
    } else {
        Edit::Add(name, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const OTHER: &str = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0";
    const ALL: [TraceFormat; 3] = [
        TraceFormat::TraceContext,
        TraceFormat::B3,
        TraceFormat::B3Multi,
    ];

    fn incoming<'a>(headers: &'a [(&str, &str)]) -> Incoming<'a> {
        let mut incoming = Incoming::default();
        for (name, value) in headers {
            incoming.visit(name.as_bytes(), value.as_bytes());
        }
        incoming
    }

    fn span_of(found: Option<Found>) -> Option<String> {
        match found {
            Some(Found::Parent(parent)) => Some(parent.span.to_string()),
            _ => None,
        }
    }

    #[test]
    fn the_first_format_that_has_a_trace_decides() {
        let headers = [("Traceparent", W3C), ("B3", OTHER)];
        let both = incoming(&headers);
        let first = |formats: &[TraceFormat]| span_of(both.extract(formats));
        assert_eq!(first(&ALL).as_deref(), Some("00f067aa0ba902b7"));
        let b3_first = [TraceFormat::B3, TraceFormat::TraceContext];
        assert_eq!(first(&b3_first).as_deref(), Some("e457b5a2e4d86bd1"));
        assert_eq!(first(&[TraceFormat::B3Multi]), None);
        assert_eq!(first(&[]), None);
    }

    #[test]
    fn a_broken_format_gives_way_to_the_next_and_a_decision_waits_for_a_trace() {
        let headers = [("traceparent", "00-0-0-0"), ("b3", OTHER)];
        let found = incoming(&headers).extract(&ALL);
        assert_eq!(span_of(found).as_deref(), Some("e457b5a2e4d86bd1"));
        let headers = [
            ("b3", "0"),
            ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
            ("x-b3-spanid", "e457b5a2e4d86bd1"),
        ];
        assert!(span_of(incoming(&headers).extract(&ALL)).is_some());
        let found = incoming(&headers[..1]).extract(&ALL);
        assert_eq!(found, Some(Found::decision(false, false)));
    }

    #[test]
    fn a_header_that_is_there_twice_says_nothing() {
        let headers = [("traceparent", W3C), ("traceparent", W3C)];
        assert_eq!(incoming(&headers).extract(&ALL), None);
    }

    #[test]
    fn a_tracestate_belongs_to_its_traceparent() {
        let headers = [("traceparent", W3C), ("tracestate", "a=1")];
        let Some(Found::Parent(parent)) = incoming(&headers).extract(&ALL) else {
            panic!("a parent");
        };
        assert!(incoming(&headers).has_state_of(parent.trace));
        assert!(!incoming(&headers).has_state_of(TraceId::new(1).unwrap()));
        let broken = [("traceparent", W3C), ("tracestate", "a")];
        assert!(!incoming(&broken).has_state_of(parent.trace));
        assert!(!incoming(&headers[1..]).has_state_of(parent.trace));
    }

    #[test]
    fn a_grpc_call_is_known_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers = [("Content-Type", value)];
            assert_eq!(incoming(&headers).is_grpc, expected, "{value}");
        }
    }

    fn onward(is_sampled: bool, is_debug: bool) -> Onward {
        Onward {
            trace: TraceId::new(1).unwrap(),
            span: SpanId::new(2).unwrap(),
            parent: SpanId::new(3).unwrap(),
            flags: Flags {
                is_sampled,
                is_random: true,
                is_debug,
            },
            present: Present::default(),
            keeps_tracestate: false,
        }
    }

    /// The headers that a receiver finds.
    fn applied(onward: &Onward, mut headers: Vec<(String, String)>) -> Vec<(String, String)> {
        onward.each_edit(&ALL, |edit| match edit {
            Edit::Add(name, value) | Edit::Replace(name, value) => {
                headers.retain(|(n, _)| n != name);
                headers.push((name.into(), String::from_utf8(value.into()).unwrap()));
            }
            Edit::Remove(name) => headers.retain(|(n, _)| n != name),
        });
        headers
    }

    #[test]
    fn every_format_tells_a_receiver_the_same() {
        for (is_sampled, is_debug) in [(false, false), (true, false), (true, true)] {
            let onward = onward(is_sampled, is_debug);
            let headers = applied(&onward, Vec::new());
            let headers: Vec<_> = headers.iter().map(|(n, v)| (&**n, &**v)).collect();
            let incoming = incoming(&headers);
            for format in ALL {
                let Some(Found::Parent(parent)) = incoming.extract(&[format]) else {
                    panic!("{format:?}: {headers:?}");
                };
                assert_eq!((parent.trace, parent.span), (onward.trace, onward.span));
                assert_eq!(parent.sampled, Some(is_sampled), "{format:?}");
                let expected = is_debug && format != TraceFormat::TraceContext;
                assert_eq!(parent.is_debug, expected, "{format:?}");
            }
        }
    }

    #[test]
    fn a_tracestate_of_another_trace_does_not_go_on() {
        let mut onward = onward(true, false);
        onward.present.tracestate = true;
        let state = vec![("tracestate".to_owned(), "a=1".to_owned())];
        assert!(!applied(&onward, state.clone()).contains(&state[0]));
        onward.keeps_tracestate = true;
        assert!(applied(&onward, state.clone()).contains(&state[0]));
    }

    #[test]
    fn what_was_written_is_replaced_the_next_time() {
        let mut onward = onward(true, false);
        onward.written(&ALL);
        let mut added = 0;
        onward.each_edit(&ALL, |edit| {
            added += usize::from(matches!(edit, Edit::Add(..)))
        });
        assert_eq!(added, 0);
    }
}
