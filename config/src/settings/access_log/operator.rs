//! Format strings: text with Envoy's command operators in it, `%NAME%`, `%NAME(argument)%`,
//! `%NAME(argument):MAX_LENGTH%`; `%%` is a percent sign.

use std::fmt;

use crate::problem::meant;

/// A part of a format string.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Literal(Box<str>),
    Operator {
        operator: Operator,
        /// Characters shown at most.
        max_length: Option<usize>,
    },
}

/// What a line can tell. The names are Envoy's, and so is what they mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Operator {
    StartTime(TimeFormat),
    Protocol,
    Method,
    Path,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ResponseFlagsLong,
    BytesReceived,
    BytesSent,
    Duration,
    ResponseDuration,
    ResponseTxDuration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocalAddress,
    UpstreamConnectionReused,
    UpstreamRequestAttemptCount,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamRemotePort,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    RequestedServerName,
    RouteName,
    TraceId,
    ConnectionId,
    GrpcStatus,
    GrpcStatusNumber,
    Hostname,
    Instance,
    Decision,
    Header(HeaderOf, HeaderNames),
}

/// Where a header stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderOf {
    Request,
    Response,
    Trailer,
}

/// `X?Y`: the header X, or Y where there is no X. In lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    pub name: Box<str>,
    pub otherwise: Option<Box<str>>,
}

/// How a time is written: strftime's conversions, or RFC 3339 with milliseconds in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeFormat(pub Option<Box<str>>);

/// Why a format string is none: `at` counts the characters before what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    pub at: usize,
    pub message: String,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FormatError {}

/// What an operator takes in parentheses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Time,
    Header(HeaderOf),
}

/// Every operator's name.
pub const OPERATORS: [&str; 36] = {
    let mut names = [""; 36];
    let mut at = 0;
    while at < names.len() {
        names[at] = KNOWN[at].0;
        at += 1;
    }
    names
};

const KNOWN: [(&str, Takes, Operator); 36] = [
    (
        "START_TIME",
        Takes::Time,
        Operator::StartTime(TimeFormat(None)),
    ),
    ("PROTOCOL", Takes::Nothing, Operator::Protocol),
    ("METHOD", Takes::Nothing, Operator::Method),
    ("PATH", Takes::Nothing, Operator::Path),
    ("RESPONSE_CODE", Takes::Nothing, Operator::ResponseCode),
    (
        "RESPONSE_CODE_DETAILS",
        Takes::Nothing,
        Operator::ResponseCodeDetails,
    ),
    ("RESPONSE_FLAGS", Takes::Nothing, Operator::ResponseFlags),
    (
        "RESPONSE_FLAGS_LONG",
        Takes::Nothing,
        Operator::ResponseFlagsLong,
    ),
    ("BYTES_RECEIVED", Takes::Nothing, Operator::BytesReceived),
    ("BYTES_SENT", Takes::Nothing, Operator::BytesSent),
    ("DURATION", Takes::Nothing, Operator::Duration),
    (
        "RESPONSE_DURATION",
        Takes::Nothing,
        Operator::ResponseDuration,
    ),
    (
        "RESPONSE_TX_DURATION",
        Takes::Nothing,
        Operator::ResponseTxDuration,
    ),
    ("UPSTREAM_HOST", Takes::Nothing, Operator::UpstreamHost),
    (
        "UPSTREAM_CLUSTER",
        Takes::Nothing,
        Operator::UpstreamCluster,
    ),
    (
        "UPSTREAM_LOCAL_ADDRESS",
        Takes::Nothing,
        Operator::UpstreamLocalAddress,
    ),
    (
        "UPSTREAM_CONNECTION_REUSED",
        Takes::Nothing,
        Operator::UpstreamConnectionReused,
    ),
    (
        "UPSTREAM_REQUEST_ATTEMPT_COUNT",
        Takes::Nothing,
        Operator::UpstreamRequestAttemptCount,
    ),
    (
        "DOWNSTREAM_REMOTE_ADDRESS",
        Takes::Nothing,
        Operator::DownstreamRemoteAddress,
    ),
    (
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        Takes::Nothing,
        Operator::DownstreamRemoteAddressWithoutPort,
    ),
    (
        "DOWNSTREAM_REMOTE_PORT",
        Takes::Nothing,
        Operator::DownstreamRemotePort,
    ),
    (
        "DOWNSTREAM_LOCAL_ADDRESS",
        Takes::Nothing,
        Operator::DownstreamLocalAddress,
    ),
    (
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        Takes::Nothing,
        Operator::DownstreamLocalAddressWithoutPort,
    ),
    (
        "DOWNSTREAM_LOCAL_PORT",
        Takes::Nothing,
        Operator::DownstreamLocalPort,
    ),
    (
        "REQUESTED_SERVER_NAME",
        Takes::Nothing,
        Operator::RequestedServerName,
    ),
    ("ROUTE_NAME", Takes::Nothing, Operator::RouteName),
    ("TRACE_ID", Takes::Nothing, Operator::TraceId),
    ("CONNECTION_ID", Takes::Nothing, Operator::ConnectionId),
    ("GRPC_STATUS", Takes::Nothing, Operator::GrpcStatus),
    (
        "GRPC_STATUS_NUMBER",
        Takes::Nothing,
        Operator::GrpcStatusNumber,
    ),
    ("HOSTNAME", Takes::Nothing, Operator::Hostname),
    ("INSTANCE", Takes::Nothing, Operator::Instance),
    ("DECISION", Takes::Nothing, Operator::Decision),
    // Their headers are put in when one is parsed.
    ("REQ", Takes::Header(HeaderOf::Request), Operator::Protocol),
    (
        "RESP",
        Takes::Header(HeaderOf::Response),
        Operator::Protocol,
    ),
    (
        "TRAILER",
        Takes::Header(HeaderOf::Trailer),
        Operator::Protocol,
    ),
];

