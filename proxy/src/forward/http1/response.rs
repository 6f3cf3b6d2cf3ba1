//! A response head. Lenient where a request is strict: a 502 where a direct connection worked would
//! be our outage, so what cannot be relied upon is `Odd`, and its bytes are relayed as they come
//! until the connection ends, which nothing else may use.

use std::{ops::Range, time::Duration};

use outrigger_config::Limits;

use super::{
    body::Framing,
    head::{self, Edits, HeadError, Line, Version},
    request::{Method, RequestHead},
};
use crate::buffer::Buffer;

#[derive(Debug, PartialEq, Eq)]
pub enum Response {
    /// Its end has not arrived.
    Partial,
    Head(ResponseHead),
    /// No response whose end is certain.
    Odd,
}

#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Bytes, through the empty line.
    pub len: usize,
    pub status: u16,
    pub framing: Framing,
    /// Whether the server means to keep its connection, by its own words.
    pub keeps_alive: bool,
    /// How long the server says it will keep it (`Keep-Alive: timeout=`).
    pub keeps_for: Option<Duration>,
    /// Whether it asks for NTLM or Negotiate, which authenticate the connection.
    pub authenticates_connection: bool,
    /// The value of the last `Connection` line with `keep-alive` in it, and what else that says.
    keep_alive_at: Option<(Range<usize>, Vec<u8>)>,
    edits: Edits,
}

/// The response to `request` whose head begins `bytes`.
pub fn parse(bytes: &[u8], request: &RequestHead, limits: &Limits) -> Response {
    let within = &bytes[..bytes.len().min(limits.max_header_bytes)];
    match parse_within(within, request, limits.max_headers) {
        Ok(None) if within.len() == limits.max_header_bytes => Response::Odd,
        Ok(None) => Response::Partial,
        Ok(Some(head)) => Response::Head(head),
        Err(_) => Response::Odd,
    }
}

fn parse_within(
    bytes: &[u8],
    request: &RequestHead,
    max_lines: usize,
) -> Result<Option<ResponseHead>, HeadError> {
    let Some(start) = status_line(bytes)? else {
        return Ok(None);
    };
    let mut fields = Fields::default();
    let visited = head::visit_lines(bytes, start.len, max_lines, |line| {
        fields.visit(bytes, &line)
    })?;
    let Some(len) = visited else {
        return Ok(None);
    };
    let framing = fields.framing(&start, request)?;
    // A server that answers HTTP/1.0 with HTTP/1.1 closes all the same, unless it says otherwise.
    let is_http11 = start.version == Version::Http11 && request.version == Version::Http11;
    Ok(Some(ResponseHead {
        len,
        status: start.status,
        framing,
        keeps_alive: framing != Framing::UntilClose
            && !fields.close
            && (is_http11 || fields.keep_alive_at.is_some()),
        keeps_for: fields.keeps_for,
        authenticates_connection: fields.authenticates_connection,
        keep_alive_at: fields.keep_alive_at,
        edits: fields.edits,
    }))
}

impl ResponseHead {
    /// Its header lines; `head` is where it lies, not edited yet.
    pub(super) fn lines<'a>(&self, head: &'a [u8]) -> head::HeaderLines<'a> {
        head::HeaderLines(&head[..self.len])
    }

    /// A response that another one follows; not 101, which ends HTTP on the connection.
    pub(super) fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// The head, which begins `bytes`, and the edits that are yet to be applied.
    pub(super) fn parts<'a>(&'a mut self, bytes: &'a [u8]) -> (&'a [u8], &'a mut Edits) {
        (&bytes[..self.len], &mut self.edits)
    }

    /// Adds a line, with the edits that are yet to be applied.
    pub(super) fn add_line(&mut self, name: &str, value: &str) {
        let end = self.len - b"\r\n".len();
        self.edits
            .replace(end..end, format!("{name}: {value}\r\n").into_bytes());
    }

    /// Says on the head that begins `buffer` what the client's own connection will do:
    /// `tell_close` if it ends with this response though the server's would not.
    pub fn apply_edits(&mut self, tell_close: bool, buffer: &mut Buffer) {
        if tell_close {
            match self.keep_alive_at.take() {
                Some((at, mut others)) => {
                    others.extend_from_slice(if others.is_empty() {
                        b"close"
                    } else {
                        b", close"
                    });
                    self.edits.replace(at, others);
                }
                None => {
                    let end = self.len - b"\r\n".len();
                    self.edits
                        .replace(end..end, b"Connection: close\r\n".to_vec());
                }
            }
            self.edits.sort();
        }
        if !self.edits.is_empty() {
            self.edits.apply(buffer);
            self.len = self.edits.moved(self.len);
        }
    }
}

