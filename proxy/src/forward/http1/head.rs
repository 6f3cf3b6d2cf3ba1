//! An HTTP/1 head where it lies in its buffer: the lines of its header section, and edits of them.
//! Nothing is copied and nothing reordered, so that what is not edited is forwarded verbatim.

use std::ops::Range;

use httparse::{EMPTY_HEADER, Error, Header, Status};
use outrigger_config::Headers;

use crate::buffer::Buffer;

/// Lines parsed without an allocation. Ordinary heads have fewer than 32; clearing room for more
/// on each head would cost more than the parsing.
const ORDINARY_LINES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// Why a header section is refused (in a request) or not relied upon (in a response).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    TooLarge,
    Malformed(&'static str),
}

/// One header line, and where in the head it lies.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a [u8],
    /// The first byte of the name.
    pub(super) start: usize,
}

impl Line<'_> {
    pub(super) fn value_range(&self, head: &[u8]) -> Range<usize> {
        let start = offset(head, self.value);
        start..start + self.value.len()
    }

    /// The whole line, its line end included.
    pub(super) fn range(&self, head: &[u8]) -> Range<usize> {
        let value_end = self.value_range(head).end;
        // Only blanks and the line end stand between a value and the next line.
        let blanks = head[value_end..].iter().position(|b| *b == b'\n');
        self.start..value_end + blanks.map_or(0, |n| n + 1)
    }

    /// The elements of a comma-separated value.
    pub(super) fn elements(&self) -> impl Iterator<Item = &[u8]> {
        self.value
            .split(|b| *b == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|element| !element.is_empty())
    }

    /// Whether credentials or challenges belong to a scheme that authenticates the connection
    /// instead of the request (RFC 4559, MS-NTHT).
    pub(super) fn authenticates_connection(&self) -> bool {
        self.elements().any(|element| {
            let scheme = element.split(|b| *b == b' ').next().unwrap_or_default();
            scheme.eq_ignore_ascii_case(b"negotiate") || scheme.eq_ignore_ascii_case(b"ntlm")
        })
    }
}

/// Calls `visit` with each header line of the head that begins `head` and whose start line ends at
/// `start`. Returns the length of the whole head; none while its end has not arrived.
///
/// # Errors
/// What is no header section of lines that all end with CRLF, none of them folded.
pub(super) fn visit_lines(
    head: &[u8],
    start: usize,
    max_lines: usize,
    visit: impl FnMut(Line<'_>) -> Result<(), HeadError>,
) -> Result<Option<usize>, HeadError> {
    if max_lines > ORDINARY_LINES {
        let mut room = [EMPTY_HEADER; ORDINARY_LINES];
        match httparse::parse_headers(&head[start..], &mut room) {
            Err(Error::TooManyHeaders) => {}
            parsed => return visit_parsed(head, start, parsed, visit),
        }
    }
    let mut room = vec![EMPTY_HEADER; max_lines];
    let parsed = httparse::parse_headers(&head[start..], &mut room);
    visit_parsed(head, start, parsed, visit)
}

/// Shows each value of the header `name` of the head that begins `bytes`; for what is seldom asked.
pub(super) fn each_value(bytes: &[u8], name: &str, visit: &mut dyn FnMut(&[u8])) {
    let start = memchr::memchr(b'\n', bytes).map_or(0, |at| at + 1);
    each_line_value(bytes, start, name, visit);
}

/// The same of a header section that begins at `start`.
pub(super) fn each_line_value(
    bytes: &[u8],
    start: usize,
    name: &str,
    visit: &mut dyn FnMut(&[u8]),
) {
    // It was parsed before, so that nothing fails.
    let lines = memchr::memchr_iter(b'\n', bytes).count();
    let _ = visit_lines(bytes, start, lines, |line| {
        if line.name.eq_ignore_ascii_case(name) {
            visit(line.value);
        }
        Ok(())
    });
}

fn visit_parsed(
    head: &[u8],
    start: usize,
    parsed: httparse::Result<(usize, &[Header<'_>])>,
    mut visit: impl FnMut(Line<'_>) -> Result<(), HeadError>,
) -> Result<Option<usize>, HeadError> {
    let (length, headers) = match parsed.map_err(HeadError::from)? {
        Status::Complete(parsed) => parsed,
        Status::Partial => return Ok(None),
    };
    let end = start + length;
    for header in headers {
        let line = Line {
            name: header.name,
            value: header.value,
            start: offset(head, header.name.as_bytes()),
        };
        // httparse takes a bare LF for a line end: what ended the line before this one?
        if !head[..line.start].ends_with(b"\r\n") {
            return Err(BARE_LF);
        }
        visit(line)?;
    }
    if !head[..end].ends_with(b"\r\n\r\n") {
        return Err(BARE_LF);
    }
    Ok(Some(end))
}

/// A line of a head that was parsed before, so that nothing about it can be wrong.
pub(super) struct Parsed<'a> {
    pub(super) name: &'a [u8],
    /// Without the blanks around it.
    pub(super) value: &'a [u8],
    pub(super) value_at: Range<usize>,
    /// The whole line, its line end included.
    pub(super) whole: Range<usize>,
}

/// Shows each header line of `head`, which was parsed before and ends with its empty line.
pub(super) fn each_line<'a>(head: &'a [u8], mut visit: impl FnMut(Parsed<'a>)) {
    let mut start = memchr::memchr(b'\n', head).map_or(head.len(), |at| at + 1);
    while let Some(len) = memchr::memchr(b'\n', &head[start..]) {
        let whole = start..start + len + 1;
        let line = &head[whole.clone()];
        if let Some(colon) = memchr::memchr(b':', line) {
            // What is nothing but blanks is empty where it begins: its end is the next line's beginning.
            let value = match line[colon + 1..].trim_ascii() {
                [] => &line[colon + 1..colon + 1],
                value => value,
            };
            let value_start = offset(head, value);
            visit(Parsed {
                name: &line[..colon],
                value,
                value_at: value_start..value_start + value.len(),
                whole: whole.clone(),
            });
        }
        start = whole.end;
    }
}

/// The header lines of a whole head that was parsed before; for what is seldom asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderLines<'a>(pub(super) &'a [u8]);

impl Headers for HeaderLines<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let Self(head) = self;
        let mut rest = *head;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, next) = rest.split_at(end + 1);
            rest = next;
            // The start line has no colon behind a token.
            if line.get(name.len()) == Some(&b':')
                && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
            {
                visit(line[name.len() + 1..].trim_ascii());
            }
        }
    }
}

