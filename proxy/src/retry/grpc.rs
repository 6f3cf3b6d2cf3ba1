//! What of gRPC a proxy has to know ("gRPC over HTTP/2", `PROTOCOL-HTTP2.md` of the gRPC project):
//! which requests are gRPC, their deadline, and the status in a head that is all of the answer.

use std::time::Duration;

use outrigger_config::Headers;

pub const TIMEOUT: &str = "grpc-timeout";

/// Whether a request with this `content-type` is gRPC.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The status that the head of an answer carries, which then has nothing but trailers.
pub fn status(headers: &dyn Headers) -> Option<u32> {
    let mut status = None;
    headers.each("grpc-status", &mut |value| {
        let text = std::str::from_utf8(value).unwrap_or_default();
        status = status.or(text.parse().ok());
    });
    status
}

/// The largest number of a `grpc-timeout`, eight digits.
const MOST: u128 = 99_999_999;

/// The units of a `grpc-timeout` in nanoseconds, the finest first.
const UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// Reads a `grpc-timeout`; none if it is not one.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, nanos) = UNITS.iter().find(|(letter, _)| letter == unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0, |n, digit| n * 10 + u128::from(digit - b'0'));
    Some(from_nanos(number * nanos))
}

/// Writes one, in the finest unit that holds it; what is left over is cut off, so that it is never
/// longer than `timeout`.
pub fn format_timeout(timeout: Duration) -> String {
    let nanos = timeout.as_nanos();
    let (unit, number) = UNITS
        .iter()
        .map(|(unit, length)| (unit, nanos / length))
        .find(|(_, number)| *number <= MOST)
        .unwrap_or((&b'H', MOST));
    format!("{number}{}", char::from(*unit))
}

fn from_nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    // At most 99,999,999 hours, whose seconds fit.
    Duration::new((nanos / SECOND) as u64, (nanos % SECOND) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for yes in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=y",
        ] {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in [
            "application/grpc-web",
            "application/json",
            "",
            "application/grpcx",
        ] {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn every_unit_is_read() {
        for (text, nanos) in [
            ("1H", 3_600_000_000_000_u64),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("6n", 6),
            ("0n", 0),
        ] {
            let read = parse_timeout(text.as_bytes());
            assert_eq!(read, Some(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_no_timeout_is_none() {
        for text in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "123456789S",
            "1.5S",
            " 1S",
            "1 S",
        ] {
            assert_eq!(parse_timeout(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_finest_unit_that_holds_it_is_written() {
        assert_eq!(
            format_timeout(Duration::from_nanos(99_999_999)),
            "99999999n"
        );
        assert_eq!(format_timeout(Duration::from_nanos(100_000_000)), "100000u");
        assert_eq!(format_timeout(Duration::from_secs(15)), "15000000u");
        assert_eq!(format_timeout(Duration::from_secs(3600)), "3600000m");
        assert_eq!(format_timeout(Duration::MAX), "99999999H");
        assert_eq!(format_timeout(Duration::ZERO), "0n");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_never_longer(nanos in 0..u64::MAX) {
            let timeout = Duration::from_nanos(nanos);
            let read = parse_timeout(format_timeout(timeout).as_bytes()).expect("it is one");
            prop_assert!(read <= timeout);
            // Eight digits: never shorter by more than a hundred-thousandth of it.
            prop_assert!(timeout - read <= timeout / 100_000);
        }

        #[test]
        fn anything_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let _ = parse_timeout(&bytes);
        }
    }
}
