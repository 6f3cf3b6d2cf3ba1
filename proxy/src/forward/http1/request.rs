//! A request head: what the relay must know of it, and whether it can mean only one thing.
//!
//! Strict (RFC 9112): two parsers on the way that read one request differently are how requests are
//! smuggled, so whatever could be read in two ways is refused.

use std::ops::Range;

use http::{HeaderName, HeaderValue};
use outrigger_config::{Headers, HttpRequest, Limits};

use super::{
    body::Framing,
    edit::{self, Asked},
    head::{self, Edits, HeadError, Line, Version},
};
use crate::{buffer::Buffer, dispatch, failure::Failure, observe::RequestLine};

/// What the method means for framing, pooling and repeating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Head,
    Connect,
    /// Any other whose repetition has the same effect (RFC 9110, section 9.2.2).
    Idempotent,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Bytes, through the empty line.
    pub len: usize,
    pub method: Method,
    pub version: Version,
    pub framing: Framing,
    /// Whether the client means to send another request on its connection.
    pub keeps_alive: bool,
    /// Whether it carries a step of NTLM or Negotiate, which authenticate the connection.
    pub authenticates_connection: bool,
    method_len: usize,
    target: Range<usize>,
    host: Option<Range<usize>>,
    edits: Edits,
    /// What it said before a route changed it.
    asked: Option<Box<Asked>>,
}

/// The request head that begins `bytes`; none while its end has not arrived.
///
/// # Errors
/// What the client has to be told: 400 or 431.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Option<RequestHead>, Failure> {
    let within = &bytes[..bytes.len().min(limits.max_header_bytes)];
    match parse_within(within, limits.max_headers) {
        Ok(None) if within.len() == limits.max_header_bytes => Err(Failure::HeadTooLarge),
        Ok(head) => Ok(head),
        Err(HeadError::TooLarge) => Err(Failure::HeadTooLarge),
        Err(HeadError::Malformed(how)) => Err(Failure::BadRequest(how)),
    }
}

fn parse_within(bytes: &[u8], max_lines: usize) -> Result<Option<RequestHead>, HeadError> {
    let Some(start) = start_line(bytes)? else {
        return Ok(None);
    };
    let mut fields = Fields::new(start.version);
    let visited = head::visit_lines(bytes, start.len, max_lines, |line| {
        fields.visit(bytes, &line)
    })?;
    let Some(len) = visited else {
        return Ok(None);
    };
    Ok(Some(RequestHead {
        len,
        method: start.method,
        version: start.version,
        framing: fields.framing(&start)?,
        keeps_alive: match start.version {
            Version::Http11 => !fields.close,
            Version::Http10 => fields.keep_alive && !fields.close,
        },
        authenticates_connection: fields.authenticates_connection,
        method_len: start.method_len,
        target: start.target,
        host: fields.host,
        edits: fields.edits,
        asked: None,
    }))
}

impl RequestHead {
    /// Carries out the edits on the head that begins `buffer`: what the client wishes for its own
    /// connection is not for the upstream's.
    pub fn apply_edits(&mut self, buffer: &mut Buffer) {
        if self.edits.is_empty() {
            return;
        }
        self.edits.apply(buffer);
        self.len = self.edits.moved(self.len);
        self.host =
            (self.host.take()).map(|host| self.edits.moved(host.start)..self.edits.moved(host.end));
    }

    /// Replaces what lies at `at` in the header lines of the head that begins `buffer`, after the edits
    /// were applied.
    pub(super) fn replace(&mut self, buffer: &mut Buffer, at: Range<usize>, with: &[u8]) {
        buffer.replace(at.clone(), with);
        let moved = |place: usize| place - at.len() + with.len();
        self.len = moved(self.len);
        if let Some(host) = &mut self.host
            && host.start >= at.end
        {
            *host = moved(host.start)..moved(host.end);
        }
    }