struct StatusLine {
    /// Its line end included.
    len: usize,
    status: u16,
    version: Version,
}

const ODD: HeadError = HeadError::Malformed("no HTTP/1 status line");

fn status_line(bytes: &[u8]) -> Result<Option<StatusLine>, HeadError> {
    const LIKE: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(LIKE.len());
    if bytes[..known] != LIKE[..known] {
        return Err(ODD);
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return Ok(None);
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(ODD)?;
    let (version, rest) = match line.split_at_checked(LIKE.len() + 2) {
        Some((b"HTTP/1.1 ", rest)) => (Version::Http11, rest),
        Some((b"HTTP/1.0 ", rest)) => (Version::Http10, rest),
        _ => return Err(ODD),
    };
    let status = match rest {
        [digits @ .., b' '] | digits if digits.len() == 3 => digits,
        [digits @ .., _] if digits.len() > 3 && digits[3] == b' ' => &digits[..3],
        _ => return Err(ODD),
    };
    if !status.iter().all(u8::is_ascii_digit) || !(b'1'..=b'9').contains(&status[0]) {
        return Err(ODD);
    }
    Ok(Some(StatusLine {
        len: end + 1,
        status: (status.iter()).fold(0, |n, digit| n * 10 + u16::from(digit - b'0')),
        version,
    }))
}

/// What the header lines say, gathered one by one.
#[derive(Default)]
struct Fields {
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive_at: Option<(Range<usize>, Vec<u8>)>,
    keeps_for: Option<Duration>,
    authenticates_connection: bool,
    edits: Edits,
}

impl Fields {
    fn visit(&mut self, head: &[u8], line: &Line<'_>) -> Result<(), HeadError> {
        match line.name.len() {
            10 if line.name.eq_ignore_ascii_case("connection") => self.connection(head, line),
            10 if line.name.eq_ignore_ascii_case("keep-alive") => {
                self.keeps_for = timeout(line);
                self.edits.remove(line.range(head));
            }
            14 if line.name.eq_ignore_ascii_case("content-length") => {
                let length = head::content_length(line.value).ok_or(ODD)?;
                if self.content_length.replace(length).is_some() {
                    return Err(ODD);
                }
            }
            16 if line.name.eq_ignore_ascii_case("www-authenticate") => {
                self.authenticates_connection |= line.authenticates_connection();
            }
            17 if line.name.eq_ignore_ascii_case("transfer-encoding") => {
                if self.chunked || !line.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(ODD);
                }
                self.chunked = true;
            }
            18 if line.name.eq_ignore_ascii_case("proxy-authenticate") => {
                self.authenticates_connection |= line.authenticates_connection();
            }
            _ => {}
        }
        Ok(())
    }

    fn connection(&mut self, head: &[u8], line: &Line<'_>) {
        let is_keep_alive = |element: &[u8]| element.eq_ignore_ascii_case(b"keep-alive");
        self.close |= line.elements().any(|e| e.eq_ignore_ascii_case(b"close"));
        if line.elements().any(is_keep_alive) {
            let others: Vec<_> = line.elements().filter(|e| !is_keep_alive(e)).collect();
            self.keep_alive_at = Some((line.value_range(head), others.join(&b", "[..])));
        }
    }

    fn framing(&self, start: &StatusLine, request: &RequestHead) -> Result<Framing, HeadError> {
        if self.chunked && (self.content_length.is_some() || start.version == Version::Http10) {
            return Err(ODD);
        }
        let is_success = (200..300).contains(&start.status);
        Ok(match start.status {
            100..200 | 204 | 304 => Framing::Length(0),
            _ if request.method == Method::Head => Framing::Length(0),
            _ if request.method == Method::Connect && is_success => Framing::Length(0),
            _ if self.chunked => Framing::Chunked,
            _ => self
                .content_length
                .map_or(Framing::UntilClose, Framing::Length),
        })
    }
}

/// The `timeout` parameter of a `Keep-Alive` line, in seconds.
fn timeout(line: &Line<'_>) -> Option<Duration> {
    line.elements().find_map(|element| {
        let (name, value) = element.split_at_checked(b"timeout=".len())?;
        let is_timeout = name.eq_ignore_ascii_case(b"timeout=");
        let seconds = head::content_length(value)?;
        is_timeout.then_some(Duration::from_secs(seconds))
    })
}

#[cfg(test)]
#[path = "response/tests.rs"]
mod tests;
