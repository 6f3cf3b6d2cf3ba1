//! Samples as a profile that `go tool pprof` and others read.
//! <https://github.com/google/pprof/blob/main/proto/profile.proto>

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::protobuf::Message;
use crate::sys::Samples;

// Fields of `Profile`.
const SAMPLE_TYPE: u64 = 1;
const SAMPLE: u64 = 2;
const MAPPING: u64 = 3;
const LOCATION: u64 = 4;
const FUNCTION: u64 = 5;
const STRING_TABLE: u64 = 6;
const TIME_NANOS: u64 = 9;
const DURATION_NANOS: u64 = 10;
const PERIOD_TYPE: u64 = 11;
const PERIOD: u64 = 12;
const COMMENT: u64 = 13;

pub(super) fn encode(
    samples: &Samples,
    started: SystemTime,
    lasted: Duration,
    hertz: u64,
) -> Vec<u8> {
    let period = 1_000_000_000 / hertz;
    let mut tables = Tables::default();
    let mut profile = Message::default();
    for (kind, unit) in [("samples", "count"), ("cpu", "nanoseconds")] {
        let value_type = tables.value_type(kind, unit);
        profile.message(SAMPLE_TYPE, &value_type);
    }
    let mut counts: HashMap<&[usize], u64> = HashMap::new();
    for stack in samples.stacks() {
        *counts.entry(stack).or_default() += 1;
    }
    for (stack, count) in counts {
        let locations: Vec<u64> = stack
            .iter()
            .enumerate()
            // Of a caller the address is where it goes on, which may be another line.
            .map(|(depth, &address)| {
                tables.location(if depth == 0 { address } else { address - 1 })
            })
            .collect();
        let mut sample = Message::default();
        sample
            .packed(1, locations)
            .packed(2, [count, count * period]);
        profile.message(SAMPLE, &sample);
    }
    let mut mapping = Message::default();
    let program = std::env::current_exe().unwrap_or_default();
    let program = tables.string(&program.display().to_string());
    // Functions, files, lines and inlined frames are all told.
    mapping
        .number(1, 1)
        .number(5, program)
        .number(7, 1)
        .number(8, 1)
        .number(9, 1)
        .number(10, 1);
    profile.message(MAPPING, &mapping);
    let period_type = tables.value_type("cpu", "nanoseconds");
    if samples.lost() > 0 {
        let lost = tables.string(&format!(
            "{} samples beyond the buffer were lost",
            samples.lost()
        ));
        profile.packed(COMMENT, [lost]);
    }
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    profile
        .number(
            TIME_NANOS,
            nanos(started.duration_since(UNIX_EPOCH).unwrap_or_default()),
        )
        .number(DURATION_NANOS, nanos(lasted))
        .message(PERIOD_TYPE, &period_type)
        .number(PERIOD, period);
    tables.write(&mut profile);
    profile.into_bytes()
}

/// What samples refer to by number.
#[derive(Default)]
struct Tables {
    strings: Vec<String>,
    string_numbers: HashMap<String, u64>,
    functions: Vec<Message>,
    function_numbers: HashMap<(String, String), u64>,
    locations: Vec<Message>,
    location_numbers: HashMap<usize, u64>,
}

impl Tables {
    /// The table's first string is the empty one.
    fn string(&mut self, text: &str) -> u64 {
        if text.is_empty() {
            return 0;
        }
        if let Some(number) = self.string_numbers.get(text) {
            return *number;
        }
        self.strings.push(text.to_owned());
        let number = self.strings.len() as u64;
        self.string_numbers.insert(text.to_owned(), number);
        number
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> Message {
        let (kind, unit) = (self.string(kind), self.string(unit));
        let mut value_type = Message::default();
        value_type.number(1, kind).number(2, unit);
        value_type
    }

    fn location(&mut self, address: usize) -> u64 {
        if let Some(number) = self.location_numbers.get(&address) {
            return *number;
        }
        let mut lines = Vec::new();
        // Once for the function, and once for each that is inlined there, innermost first.
        backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
            let name = symbol
                .name()
                .map_or_else(String::new, |name| format!("{name:#}"));
            let file = symbol
                .filename()
                .map_or_else(String::new, |f| f.display().to_string());
            lines.push((name, file, symbol.lineno().unwrap_or(0)));
        });
        let number = self.locations.len() as u64 + 1;
        let mut location = Message::default();
        location
            .number(1, number)
            .number(2, 1)
            .number(3, address as u64);
        for (name, file, line) in lines {
            let function = self.function(name, file);
            let mut at = Message::default();
            at.number(1, function).number(2, line.into());
            location.message(4, &at);
        }
        self.locations.push(location);
        self.location_numbers.insert(address, number);
        number
    }

    fn function(&mut self, name: String, file: String) -> u64 {
        let key = (name, file);
        if let Some(number) = self.function_numbers.get(&key) {
            return *number;
        }
        let number = self.functions.len() as u64 + 1;
        let (name, file) = (self.string(&key.0), self.string(&key.1));
        let mut function = Message::default();
        function
            .number(1, number)
            .number(2, name)
            .number(3, name)
            .number(4, file);
        self.functions.push(function);
        self.function_numbers.insert(key, number);
        number
    }

    fn write(self, profile: &mut Message) {
        for location in &self.locations {
            profile.message(LOCATION, location);
        }
        for function in &self.functions {
            profile.message(FUNCTION, function);
        }
        profile.bytes(STRING_TABLE, b"");
        for string in &self.strings {
            profile.bytes(STRING_TABLE, string.as_bytes());
        }
    }
}