    /// Carries out the edits of a route on the head that begins `buffer`.
    pub(super) fn carry_out(&mut self, mut edits: Edits, buffer: &mut Buffer) {
        if edits.is_empty() {
            return;
        }
        let bytes = buffer.filled();
        if self.asked.is_none() {
            self.asked = Some(Box::new(Asked {
                target: bytes[self.target.clone()].to_vec(),
                host: self.host.clone().map(|host| bytes[host].to_vec()),
            }));
        }
        edits.sort();
        edits.apply(buffer);
        self.len = edits.moved(self.len);
        self.target = edit::moved(&self.target, &edits);
        self.host = self.host.take().map(|host| edit::moved(&host, &edits));
    }

    /// Adds lines to the head that begins `buffer`.
    pub(super) fn add_lines(&mut self, lines: &[(HeaderName, HeaderValue)], buffer: &mut Buffer) {
        let end = self.len - b"\r\n".len();
        let mut added = Vec::new();
        for (name, value) in lines {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                added.extend_from_slice(part);
            }
        }
        let mut edits = Edits::default();
        edits.replace(end..end, added);
        self.carry_out(edits, buffer);
    }

    /// As the log sees it, which is as the client sent it; `head` is where the head lies now.
    pub(super) fn line<'a>(&'a self, head: &'a [u8]) -> RequestLine<'a> {
        if let Some(asked) = &self.asked {
            return RequestLine {
                method: self.method_name(head),
                target: &asked.target,
                host: asked.host.as_deref(),
            };
        }
        RequestLine {
            method: self.method_name(head),
            target: &head[self.target.clone()],
            host: self.host.clone().map(|host| &head[host]),
        }
    }

    fn method_name<'a>(&self, head: &'a [u8]) -> &'a str {
        // A token is ASCII; anything else did not parse.
        std::str::from_utf8(&head[..self.method_len]).unwrap_or_default()
    }

    /// The host that it names, as routes know it: an absolute target's before the `Host` line's
    /// (RFC 9112, section 3.2.2).
    pub(super) fn host_name<'a>(&self, head: &'a [u8]) -> Option<&'a str> {
        let named = match self.authority(head) {
            Some(authority) => {
                let authority = &head[self.target.clone()][authority];
                let user = memchr::memrchr(b'@', authority).map_or(0, |at| at + 1);
                &authority[user..]
            }
            None => &head[self.host.clone()?],
        };
        dispatch::without_port(named)
    }

    /// Where in an absolute target its authority lies.
    fn authority(&self, head: &[u8]) -> Option<Range<usize>> {
        let target = &head[self.target.clone()];
        if target.starts_with(b"/") {
            return None;
        }
        let start = memchr::memmem::find(target, b"://")? + 3;
        let rest = &target[start..];
        let end = memchr::memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len());
        Some(start..start + end)
    }

    /// As routes see it; `head` is where the head lies now.
    pub(super) fn lines<'a>(&'a self, head: &'a [u8]) -> Lines<'a> {
        Lines {
            head: self,
            bytes: head,
        }
    }

    /// Path and query, and where they lie; none if there are none that could be changed.
    pub(super) fn path_range<'a>(&self, head: &'a [u8]) -> Option<(&'a [u8], Range<usize>)> {
        let path = self.path(head)?;
        let authority = self.authority(head).map_or(0, |a| a.end);
        Some((path, self.target.start + authority..self.target.end))
    }

    /// Where the host stands that it names: in the `Host` line, and in an absolute target.
    pub(super) fn named_at(&self, head: &[u8]) -> impl Iterator<Item = Range<usize>> + use<> {
        let start = self.target.start;
        let authority = self
            .authority(head)
            .map(|at| start + at.start..start + at.end);
        authority.into_iter().chain(self.host.clone())
    }

    /// The host that it names, with its port.
    pub(super) fn host<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        let at = self.named_at(head).next()?;
        let user = memchr::memrchr(b'@', &head[at.clone()]).map_or(0, |at| at + 1);
        Some(&head[at.start + user..at.end])
    }

    /// Path and query.
    fn path<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        let target = &head[self.target.clone()];
        match self.authority(head) {
            _ if self.method == Method::Connect => None,
            // An absolute target may end with its authority.
            Some(authority) => {
                Some(&target[authority.end..]).map(|rest| if rest.is_empty() { b"/" } else { rest })
            }
            None => Some(target),
        }
    }

    /// Writes the line `name: value` into the head that begins `buffer`, in place of those of that name.
    pub(super) fn set_line(&mut self, buffer: &mut Buffer, name: &str, value: &str) {
        let head = &buffer.filled()[..self.len];
        let start = memchr::memchr(b'\n', head).map_or(0, |at| at + 1);
        let lines = memchr::memchr_iter(b'\n', head).count();
        let mut edits = Edits::default();
        // It was parsed before, so that nothing fails.
        let _ = head::visit_lines(head, start, lines, |line| {
            if line.name.eq_ignore_ascii_case(name) {
                edits.remove(line.range(head));
            }
            Ok(())
        });
        let end = self.len - b"\r\n".len();
        edits.replace(end..end, format!("{name}: {value}\r\n").into_bytes());
        self.edits = edits;
        self.apply_edits(buffer);
        self.edits = Edits::default();
    }

    /// Whether sending it twice does no more than sending it once.
    pub(super) fn is_idempotent(&self) -> bool {
        matches!(self.method, Method::Head | Method::Idempotent)
    }
}