/// Whether a head of which `seen` bytes were no whole one may be whole now. Saves parsing again what
/// trickles in; of the first bytes each may tell that it is no head at all.
pub(super) fn may_be_whole(bytes: &[u8], seen: usize) -> bool {
    const TELLING: usize = 16;
    let new = &bytes[seen.saturating_sub(2)..];
    seen < TELLING
        || memchr::memchr_iter(b'\n', new)
            .any(|at| new[at + 1..].starts_with(b"\n") || new[at + 1..].starts_with(b"\r\n"))
}

/// A byte of a method or header name (RFC 9110, section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The number that a value of nothing but digits stands for.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    let is_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok()?;
    is_digits.then(|| text.parse().ok())?
}

const BARE_LF: HeadError = HeadError::Malformed("a line ends with LF alone");

impl From<Error> for HeadError {
    fn from(error: Error) -> Self {
        match error {
            Error::TooManyHeaders => Self::TooLarge,
            Error::HeaderName => Self::Malformed("a header name is malformed or a line is folded"),
            Error::HeaderValue => Self::Malformed("a header value holds a forbidden byte"),
            Error::NewLine => Self::Malformed("a line does not end with CRLF"),
            Error::Status | Error::Token | Error::Version => Self::Malformed("malformed head"),
        }
    }
}

/// Where `part` begins in `whole`, of which it is a part.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

/// Replacements in a head, in the order of their places. Most heads have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Edits(Vec<(Range<usize>, Vec<u8>)>);

impl Edits {
    pub(super) fn replace(&mut self, at: Range<usize>, with: Vec<u8>) {
        self.0.push((at, with));
    }

    pub(super) fn remove(&mut self, at: Range<usize>) {
        self.replace(at, Vec::new());
    }

    /// Restores the order after one was added out of it.
    pub(super) fn sort(&mut self) {
        self.0.sort_by_key(|(at, _)| at.start);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Carries the edits out on the head that begins `buffer`.
    pub(super) fn apply(&self, buffer: &mut Buffer) {
        // From the last to the first, so that each range still fits.
        for (at, with) in self.0.iter().rev() {
            buffer.replace(at.clone(), with);
        }
    }

    /// Where what begins at `start` does after the edits, be it that one of them replaces it.
    pub(super) fn moved_start(&self, start: usize) -> usize {
        let before = self
            .0
            .iter()
            .filter(|(at, _)| at.end <= start && at.start < start);
        before.fold(start, |place, (at, with)| place - at.len() + with.len())
    }

    /// Where a place that no edit touches lies after the edits.
    pub(super) fn moved(&self, place: usize) -> usize {
        let before = self.0.iter().filter(|(at, _)| at.end <= place);
        before.fold(place, |place, (at, with)| place - at.len() + with.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Places = Vec<(String, Range<usize>)>;

    /// Names and places of the lines after the start line `!`.
    fn lines(head: &[u8]) -> Result<Option<Places>, HeadError> {
        let mut lines = Vec::new();
        let end = visit_lines(head, b"!\r\n".len(), 100, |line| {
            lines.push((line.name.to_owned(), line.range(head)));
            Ok(())
        })?;
        Ok(end.map(|_| lines))
    }

    #[test]
    fn a_line_reaches_over_blanks_to_its_end() {
        let head = b"!\r\nA: 1 \t\r\nBb:\r\nC: x\r\n\r\n";
        let expected = [("A", 3..11), ("Bb", 11..16), ("C", 16..22)];
        let expected = expected.map(|(name, range)| (name.to_owned(), range));
        assert_eq!(lines(head), Ok(Some(expected.into())));
    }

    #[test]
    fn a_bare_lf_is_seen_at_every_place() {
        for head in [
            "!\r\nA: 1\nB: 2\r\n\r\n",
            "!\r\nA: 1\r\nB: 2\n\r\n",
            "!\r\nA: 1\r\n\n",
            "!\r\n\n",
        ] {
            assert_eq!(lines(head.as_bytes()), Err(BARE_LF), "{head:?}");
        }
    }

    #[test]
    fn more_lines_than_ordinary_are_parsed_and_more_than_allowed_refused() {
        let head = |lines: usize| format!("!\r\n{}\r\n", "A: 1\r\n".repeat(lines));
        assert_eq!(lines(head(100).as_bytes()).unwrap().unwrap().len(), 100);
        assert_eq!(lines(head(101).as_bytes()), Err(HeadError::TooLarge));
    }

    #[test]
    fn edits_leave_the_rest_where_it_belongs() {
        let mut buffer = Buffer::with_capacity(64);
        buffer.extend(b"one two three four");
        let mut edits = Edits::default();
        edits.remove(0..4);
        edits.replace(8..13, b"thirty-three".to_vec());
        edits.apply(&mut buffer);
        assert_eq!(buffer.filled(), b"two thirty-three four");
        assert_eq!(edits.moved(4), 0);
        assert_eq!(edits.moved(14), 17);
    }
}
