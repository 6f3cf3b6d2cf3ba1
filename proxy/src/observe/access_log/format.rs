//! Lines in a format of the user's own: text with operators, or a JSON object of such.
//!
//! What an operator gives is a number, a word of our own, or bytes from outside, which are escaped
//! as in every other line. What there is not is `-` in text and `null` in JSON.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use outrigger_config::{
    AccessLogFormat, FieldFormat, Fields, HeaderNames, HeaderOf, Operator, Piece, TimeFormat,
    parse_format,
};

use super::{
    captured::Wanted,
    line::{Line, MAX_VALUE, escape},
    value::Append,
    without_userinfo,
};
use crate::observe::{Protocol, Record, decision::Decision};

/// A format, ready for use.
#[derive(Debug)]
pub(super) enum Format {
    /// Every field that applies, in the words of [`Line`].
    Every(Shape),
    Text(Vec<Piece>),
    Json(Object),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Json,
    Text,
}

#[derive(Debug)]
pub(super) struct Object(Vec<(Box<str>, Value)>);

#[derive(Debug)]
enum Value {
    Pieces(Vec<Piece>),
    Object(Object),
}

/// What does not change from line to line.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) instance: Box<str>,
    pub(super) hostname: Box<str>,
}

impl Format {
    /// Of a checked configuration, in which every format string is one.
    pub(super) fn of(format: &AccessLogFormat, wanted: &mut Wanted) -> Self {
        match format {
            AccessLogFormat::Json => Self::Every(Shape::Json),
            AccessLogFormat::Text => Self::Every(Shape::Text),
            AccessLogFormat::Line(line) => {
                let mut pieces = pieces(line, wanted);
                let ends_line =
                    matches!(pieces.last(), Some(Piece::Literal(text)) if text.ends_with('\n'));
                if !ends_line {
                    pieces.push(Piece::Literal("\n".into()));
                }
                Self::Text(pieces)
            }
            AccessLogFormat::Fields(fields) => Self::Json(Object::of(fields, wanted)),
        }
    }

    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        here: &Here,
        now: jiff::Timestamp,
        record: &Record<'_>,
    ) {
        let telling = Telling { here, now, record };
        match self {
            Self::Every(shape) => super::every::write(Line::begin(out, *shape), here, now, record),
            Self::Text(pieces) => telling.text(out, pieces),
            Self::Json(object) => {
                telling.object(out, object);
                out.push(b'\n');
            }
        }
    }
}

impl Object {
    fn of(fields: &Fields, wanted: &mut Wanted) -> Self {
        let mut value = |format: &FieldFormat| match format {
            FieldFormat::Text(text) => Value::Pieces(pieces(text, wanted)),
            FieldFormat::Object(fields) => Value::Object(Self::of(fields, wanted)),
        };
        let fields = fields.0.iter();
        Self(
            fields
                .map(|(key, f)| (key.as_str().into(), value(f)))
                .collect(),
        )
    }
}

fn pieces(text: &str, wanted: &mut Wanted) -> Vec<Piece> {
    let pieces = parse_format(text).unwrap_or_default();
    for piece in &pieces {
        let Piece::Operator { operator, .. } = piece else {
            continue;
        };
        match operator {
            Operator::Header(of, HeaderNames { name, otherwise }) => {
                wanted.add(*of, name);
                otherwise.iter().for_each(|name| wanted.add(*of, name));
            }
            Operator::GrpcStatus | Operator::GrpcStatusNumber => {
                wanted.add(HeaderOf::Response, GRPC_STATUS);
                wanted.add(HeaderOf::Trailer, GRPC_STATUS);
            }
            Operator::ResponseDuration | Operator::ResponseTxDuration => wanted.answer_time = true,
            _ => {}
        }
    }
    pieces
}

const GRPC_STATUS: &str = "grpc-status";

