//! OTLP's attributes: keys with values of a few kinds.

use std::fmt::{self, Write};

use super::protobuf::Message;

/// Bytes of one text. What is longer is cut, so that no client can fill the queue with few spans.
pub(super) const MAX_TEXT: usize = 1024;

/// Appends attributes to a message that has them in `field`.
pub(super) struct Attributes<'m, 'b> {
    pub(super) message: &'m mut Message<'b>,
    pub(super) field: u32,
}

impl Attributes<'_, '_> {
    /// Anything from outside, given in pieces.
    pub(super) fn text(&mut self, key: &str, pieces: &[&[u8]]) {
        self.value(key, |any| any.nested(1, |text| write_text(text, pieces)));
    }

    /// A short text of our own making.
    pub(super) fn word(&mut self, key: &str, value: impl fmt::Display) {
        self.value(key, |any| any.nested(1, |text| write_word(text, value)));
    }

    pub(super) fn number(&mut self, key: &str, value: u64) {
        self.value(key, |any| any.varint(3, value));
    }

    fn value(&mut self, key: &str, write: impl FnOnce(&mut Message<'_>)) {
        self.message.nested(self.field, |attribute| {
            attribute.bytes(1, key.as_bytes());
            attribute.nested(2, write);
        });
    }
}

pub(super) fn write_word(text: &mut Message<'_>, value: impl fmt::Display) {
    // Writing to memory cannot fail.
    let _ = write!(Text(text), "{value}");
}

/// Bytes as a text of Protocol Buffers', which must be UTF-8: a collector refuses the whole batch
/// otherwise. What is none becomes U+FFFD.
pub(super) fn write_text(text: &mut Message<'_>, pieces: &[&[u8]]) {
    let mut room = MAX_TEXT;
    for piece in pieces {
        for chunk in piece.utf8_chunks() {
            let valid = chunk.valid();
            let shown = &valid[..valid.floor_char_boundary(room)];
            text.raw(shown.as_bytes());
            room -= shown.len();
            if shown.len() < valid.len() {
                return;
            }
            if !chunk.invalid().is_empty() {
                let mark = "\u{fffd}".as_bytes();
                if room < mark.len() {
                    return;
                }
                text.raw(mark);
                room -= mark.len();
            }
        }
    }
}

struct Text<'m, 'b>(&'m mut Message<'b>);

impl Write for Text<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.raw(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        write_text(&mut Message::new(&mut out), pieces);
        out
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_bounded_text(one: Vec<u8>, fill in 1000..1030_usize, two: Vec<u8>) {
            let fill = "x".repeat(fill);
            let out = text(&[&one, fill.as_bytes(), &two]);
            prop_assert!(out.len() <= MAX_TEXT);
            prop_assert!(std::str::from_utf8(&out).is_ok());
        }

        #[test]
        fn short_texts_are_whole(one: String, two: String) {
            let whole = format!("{one}{two}");
            prop_assume!(whole.len() <= MAX_TEXT);
            prop_assert_eq!(text(&[one.as_bytes(), two.as_bytes()]), whole.into_bytes());
        }
    }
}
