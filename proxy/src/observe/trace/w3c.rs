//! W3C Trace Context (level 1, <https://www.w3.org/TR/trace-context-1/>, with the flag of level 2 that
//! calls a trace id random).

use super::{
    ids::{SpanId, TraceId, number, write_hex},
    propagation::{Flags, Parent},
};

/// Of version 00.
pub(super) const TRACEPARENT_LEN: usize = 55;

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// List members that a `tracestate` may have in all (section 3.3.1.1).
const MAX_MEMBERS: usize = 32;

/// What a `traceparent` says. One of a later version is read as far as version 00 goes (section
/// 3.2.2).
pub(super) fn parse_traceparent(value: &[u8]) -> Option<Parent> {
    let (ours, rest) = value.split_at_checked(TRACEPARENT_LEN)?;
    let version = number(&ours[..2])?;
    let is_whole = match version {
        0xff => false,
        0 => rest.is_empty(),
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let has_dashes = [2, 35, 52].iter().all(|at| ours[*at] == b'-');
    if !is_whole || !has_dashes {
        return None;
    }
    let flags = number(&ours[53..55])? as u8;
    Some(Parent {
        trace: TraceId::parse(&ours[3..35])?,
        span: SpanId::parse(&ours[36..52])?,
        sampled: Some(flags & SAMPLED != 0),
        is_random: version == 0 && flags & RANDOM != 0,
        is_debug: false,
    })
}

pub(super) fn write_traceparent(
    trace: TraceId,
    span: SpanId,
    flags: Flags,
) -> [u8; TRACEPARENT_LEN] {
    let mut value = *b"00-................................-................-..";
    value[3..35].copy_from_slice(&trace.hex());
    value[36..52].copy_from_slice(&span.hex());
    write_hex(flags_byte(flags).into(), &mut value[53..55]);
    value
}

/// `trace-flags` as W3C has them.
pub(super) fn flags_byte(flags: Flags) -> u8 {
    let sampled = if flags.is_sampled { SAMPLED } else { 0 };
    let random = if flags.is_random { RANDOM } else { 0 };
    sampled | random
}

/// What has been seen of a request's `tracestate` lines, which are one list together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TraceState {
    members: usize,
    is_invalid: bool,
}

impl TraceState {
    pub(super) fn visit(&mut self, value: &[u8]) {
        for member in value.split(|b| *b == b',') {
            let member = trim(member);
            // Empty members are allowed, for lists that were put together.
            if member.is_empty() {
                continue;
            }
            self.members += 1;
            if self.members > MAX_MEMBERS || !is_member(member) {
                self.is_invalid = true;
                return;
            }
        }
    }

