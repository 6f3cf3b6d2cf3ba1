//! How many requests ended how: protocol, status code and failure, counted sparsely, since a
//! destination meets a handful of some ten thousand combinations.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{cell::Cell, reason};
use crate::observe::{Protocol, Record};

/// Combinations in one block; a healthy destination meets one to four.
const BLOCK: usize = 6;

/// Combinations that a destination may have before further status codes are counted as `other`:
/// a hostile server could otherwise make up hundreds.
const MAX_DISTINCT: usize = 8 * BLOCK;

/// How one request ended, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Outcome(NonZeroU32);

/// Bits of an outcome: 4 for the protocol, 12 for the code, 8 for the failure's number plus 1.
const REASON_BITS: u32 = 8;
const CODE_BITS: u32 = 12;
const CODE_MASK: u32 = (1 << CODE_BITS) - 1;
/// No status code has it.
const OTHER_CODE: u32 = 1;
/// Keeps an outcome from being 0, which marks an empty place.
const PRESENT: u32 = 1 << 31;

impl Outcome {
    pub(super) fn of(record: &Record<'_>) -> Self {
        let protocol = match record.protocol {
            Protocol::Http1 => 0,
            Protocol::Http2 => 1,
            Protocol::Tls => 2,
            Protocol::Opaque => 3,
        };
        let code = match record.status {
            None => 0,
            Some(code @ 100..=599) => u32::from(code),
            Some(_) => OTHER_CODE,
        };
        let reason = record.failure.map_or(0, |f| reason::number(f) as u32 + 1);
        Self::packed(protocol, code, reason)
    }

    pub(crate) fn protocol(self) -> &'static str {
        let protocols = [
            Protocol::Http1,
            Protocol::Http2,
            Protocol::Tls,
            Protocol::Opaque,
        ];
        protocols[((self.0.get() & !PRESENT) >> (CODE_BITS + REASON_BITS)) as usize].label()
    }

    /// The status code, `other`, or `none`.
    pub(crate) fn code(self) -> String {
        match (self.0.get() >> REASON_BITS) & CODE_MASK {
            0 => "none".into(),
            OTHER_CODE => "other".into(),
            code => code.to_string(),
        }
    }

    /// Whether it ended with a failure of whichever side.
    pub(crate) fn is_failure(self) -> bool {
        self.0.get() & ((1 << REASON_BITS) - 1) != 0
    }

    /// Whether a server answered with 5xx.
    pub(crate) fn is_server_error(self) -> bool {
        !self.is_failure() && (self.0.get() >> REASON_BITS) & CODE_MASK >= 500
    }

    /// The failure's label, or `none`.
    pub(crate) fn reason(self) -> &'static str {
        match self.0.get() & ((1 << REASON_BITS) - 1) {
            0 => "none",
            number => reason::label(number as usize - 1),
        }
    }

    fn packed(protocol: u32, code: u32, reason: u32) -> Self {
        let bits = PRESENT | protocol << (CODE_BITS + REASON_BITS) | code << REASON_BITS | reason;
        Self(NonZeroU32::new(bits).expect("the uppermost bit is set"))
    }

    fn with_other_code(self) -> Self {
        let bits = self.0.get() & !(CODE_MASK << REASON_BITS) | OTHER_CODE << REASON_BITS;
        Self(NonZeroU32::new(bits).expect("the uppermost bit is set"))
    }
}

/// Counts by outcome. One thread writes; readers see a key only after its count.
#[derive(Debug, Default)]
pub(super) struct OutcomeCells {
    keys: [AtomicU32; BLOCK],
    counts: [Cell; BLOCK],
    more: OnceLock<Box<OutcomeCells>>,
}

impl OutcomeCells {
    pub(super) fn add(&self, outcome: Outcome) {
        if !self.add_within(outcome, MAX_DISTINCT) {
            self.add_within(outcome.with_other_code(), usize::MAX);
        }
    }

    /// Adds each count to `sums`.
    pub(super) fn collect(&self, sums: &mut BTreeMap<Outcome, u64>) {
        let mut block = Some(self);
        while let Some(cells) = block {
            for (key, count) in cells.keys.iter().zip(&cells.counts) {
                match NonZeroU32::new(key.load(Ordering::Acquire)) {
                    Some(key) => *sums.entry(Outcome(key)).or_default() += count.value(),
                    None => return,
                }
            }
            block = cells.more.get().map(Box::as_ref);
        }
    }

    /// False if the outcome is new and `max_distinct` others are known.
    fn add_within(&self, outcome: Outcome, max_distinct: usize) -> bool {
        let wanted = outcome.0.get();
        let mut block = self;
        let mut distinct = 0;
        loop {
            for (key, count) in block.keys.iter().zip(&block.counts) {
                let seen = key.load(Ordering::Relaxed);
                if seen == wanted {
                    count.add(1);
                    return true;
                }
                if seen == 0 {
                    count.add(1);
                    key.store(wanted, Ordering::Release);
                    return true;
                }
            }
            distinct += BLOCK;
            if distinct >= max_distinct {
                return false;
            }
            block = block.more.get_or_init(Box::default);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(cells: &OutcomeCells) -> BTreeMap<Outcome, u64> {
        let mut sums = BTreeMap::new();
        cells.collect(&mut sums);
        sums
    }

    #[test]
    fn packs_and_tells_each_part() {
        let outcome = Outcome::packed(1, 503, reason::COUNT as u32);
        assert_eq!(outcome.protocol(), "http2");
        assert_eq!(outcome.code(), "503");
        assert_eq!(outcome.reason(), reason::label(reason::COUNT - 1));
        let plain = Outcome::packed(3, 0, 0);
        assert_eq!(
            (plain.protocol(), plain.code().as_str(), plain.reason()),
            ("opaque", "none", "none")
        );
    }

    #[test]
    fn a_hostile_server_cannot_make_up_series_without_end_and_no_count_is_lost() {
        let cells = OutcomeCells::default();
        for code in 100..600 {
            cells.add(Outcome::packed(0, code, 0));
        }
        let sums = collected(&cells);
        assert!(sums.len() <= MAX_DISTINCT + 1, "{}", sums.len());
        assert_eq!(sums.values().sum::<u64>(), 500);
        assert_eq!(
            sums[&Outcome::packed(0, OTHER_CODE, 0)],
            500 - MAX_DISTINCT as u64
        );
        cells.add(Outcome::packed(0, 100, 0));
        assert_eq!(collected(&cells)[&Outcome::packed(0, 100, 0)], 2);
    }
}
