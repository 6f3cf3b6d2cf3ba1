//! What the kernel hands over of rules and sets, decoded, printed and judged: nothing may panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_iptables::ruleset::digest(bytes));
