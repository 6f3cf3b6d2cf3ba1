//! What a collector's answer means.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER};

use super::{
    super::protobuf::{Fields, Value},
    GRPC_PREFIX,
};

/// Bytes of a collector's own words that are logged.
const MAX_MESSAGE: usize = 200;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// All but those that it says it rejected.
    Taken { rejected: u64, message: String },
    /// It may be sent again.
    Retry {
        after: Option<Duration>,
        why: String,
    },
    /// It would be refused again.
    Refused(String),
}

impl Answer {
    pub(super) fn retry(why: impl Into<String>) -> Self {
        Self::Retry {
            after: None,
            why: why.into(),
        }
    }
}

/// Of OTLP over HTTP.
pub(super) fn of_http(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    if status.is_success() {
        return of_message(body);
    }
    let why = format!("HTTP status {}", status.as_u16());
    match status.as_u16() {
        429 | 502 | 503 | 504 => Answer::Retry {
            after: headers.get(RETRY_AFTER).and_then(seconds),
            why,
        },
        _ => Answer::Refused(why),
    }
}

/// Of OTLP over gRPC; the status is in the trailers, or in the head if there is no more.
pub(super) fn of_grpc(
    status: StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
    body: &[u8],
) -> Answer {
    if status != StatusCode::OK {
        return of_http(status, headers, body);
    }
    let said = |name: &str| {
        trailers
            .and_then(|t| t.get(name))
            .or_else(|| headers.get(name))
    };
    let Some(code) = said("grpc-status") else {
        return Answer::retry("an answer without grpc-status");
    };
    let words = said("grpc-message").map_or("", |m| m.to_str().unwrap_or_default());
    let why = format!(
        "grpc-status {}: {}",
        code.to_str().unwrap_or("?"),
        shown(words)
    );
    match code.as_bytes() {
        b"0" => of_message(body.get(GRPC_PREFIX..).unwrap_or_default()),
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
        b"1" | b"4" | b"10" | b"11" | b"14" | b"15" => Answer::retry(why),
        // RESOURCE_EXHAUSTED passes only if the collector says when (RetryInfo), for which there are
        // such details.
        b"8" if said("grpc-status-details-bin").is_some() => Answer::retry(why),
        _ => Answer::Refused(why),
    }
}

/// `ExportTraceServiceResponse { partial_success = 1 { rejected_spans = 1, error_message = 2 } }`
fn of_message(message: &[u8]) -> Answer {
    let (mut rejected, mut words) = (0, String::new());
    for field in Fields::of(message) {
        let (1, Value::Bytes(partial)) = field else {
            continue;
        };
        for field in Fields::of(partial) {
            match field {
                (1, Value::Number(count)) => rejected = count,
                (2, Value::Bytes(text)) => words = shown(&String::from_utf8_lossy(text)),
                _ => {}
            }
        }
    }
    // A number below zero makes no sense, and is as large as can be here.
    let rejected = if i64::try_from(rejected).is_ok() {
        rejected
    } else {
        0
    };
    Answer::Taken {
        rejected,
        message: format!("the collector rejected {rejected} spans: {words}"),
    }
}

/// What came from outside, fit for a log line.
fn shown(words: &str) -> String {
    let cut = &words[..words.floor_char_boundary(MAX_MESSAGE)];
    cut.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::observe::trace::protobuf::Message;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(n, v)| (n.parse().expect("a name"), HeaderValue::from_static(v)))
            .collect()
    }

    fn partial(rejected: u64, words: &str) -> Vec<u8> {
        let mut out = Vec::new();
        Message::new(&mut out).nested(1, |partial| {
            partial.varint(1, rejected);
            partial.bytes(2, words.as_bytes());
        });
        out
    }

    #[test]
    fn http_statuses_sort_into_retry_and_refusal() {
        let of = |status: u16, pairs: &[(&'static str, &'static str)]| {
            of_http(StatusCode::from_u16(status).unwrap(), &headers(pairs), b"")
        };
        assert!(matches!(of(200, &[]), Answer::Taken { rejected: 0, .. }));
        for status in [429, 502, 503, 504] {
            assert!(matches!(of(status, &[]), Answer::Retry { after: None, .. }));
        }
        for status in [301, 400, 401, 404, 413, 500, 501] {
            assert!(matches!(of(status, &[]), Answer::Refused(_)), "{status}");
        }
        let Answer::Retry { after, .. } = of(503, &[("retry-after", "7")]) else {
            panic!("it asks for a pause");
        };
        assert_eq!(after, Some(Duration::from_secs(7)));
        let date = [("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")];
        assert!(matches!(of(503, &date), Answer::Retry { after: None, .. }));
    }

    #[test]
    fn grpc_codes_sort_into_retry_and_refusal() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            of_grpc(
                StatusCode::OK,
                &HeaderMap::new(),
                Some(&headers(pairs)),
                b"",
            )
        };
        assert!(matches!(of(&[("grpc-status", "0")]), Answer::Taken { .. }));
        for code in ["1", "4", "10", "11", "14", "15"] {
            assert!(matches!(of(&[("grpc-status", code)]), Answer::Retry { .. }));
        }
        for code in ["2", "3", "5", "7", "8", "12", "13", "16", "x"] {
            assert!(matches!(of(&[("grpc-status", code)]), Answer::Refused(_)));
        }
        let exhausted = [("grpc-status", "8"), ("grpc-status-details-bin", "x")];
        assert!(matches!(of(&exhausted), Answer::Retry { .. }));
        assert!(matches!(of(&[]), Answer::Retry { .. }));
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        let answer = of_grpc(unavailable, &HeaderMap::new(), None, b"");
        assert!(matches!(answer, Answer::Retry { .. }));
    }

    #[test]
    fn a_partial_success_is_read_and_its_words_are_tame() {
        let body = partial(3, "too\nlate");
        let Answer::Taken { rejected, message } = of_http(StatusCode::OK, &HeaderMap::new(), &body)
        else {
            panic!("it is taken");
        };
        assert_eq!(rejected, 3);
        assert!(message.ends_with("too late"), "{message}");
        let body = partial(u64::MAX, "");
        let answer = of_http(StatusCode::OK, &HeaderMap::new(), &body);
        assert!(matches!(answer, Answer::Taken { rejected: 0, .. }));
    }

    proptest! {
        #[test]
        fn hostile_answers_are_answers(body: Vec<u8>, status in 200_u16..600) {
            let status = StatusCode::from_u16(status).unwrap();
            let _ = of_http(status, &HeaderMap::new(), &body);
            let trailers = headers(&[("grpc-status", "0")]);
            let _ = of_grpc(status, &HeaderMap::new(), Some(&trailers), &body);
        }
    }
}