/// A head and where it lies.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    head: &'a RequestHead,
    bytes: &'a [u8],
}

impl Lines<'_> {
    pub(super) fn as_request(&self) -> HttpRequest<'_> {
        let Self { head, bytes } = self;
        HttpRequest {
            host: head.host_name(bytes),
            method: head.method_name(bytes),
            path: head.path(bytes),
            headers: self,
        }
    }
}

impl Headers for Lines<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        head::HeaderLines(&self.bytes[..self.head.len]).each(name, visit);
    }
}

struct StartLine {
    /// Its line end included.
    len: usize,
    method: Method,
    method_len: usize,
    target: Range<usize>,
    version: Version,
}

fn start_line(bytes: &[u8]) -> Result<Option<StartLine>, HeadError> {
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return Ok(None);
    };
    let line = (bytes[..end].strip_suffix(b"\r"))
        .ok_or(HeadError::Malformed("the request line ends with LF alone"))?;
    let (rest, version) = match line.split_last_chunk::<9>() {
        Some((rest, b" HTTP/1.1")) => (rest, Version::Http11),
        Some((rest, b" HTTP/1.0")) => (rest, Version::Http10),
        _ => {
            return Err(HeadError::Malformed(
                "the request line does not end with HTTP/1.0 or HTTP/1.1",
            ));
        }
    };
    let method_len = memchr::memchr(b' ', rest).unwrap_or(rest.len());
    let method = &rest[..method_len];
    if method.is_empty() || !method.iter().copied().all(head::is_token) {
        return Err(HeadError::Malformed("the method is no token"));
    }
    let target = rest.get(method_len + 1..).unwrap_or_default();
    if target.is_empty() || target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(HeadError::Malformed(
            "the request target is missing or holds a blank or control byte",
        ));
    }
    Ok(Some(StartLine {
        len: end + 1,
        method: method_of(method),
        method_len,
        target: method_len + 1..rest.len(),
        version,
    }))
}

fn method_of(method: &[u8]) -> Method {
    match method {
        b"HEAD" => Method::Head,
        b"CONNECT" => Method::Connect,
        b"GET" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE" => Method::Idempotent,
        _ => Method::Other,
    }
}

/// What the header lines say, gathered one by one.
struct Fields {
    version: Version,
    content_length: Option<u64>,
    chunked: bool,
    host: Option<Range<usize>>,
    close: bool,
    keep_alive: bool,
    authenticates_connection: bool,
    edits: Edits,
}

