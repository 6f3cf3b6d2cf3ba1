//! The numbers that name traces and spans.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    num::{NonZeroU64, NonZeroU128},
};

use crate::cluster::Rng;

/// Never zero, which W3C and OTLP take for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(NonZeroU128);

/// Never zero either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(NonZeroU64);

/// What logs and metrics tell of a request's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceIds {
    pub trace: TraceId,
    /// The server span.
    pub span: SpanId,
    /// Whether the collector has it, or will.
    pub is_exported: bool,
}

/// Draws ids for one worker.
#[derive(Debug)]
pub(crate) struct Ids {
    rng: Rng,
    /// Keeps the traces of two generators apart that happen upon the same numbers: all of this kind
    /// walk one circle of 2^64.
    salt: u64,
}

impl Ids {
    /// Seeded by the system's randomness.
    pub(crate) fn new() -> Self {
        let random = RandomState::new();
        Self::seeded(random.hash_one(0), random.hash_one(1))
    }

    pub(super) fn seeded(seed: u64, salt: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            salt,
        }
    }

    pub(super) fn trace(&self) -> TraceId {
        loop {
            let high = Rng::new(self.rng.next() ^ self.salt).next();
            let id = u128::from(high) << 64 | u128::from(self.rng.next());
            if let Some(id) = TraceId::new(id) {
                return id;
            }
        }
    }

    pub(super) fn span(&self) -> SpanId {
        loop {
            if let Some(id) = SpanId::new(self.rng.next()) {
                return id;
            }
        }
    }
}

impl TraceId {
    pub fn new(id: u128) -> Option<Self> {
        NonZeroU128::new(id).map(Self)
    }

    pub fn number(self) -> u128 {
        self.0.get()
    }

    /// From 32 lower-case digits.
    pub fn parse(hex: &[u8]) -> Option<Self> {
        (hex.len() == 32).then(|| Self::new(number(hex)?))?
    }

    /// From 16 digits: the lower half of an id whose upper half is zero, as OpenTelemetry reads B3's
    /// short form.
    pub fn parse_short(hex: &[u8]) -> Option<Self> {
        (hex.len() == 16).then(|| Self::new(number(hex)?))?
    }

    pub fn hex(self) -> [u8; 32] {
        let mut hex = [0; 32];
        write_hex(self.number(), &mut hex);
        hex
    }
}

impl SpanId {
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    pub fn number(self) -> u64 {
        self.0.get()
    }

    /// From 16 lower-case digits.
    pub fn parse(hex: &[u8]) -> Option<Self> {
        (hex.len() == 16).then(|| Self::new(number(hex)? as u64))?
    }

    pub fn hex(self) -> [u8; 16] {
        let mut hex = [0; 16];
        write_hex(self.number().into(), &mut hex);
        hex
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.number())
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.number())
    }
}

/// What at most 32 lower-case digits stand for.
pub(super) fn number(hex: &[u8]) -> Option<u128> {
    let mut number = 0;
    for digit in hex {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    Some(number)
}

/// Fills `hex` with the last digits of `number`.
pub(super) fn write_hex(mut number: u128, hex: &mut [u8]) {
    for digit in hex.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn workers_on_the_same_numbers_draw_other_traces() {
        let (one, other) = (Ids::seeded(1, 2), Ids::seeded(1, 3));
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            assert!(seen.insert(one.trace().number()));
            assert!(seen.insert(other.trace().number()));
        }
    }

    #[test]
    fn digits_are_lower_case_and_not_all_zero() {
        for wrong in [
            "",
            "0",
            "000000000000000A",
            "000000000000000g",
            "0000000000000000",
        ] {
            assert_eq!(SpanId::parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(TraceId::parse(&[b'0'; 32]), None);
        assert_eq!(TraceId::parse(&[b'a'; 31]), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(trace in 1_u128.., span in 1_u64..) {
            let trace = TraceId::new(trace).unwrap();
            let span = SpanId::new(span).unwrap();
            prop_assert_eq!(TraceId::parse(&trace.hex()), Some(trace));
            prop_assert_eq!(SpanId::parse(&span.hex()), Some(span));
            prop_assert_eq!(trace.to_string().into_bytes(), trace.hex());
            prop_assert_eq!(span.to_string().into_bytes(), span.hex());
        }
    }
}
