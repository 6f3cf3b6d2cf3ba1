//! One access log line as it is written: the same fields as JSON or as `key=value` words. Whatever
//! a client sent is quoted and escaped, so that no value can end its line or pose as another field.

use std::io::Write;

use super::{format::Shape, value::Append};

/// Bytes of one value that are shown; what follows is cut and marked. A 60 KiB request target would
/// otherwise fill a disk at no cost to the client.
pub(super) const MAX_VALUE: usize = 2048;

#[derive(Debug)]
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: Shape,
    is_first: bool,
}

impl<'a> Line<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>, format: Shape) -> Self {
        if format == Shape::Json {
            out.push(b'{');
        }
        Self {
            out,
            format,
            is_first: true,
        }
    }

    pub(super) fn shape(&self) -> Shape {
        self.format
    }

    pub(super) fn end(self) {
        if self.format == Shape::Json {
            self.out.push(b'}');
        }
        self.out.push(b'\n');
    }

    /// A number or a truth value.
    pub(super) fn bare(&mut self, key: &str, value: impl Append) {
        self.key(key);
        value.append(self.out);
    }

    /// A value of our own making, in which nothing needs escaping: labels, addresses, times.
    pub(super) fn word(&mut self, key: &str, value: impl Append) {
        self.key(key);
        match self.format {
            Shape::Json => {
                self.out.push(b'"');
                value.append(self.out);
                self.out.push(b'"');
            }
            Shape::Text => value.append(self.out),
        }
    }

    /// Anything from outside, given in pieces.
    pub(super) fn text(&mut self, key: &str, pieces: &[&[u8]]) {
        self.key(key);
        self.out.push(b'"');
        let mut room = MAX_VALUE;
        for piece in pieces {
            let shown = &piece[..piece.len().min(room)];
            escape(self.out, shown);
            room -= shown.len();
            if shown.len() < piece.len() {
                self.out.extend_from_slice("…".as_bytes());
                break;
            }
        }
        self.out.push(b'"');
    }

    fn key(&mut self, key: &str) {
        let is_first = std::mem::replace(&mut self.is_first, false);
        match self.format {
            Shape::Json => {
                if !is_first {
                    self.out.push(b',');
                }
                self.out.push(b'"');
                self.out.extend_from_slice(key.as_bytes());
                self.out.extend_from_slice(b"\":");
            }
            Shape::Text => {
                if !is_first {
                    self.out.push(b' ');
                }
                self.out.extend_from_slice(key.as_bytes());
                self.out.push(b'=');
            }
        }
    }
}

/// Appends `bytes` as the inside of a JSON string. Control characters are escaped beyond what JSON
/// asks, those above ASCII and the line separators included: some terminals and log readers act on
/// them. What is no UTF-8 becomes U+FFFD.
pub(super) fn escape(out: &mut Vec<u8>, mut bytes: &[u8]) {
    while let Some(plain) = bytes.iter().position(|b| !is_plain(*b)) {
        out.extend_from_slice(&bytes[..plain]);
        let rest = &bytes[plain..];
        // No character beyond ASCII has a plain byte in it.
        let odd = rest.iter().position(|b| is_plain(*b));
        let (odd, rest) = rest.split_at(odd.unwrap_or(rest.len()));
        escape_odd(out, odd);
        bytes = rest;
    }
    out.extend_from_slice(bytes);
}

/// A byte that stands for itself, whatever is around it: most are.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

fn escape_odd(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                c if c.is_control() || is_line_or_direction_mark(c) => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// Characters that break a line, or show it in another order than it was written.
fn is_line_or_direction_mark(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(format: Shape, value: &[u8]) -> String {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, format);
        line.text("target", &[value]);
        line.bare("status", 200_u16);
        line.end();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn both_formats_say_the_same() {
        assert_eq!(
            line(Shape::Json, b"/a b"),
            "{\"target\":\"/a b\",\"status\":200}\n"
        );
        assert_eq!(line(Shape::Text, b"/a b"), "target=\"/a b\" status=200\n");
    }

    #[test]
    fn no_value_can_forge_a_line_or_a_field() {
        let forged = b"/\" status=200\r\n2026 GET \x1b[31m\xc2\x9b31m\xe2\x80\xa8\xe2\x80\xae\xff";
        for format in [Shape::Json, Shape::Text] {
            let line = line(format, forged);
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(
                line.contains(
                    r#""/\" status=200\u000d\u000a2026 GET \u001b[31m\u009b31m\u2028\u202e�""#
                ),
                "{line}"
            );
        }
    }

    #[test]
    fn a_huge_value_is_cut_and_marked() {
        let line = line(Shape::Text, &[b'a'; 60_000]);
        assert!(line.len() < MAX_VALUE + 40);
        assert!(line.contains("a…\" status"), "{line}");
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_line_of_valid_json(value: Vec<u8>) {
            let line = line(Shape::Json, &value);
            prop_assert_eq!(line.lines().count(), 1);
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            let lossy = String::from_utf8_lossy(&value);
            prop_assert_eq!(parsed["target"].as_str().unwrap(), lossy.as_ref());
        }
    }
}