/// What HTTP/2 says of a request outside of its headers, and HTTP/1 in its first line.
const PSEUDO_HEADERS: [&str; 3] = [":method", ":path", ":authority"];

/// HeaderNames whose values are secrets.
const SECRET: [&str; 5] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
];

/// # Errors
/// The first thing that is wrong in `text`, as `what is wrong; what to do about it`.
pub fn parse_format(text: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    let at = |rest: &str| text[..text.len() - rest.len()].chars().count();
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let here = at(&rest[before.len()..]);
        let (piece, after) =
            operator(after).map_err(|message| FormatError { at: here, message })?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
        }
        pieces.push(piece);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into()));
    }
    Ok(pieces)
}

/// The operator that begins `text`, after its percent sign, and what follows it.
fn operator(text: &str) -> Result<(Piece, &str), String> {
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let (name, rest) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
    if name.is_empty() {
        return Err(
            "an operator's name is missing after `%`; write `%%` for a percent sign".into(),
        );
    }
    let (argument, rest) = match rest.strip_prefix('(') {
        None => (None, rest),
        Some(rest) => {
            let (argument, rest) = argument(rest)
                .ok_or_else(|| format!("`%{name}(` has no end; write `)%` after its argument"))?;
            (Some(argument), rest)
        }
    };
    let (max_length, rest) = match rest.strip_prefix(':') {
        None => (None, rest),
        Some(rest) => {
            let (digits, rest) = rest.split_at(
                rest.find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(rest.len()),
            );
            let length = digits.parse().ok().filter(|length| *length > 0);
            let length = length.ok_or_else(|| {
                format!("`%{name}` has no length after `:`; write a whole number from 1 on")
            })?;
            (Some(length), rest)
        }
    };
    let rest = rest
        .strip_prefix('%')
        .ok_or_else(|| format!("`%{name}` has no end; write `%` after it"))?;
    let Some((_, takes, operator)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
        let lower = OPERATORS.map(str::to_lowercase);
        let fix = match meant(name, lower.iter().map(String::as_str)) {
            Some(name) => format!("did you mean `%{}%`?", name.to_uppercase()),
            None => "docs/access-log.md lists all there are".into(),
        };
        return Err(format!("`%{name}%` is no operator; {fix}"));
    };
    let operator = match (takes, argument) {
        (Takes::Nothing, None) => operator.clone(),
        (Takes::Nothing, Some(_)) => {
            return Err(format!(
                "`%{name}%` takes no argument; remove the parentheses"
            ));
        }
        (Takes::Time, argument) => Operator::StartTime(time_format(argument)?),
        (Takes::Header(of), Some(argument)) => Operator::Header(*of, headers(*of, argument)?),
        (Takes::Header(_), None) => {
            return Err(format!(
                "`%{name}%` names no header; write `%{name}(X-NAME)%`"
            ));
        }
    };
    Ok((
        Piece::Operator {
            operator,
            max_length,
        },
        rest,
    ))
}

/// What stands in parentheses, up to the first that ends an operator, and what follows it: a time's
/// format has percent signs of its own.
fn argument(text: &str) -> Option<(&str, &str)> {
    text.match_indices(')').find_map(|(at, _)| {
        let rest = &text[at + 1..];
        let is_end = rest.strip_prefix(':').map_or(rest, |length| {
            length.trim_start_matches(|c: char| c.is_ascii_digit())
        });
        is_end.starts_with('%').then(|| (&text[..at], rest))
    })
}