impl Fields {
    fn new(version: Version) -> Self {
        Self {
            version,
            content_length: None,
            chunked: false,
            host: None,
            close: false,
            keep_alive: false,
            authenticates_connection: false,
            edits: Edits::default(),
        }
    }

    fn visit(&mut self, head: &[u8], line: &Line<'_>) -> Result<(), HeadError> {
        // The length first: few lines have one of these.
        match line.name.len() {
            4 if line.name.eq_ignore_ascii_case("host") => {
                let is_second = self.host.replace(line.value_range(head)).is_some();
                refuse_if(is_second, "more than one Host")?;
            }
            10 if line.name.eq_ignore_ascii_case("connection") => self.connection(head, line),
            // An HTTP/1.0 request is left as it is: its connection will end with the answer unless
            // both ends of it agree, through these very lines.
            10 if line.name.eq_ignore_ascii_case("keep-alive")
                && self.version == Version::Http11 =>
            {
                self.edits.remove(line.range(head));
            }
            13 if line.name.eq_ignore_ascii_case("authorization") => {
                self.authenticates_connection |= line.authenticates_connection();
            }
            14 if line.name.eq_ignore_ascii_case("content-length") => {
                let length = head::content_length(line.value).ok_or(HeadError::Malformed(
                    "Content-Length is no decimal number of 64 bits",
                ))?;
                let is_second = self.content_length.replace(length).is_some();
                refuse_if(is_second, "more than one Content-Length")?;
            }
            17 if line.name.eq_ignore_ascii_case("transfer-encoding") => {
                refuse_if(self.chunked, "more than one Transfer-Encoding")?;
                self.chunked = line.value.eq_ignore_ascii_case(b"chunked");
                refuse_if(!self.chunked, "Transfer-Encoding is not exactly `chunked`")?;
            }
            19 if line.name.eq_ignore_ascii_case("proxy-authorization") => {
                self.authenticates_connection |= line.authenticates_connection();
            }
            _ => {}
        }
        Ok(())
    }

    fn connection(&mut self, head: &[u8], line: &Line<'_>) {
        let is_close = |element: &[u8]| element.eq_ignore_ascii_case(b"close");
        self.keep_alive |= line
            .elements()
            .any(|e| e.eq_ignore_ascii_case(b"keep-alive"));
        if !line.elements().any(is_close) {
            return;
        }
        self.close = true;
        if self.version == Version::Http11 {
            let others: Vec<_> = line.elements().filter(|e| !is_close(e)).collect();
            if others.is_empty() {
                self.edits.remove(line.range(head));
            } else {
                let others = others.join(&b", "[..]);
                self.edits.replace(line.value_range(head), others);
            }
        }
    }

    fn framing(&self, start: &StartLine) -> Result<Framing, HeadError> {
        refuse_if(
            self.host.is_none() && self.version == Version::Http11,
            "no Host",
        )?;
        refuse_if(
            self.chunked && self.content_length.is_some(),
            "both Content-Length and Transfer-Encoding",
        )?;
        refuse_if(
            self.chunked && self.version == Version::Http10,
            "Transfer-Encoding in HTTP/1.0",
        )?;
        // What follows a CONNECT is the tunnel's; a body before it has no meaning that all agree on.
        let has_body = self.chunked || self.content_length.is_some_and(|length| length > 0);
        refuse_if(
            has_body && start.method == Method::Connect,
            "CONNECT with a body",
        )?;
        Ok(if self.chunked {
            Framing::Chunked
        } else {
            Framing::Length(self.content_length.unwrap_or(0))
        })
    }
}

fn refuse_if(condition: bool, why: &'static str) -> Result<(), HeadError> {
    if condition {
        Err(HeadError::Malformed(why))
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[path = "request/tests.rs"]
mod tests;