/// gRPC's status codes by their numbers, in Envoy's camel case.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// One operator's value.
enum Told<'a> {
    Number(u64),
    Truth(bool),
    /// Of our own making, in which nothing needs escaping.
    Word(Cow<'a, str>),
    Address(std::net::SocketAddr),
    /// From outside.
    Bytes(&'a [u8]),
    /// From outside, in pieces.
    Pieces(Vec<&'a [u8]>),
    /// JSON as it stands.
    Json(String),
    Nothing,
}

/// One line about one record.
struct Telling<'a> {
    here: &'a Here,
    now: jiff::Timestamp,
    record: &'a Record<'a>,
}

impl<'a> Telling<'a> {
    fn text(&self, out: &mut Vec<u8>, pieces: &[Piece]) {
        for piece in pieces {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Operator {
                    operator,
                    max_length,
                } => self.shown(out, operator, *max_length),
            }
        }
    }

    fn object(&self, out: &mut Vec<u8>, object: &Object) {
        out.push(b'{');
        for (index, (key, value)) in object.0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.push(b'"');
            escape(out, key.as_bytes());
            out.extend_from_slice(b"\":");
            match value {
                Value::Object(object) => self.object(out, object),
                Value::Pieces(pieces) => self.json(out, pieces),
            }
        }
        out.push(b'}');
    }

    /// An operator alone keeps its type.
    fn json(&self, out: &mut Vec<u8>, pieces: &[Piece]) {
        if let [
            Piece::Operator {
                operator,
                max_length: None,
            },
        ] = pieces
        {
            match self.told(operator) {
                Told::Nothing => return out.extend_from_slice(b"null"),
                Told::Number(number) => return number.append(out),
                Told::Truth(truth) => return truth.append(out),
                Told::Json(json) => return out.extend_from_slice(json.as_bytes()),
                Told::Word(_) | Told::Address(_) | Told::Bytes(_) | Told::Pieces(_) => {}
            }
        }
        out.push(b'"');
        for piece in pieces {
            match piece {
                Piece::Literal(text) => escape(out, text.as_bytes()),
                Piece::Operator {
                    operator,
                    max_length,
                } => self.shown(out, operator, *max_length),
            }
        }
        out.push(b'"');
    }

    /// As the inside of a string.
    fn shown(&self, out: &mut Vec<u8>, operator: &Operator, max_length: Option<usize>) {
        let max = max_length.unwrap_or(MAX_VALUE).min(MAX_VALUE);
        let bytes = |out: &mut Vec<u8>, bytes: &[u8], max: usize| {
            if bytes.is_ascii() {
                return escape(out, &bytes[..bytes.len().min(max)]);
            }
            let text = String::from_utf8_lossy(bytes);
            let end = text
                .char_indices()
                .nth(max)
                .map_or(text.len(), |(at, _)| at);
            escape(out, text[..end].as_bytes());
        };
        let own = |out: &mut Vec<u8>, value: &dyn Append, max: usize| {
            let start = out.len();
            value.append(out);
            out.truncate(start.saturating_add(max));
        };
        match self.told(operator) {
            Told::Nothing => out.push(b'-'),
            Told::Number(number) => own(out, &number, max),
            Told::Truth(truth) => own(out, &truth, max),
            Told::Address(address) => own(out, &address, max),
            Told::Word(word) => bytes(out, word.as_bytes(), max),
            Told::Bytes(value) => bytes(out, value, max),
            Told::Pieces(pieces) => bytes(out, &pieces.concat(), max),
            // Whole or not at all: half an object would be none.
            Told::Json(json) => escape(out, json.as_bytes()),
        }
    }

    fn told(&self, operator: &Operator) -> Told<'a> {
        let record = self.record;
        let address = Told::Address;
        let port = |address: std::net::SocketAddr| Told::Number(address.port().into());
        let ip = |address: std::net::SocketAddr| Told::Word(address.ip().to_string().into());
        match operator {
            Operator::StartTime(format) => Told::Word(self.start_time(format).into()),
            Operator::Protocol => match record.protocol {
                Protocol::Http1 if record.is_http10 => Told::Word("HTTP/1.0".into()),
                Protocol::Http1 => Told::Word("HTTP/1.1".into()),
                Protocol::Http2 => Told::Word("HTTP/2".into()),
                Protocol::Tls | Protocol::Opaque => Told::Nothing,
            },
            Operator::Method => self.pseudo(":method"),
            Operator::Path => self.pseudo(":path"),
            // Envoy's number where there is no response.
            Operator::ResponseCode => Told::Number(record.status.unwrap_or(0).into()),
            Operator::ResponseCodeDetails => match (record.failure, record.status) {
                (Some(failure), _) => Told::Word(failure.label().into()),
                (None, Some(_)) => Told::Word("via_upstream".into()),
                (None, None) => Told::Nothing,
            },
            Operator::ResponseFlags => match record.failure {
                Some(failure) => Told::Word(failure.flag().label().into()),
                None => Told::Nothing,
            },
            Operator::ResponseFlagsLong => match record.failure {
                Some(failure) => Told::Word(failure.flag().long().into()),
                None => Told::Nothing,
            },
            Operator::BytesReceived => Told::Number(record.bytes_received),
            Operator::BytesSent => Told::Number(record.bytes_sent),
            Operator::Duration => millis(record.duration),
            Operator::ResponseDuration => record.answered.map_or(Told::Nothing, millis),
            Operator::ResponseTxDuration => record.answered.map_or(Told::Nothing, |answered| {
                millis(record.duration.saturating_sub(answered))
            }),
            Operator::UpstreamHost => record.upstream.map_or(Told::Nothing, address),
            Operator::UpstreamCluster => match record.routed.target.cluster() {
                Some(cluster) => Told::Bytes(cluster.as_bytes()),
                None => Told::Nothing,
            },
            Operator::UpstreamLocalAddress => record.upstream_local.map_or(Told::Nothing, address),
            Operator::UpstreamConnectionReused => match record.upstream {
                Some(_) => Told::Truth(record.upstream_reused),
                None => Told::Nothing,
            },
            Operator::UpstreamRequestAttemptCount => Told::Number(record.attempts.into()),
            Operator::DownstreamRemoteAddress => address(record.client.0),
            Operator::DownstreamRemoteAddressWithoutPort => ip(record.client.0),
            Operator::DownstreamRemotePort => port(record.client.0),
            Operator::DownstreamLocalAddress => address(record.original.0),
            Operator::DownstreamLocalAddressWithoutPort => ip(record.original.0),
            Operator::DownstreamLocalPort => port(record.original.0),
            Operator::RequestedServerName => match record.sni {
                Some(name) => Told::Bytes(name.as_bytes()),
                None => Told::Nothing,
            },
            Operator::RouteName => match record.routed.name() {
                Some(name) => Told::Bytes(name.as_bytes()),
                None => Told::Nothing,
            },
            Operator::TraceId => match record.trace {
                Some(trace) => Told::Word(trace.trace.to_string().into()),
                None => Told::Nothing,
            },
            Operator::ConnectionId => Told::Number(record.connection),
            Operator::GrpcStatus => match self.grpc_status() {
                Some(number) => Told::Word(
                    (GRPC_CODES.get(number as usize))
                        .map_or(number.to_string().into(), |&c| c.into()),
                ),
                None => Told::Nothing,
            },
            Operator::GrpcStatusNumber => self.grpc_status().map_or(Told::Nothing, Told::Number),
            Operator::Hostname => Told::Bytes(self.here.hostname.as_bytes()),
            Operator::Instance => Told::Word((*self.here.instance).into()),
            Operator::Decision => match Decision::of(record) {
                Some(decision) => Told::Json(decision.json()),
                None => Told::Nothing,
            },
            Operator::Header(of, HeaderNames { name, otherwise }) => match self.header(*of, name) {
                Told::Nothing => match otherwise {
                    Some(otherwise) => self.header(*of, otherwise),
                    None => Told::Nothing,
                },
                told => told,
            },
        }
    }

    fn start_time(&self, TimeFormat(format): &TimeFormat) -> String {
        let ago = jiff::SignedDuration::try_from(self.record.duration).unwrap_or_default();
        let start = self.now.checked_sub(ago).unwrap_or(self.now);
        let mut text = String::new();
        // A checked format and a string that takes everything.
        let _ = match format {
            None => write!(text, "{start:.3}"),
            Some(format) => {
                let start = start.to_zoned(jiff::tz::TimeZone::UTC);
                write!(text, "{}", start.strftime(&**format))
            }
        };
        text
    }

    fn header(&self, of: HeaderOf, name: &str) -> Told<'a> {
        if name.starts_with(':') {
            return self.pseudo(name);
        }
        let captured = self.record.captured;
        if let Some(value) = captured.and_then(|captured| captured.value(of, name)) {
            return Told::Bytes(value);
        }
        match self.record.headers {
            Some(headers) if of == HeaderOf::Request => {
                headers.joined(name).map_or(Told::Nothing, |value| {
                    Told::Word(String::from_utf8_lossy(&value).into_owned().into())
                })
            }
            _ => Told::Nothing,
        }
    }

    fn pseudo(&self, name: &str) -> Told<'a> {
        let Some(request) = self.record.request else {
            return Told::Nothing;
        };
        match name {
            ":method" => Told::Bytes(request.method.as_bytes()),
            ":path" => Told::Pieces(super::shown_target(request.target)),
            ":authority" => match request.host {
                Some(host) => Told::Bytes(without_userinfo(host).1),
                None => Told::Nothing,
            },
            _ => Told::Nothing,
        }
    }

    /// Of a trailer, or of a response that is nothing but one.
    fn grpc_status(&self) -> Option<u64> {
        let captured = self.record.captured?;
        let value = captured
            .value(HeaderOf::Trailer, GRPC_STATUS)
            .or_else(|| captured.value(HeaderOf::Response, GRPC_STATUS))?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }
}

fn millis(duration: Duration) -> Told<'static> {
    Told::Number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "format/tests.rs"]
mod tests;