fn time_format(argument: Option<&str>) -> Result<TimeFormat, String> {
    let Some(format) = argument.filter(|format| !format.is_empty()) else {
        return Ok(TimeFormat(None));
    };
    match jiff::fmt::strtime::format(
        format,
        &jiff::Zoned::new(jiff::Timestamp::UNIX_EPOCH, jiff::tz::TimeZone::UTC),
    ) {
        Ok(_) => Ok(TimeFormat(Some(format.into()))),
        Err(error) => Err(format!(
            "`{format}` is no time format ({error}); write strftime's conversions, such as `%Y-%m-%dT%H:%M:%S`"
        )),
    }
}

fn headers(of: HeaderOf, argument: &str) -> Result<HeaderNames, String> {
    let lower = argument.to_ascii_lowercase();
    let (name, otherwise) = match lower.split_once('?') {
        Some((name, otherwise)) => (name, Some(otherwise)),
        None => (&*lower, None),
    };
    for name in [Some(name), otherwise].into_iter().flatten() {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
        let is_pseudo = of == HeaderOf::Request && PSEUDO_HEADERS.contains(&name);
        if !is_pseudo && (name.is_empty() || !name.bytes().all(is_token)) {
            return Err(format!(
                "`{name}` is no header name; write one such as `X-REQUEST-ID`, or in %REQ% one of :METHOD, :PATH, :AUTHORITY"
            ));
        }
        if SECRET.contains(&name) {
            return Err(format!(
                "the value of `{name}` is a secret, which no log may hold; name another header"
            ));
        }
    }
    Ok(HeaderNames {
        name: name.into(),
        otherwise: otherwise.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(text: &str) -> Operator {
        match parse_format(text).expect(text).as_slice() {
            [Piece::Operator { operator, .. }] => operator.clone(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn text_operators_and_percent_signs_are_told_apart() {
        let pieces = parse_format("100%% of %RESPONSE_CODE% in %DURATION%ms\n").expect("a format");
        let operator = |operator| Piece::Operator {
            operator,
            max_length: None,
        };
        assert_eq!(
            pieces,
            [
                Piece::Literal("100% of ".into()),
                operator(Operator::ResponseCode),
                Piece::Literal(" in ".into()),
                operator(Operator::Duration),
                Piece::Literal("ms\n".into()),
            ]
        );
    }

    #[test]
    fn headers_have_alternatives_and_a_length() {
        let pieces = parse_format("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):10%").expect("a format");
        assert_eq!(
            pieces,
            [Piece::Operator {
                operator: Operator::Header(
                    HeaderOf::Request,
                    HeaderNames {
                        name: "x-envoy-original-path".into(),
                        otherwise: Some(":path".into()),
                    }
                ),
                max_length: Some(10),
            }]
        );
    }

    #[test]
    fn a_time_has_percent_signs_of_its_own() {
        let time = only("%START_TIME(%Y/%m/%dT%H:%M:%S%.3f (%s))%");
        assert_eq!(
            time,
            Operator::StartTime(TimeFormat(Some("%Y/%m/%dT%H:%M:%S%.3f (%s)".into())))
        );
        assert_eq!(only("%START_TIME%"), Operator::StartTime(TimeFormat(None)));
    }

    #[test]
    fn whatever_is_wrong_is_told_with_its_place_and_what_to_do() {
        for (text, at, told) in [
            ("ok %RESPONS_CODE% x", 3, "did you mean `%RESPONSE_CODE%`?"),
            ("é%FROBNICATE%", 1, "no operator"),
            ("%RESPONSE_CODE", 0, "has no end"),
            ("a % b", 2, "name is missing"),
            ("%REQ%", 0, "names no header"),
            ("%REQ(a b)%", 0, "no header name"),
            ("%RESP(:PATH)%", 0, "no header name"),
            ("%REQ(Authorization)%", 0, "secret"),
            ("%REQ(X-A?COOKIE)%", 0, "secret"),
            ("%PROTOCOL(x)%", 0, "takes no argument"),
            ("%REQ(x):0%", 0, "length"),
            ("%START_TIME(%!)%", 0, "no time format"),
        ] {
            let error = parse_format(text).expect_err(text);
            assert_eq!(error.at, at, "{text}");
            assert!(error.message.contains(told), "{text}: {error}");
            assert!(error.message.contains("; "), "{text}: {error}");
        }
    }

    #[test]
    fn every_operator_is_known_by_its_name() {
        for (name, takes, _) in &KNOWN {
            let argument = match takes {
                Takes::Header(_) => "(x-name)",
                Takes::Nothing | Takes::Time => "",
            };
            only(&format!("%{name}{argument}%"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_format_or_has_one_wrong_place_in_it(text in "[%A-Z():?a-z0-9é_ ]{0,40}") {
            match parse_format(&text) {
                Ok(pieces) => prop_assert!(pieces.len() <= text.len()),
                Err(error) => prop_assert!(error.at <= text.chars().count()),
            }
        }
    }
}