    /// An invalid one is not sent on.
    pub(super) fn is_valid(self) -> bool {
        !self.is_invalid
    }
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn is_member(member: &[u8]) -> bool {
    let Some(at) = memchr::memchr(b'=', member) else {
        return false;
    };
    let (key, value) = (&member[..at], &member[at + 1..]);
    let is_value = |b: &u8| matches!(b, b' '..=b'~') && !matches!(b, b',' | b'=');
    is_key(key)
        && (1..=256).contains(&value.len())
        && value.iter().all(is_value)
        && !value.ends_with(b" ")
}

/// `name`, or `tenant@system`.
fn is_key(key: &[u8]) -> bool {
    let is_rest = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
    let is_part = |part: &[u8], max: usize, may_begin_with_digit: bool| {
        let begins = match part.first() {
            Some(b'a'..=b'z') => true,
            Some(b'0'..=b'9') => may_begin_with_digit,
            _ => false,
        };
        begins && part.len() <= max && part.iter().all(is_rest)
    };
    match memchr::memchr(b'@', key) {
        None => is_part(key, 256, false),
        Some(at) => is_part(&key[..at], 241, true) && is_part(&key[at + 1..], 14, false),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(value: &str) -> Option<Parent> {
        parse_traceparent(value.as_bytes())
    }

    fn is_valid(lines: &[&str]) -> bool {
        let mut state = TraceState::default();
        lines.iter().for_each(|line| state.visit(line.as_bytes()));
        state.is_valid()
    }

    #[test]
    fn a_traceparent_is_read() {
        let parent = parse(GOOD).unwrap();
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span.to_string(), "00f067aa0ba902b7");
        assert_eq!((parent.sampled, parent.is_random), (Some(true), false));
        let flags = |flags| parse(&GOOD.replace("-01", flags)).unwrap();
        assert_eq!(flags("-00").sampled, Some(false));
        assert_eq!(flags("-02").sampled, Some(false));
        assert!(flags("-03").is_random);
        // Flags that nobody has defined say nothing.
        assert_eq!(flags("-fd").sampled, Some(true));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = GOOD.replacen("00", "cc", 1);
        assert!(parse(&later).is_some());
        assert!(parse(&format!("{later}-what-the-future-brings")).is_some());
        assert!(parse(&format!("{later}.what")).is_none());
        assert!(parse(&later[..54]).is_none());
        let flags = later.replace("-01", "-03");
        assert!(!parse(&flags).unwrap().is_random, "a flag of version 00");
    }

    #[test]
    fn what_the_specification_forbids_is_no_traceparent() {
        for wrong in [
            "",
            "00",
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "FE", 1),
            &GOOD.replacen("00", "0g", 1),
            &format!("{GOOD}-"),
            &format!("{GOOD}0"),
            &format!(" {GOOD}"),
            &GOOD[1..],
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_tracestate_is_a_list_of_keys_and_values() {
        for good in [
            &[][..],
            &[""],
            &["a=1"],
            &["a=1,b=2", "c=3"],
            &["foo=1 , ,\tbar=2,"],
            &["0tenant@system=x", "a_-*/9=!~"],
            &[&format!("{}={}", "a".repeat(256), "v".repeat(256))],
            &[&format!("{}@{}=v", "t".repeat(241), "s".repeat(14))],
            &["a=1,a=2"],
        ] {
            assert!(is_valid(good), "{good:?}");
        }
        for wrong in [
            &["a"][..],
            &["=1"],
            &["a="],
            &["A=1"],
            &["9=1"],
            &["a=1=2"],
            &["a =1"],
            &["a@=1"],
            &["@a=1"],
            &["a@9=1"],
            &["a@b@c=1"],
            &["a=\u{e9}"],
            &[&format!("{}=v", "a".repeat(257))],
            &[&format!("a={}", "v".repeat(257))],
            &[&format!("{}@s=v", "t".repeat(242))],
            &[&format!("t@{}=v", "s".repeat(15))],
        ] {
            assert!(!is_valid(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn no_more_than_32_members_over_all_lines() {
        let members = |count| vec!["a=1"; count].join(",");
        assert!(is_valid(&[&members(32)]));
        assert!(!is_valid(&[&members(33)]));
        assert!(!is_valid(&[&members(20), &members(13)]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            trace in 1_u128..,
            span in 1_u64..,
            is_sampled: bool,
            is_random: bool,
        ) {
            let (trace, span) = (TraceId::new(trace).unwrap(), SpanId::new(span).unwrap());
            let flags = Flags { is_sampled, is_random, is_debug: false };
            let read = parse_traceparent(&write_traceparent(trace, span, flags)).unwrap();
            prop_assert_eq!((read.trace, read.span), (trace, span));
            prop_assert_eq!((read.sampled, read.is_random), (Some(is_sampled), is_random));
        }

        #[test]
        fn hostile_bytes_are_taken_by_nobody(value: Vec<u8>, at in 0..55_usize, byte: u8) {
            let _ = parse_traceparent(&value);
            let mut state = TraceState::default();
            state.visit(&value);
            // One byte changed: read still, or refused, and never another length.
            let mut value = GOOD.as_bytes().to_vec();
            value[at] = byte;
            if let Some(read) = parse_traceparent(&value) {
                let flags = Flags {
                    is_sampled: read.sampled == Some(true),
                    is_random: read.is_random,
                    is_debug: false,
                };
                let written = write_traceparent(read.trace, read.span, flags);
                prop_assert_eq!(&written[3..52], &value[3..52]);
            }
        }
    }
}
