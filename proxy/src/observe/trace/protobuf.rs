//! Protocol Buffers' wire format, as far as OTLP needs it
//! (<https://protobuf.dev/programming-guides/encoding/>). Written straight into the bytes that are
//! sent: a message type for each would be some 25 allocations a span, which cost more than all else
//! that a span takes.

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// Appends fields of one message.
pub(super) struct Message<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Message<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    pub(super) fn varint(&mut self, field: u32, value: u64) {
        self.tag(field, VARINT);
        varint(self.out, value);
    }

    pub(super) fn fixed64(&mut self, field: u32, value: u64) {
        self.tag(field, FIXED64);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn fixed32(&mut self, field: u32, value: u32) {
        self.tag(field, FIXED32);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.head(field, value.len());
        self.out.extend_from_slice(value);
    }

    /// A message, or a text that is made piece by piece.
    pub(super) fn nested(&mut self, field: u32, write: impl FnOnce(&mut Message<'_>)) {
        self.tag(field, LENGTH);
        let start = self.out.len();
        // Most are short enough for a length of one byte.
        self.out.push(0);
        write(&mut Message { out: self.out });
        let len = self.out.len() - start - 1;
        if let Ok(len @ ..0x80) = u8::try_from(len) {
            self.out[start] = len;
            return;
        }
        let mut prefix = [0; 10];
        let count = write_varint(len as u64, &mut prefix);
        self.out
            .splice(start..=start, prefix[..count].iter().copied());
    }

    /// The beginning of a field of `len` bytes, which are to follow.
    pub(super) fn head(&mut self, field: u32, len: usize) {
        self.tag(field, LENGTH);
        varint(self.out, len as u64);
    }

    /// What stands for itself: a text's piece, or fields written before.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn tag(&mut self, field: u32, kind: u64) {
        varint(self.out, u64::from(field) << 3 | kind);
    }
}

fn varint(out: &mut Vec<u8>, value: u64) {
    let mut bytes = [0; 10];
    let count = write_varint(value, &mut bytes);
    out.extend_from_slice(&bytes[..count]);
}

fn write_varint(mut value: u64, bytes: &mut [u8; 10]) -> usize {
    let mut count = 0;
    while value >= 0x80 {
        bytes[count] = value as u8 | 0x80;
        value >>= 7;
        count += 1;
    }
    bytes[count] = value as u8;
    count + 1
}

/// One field of a message that somebody sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads a message field by field.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// What is still to be read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn read(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            VARINT => Value::Number(self.number()?),
            FIXED64 => Value::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            LENGTH => {
                let len = usize::try_from(self.number()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            FIXED32 => Value::Number(u32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }
}

/// Ends where the message does, or where it is no message any more.
impl<'a> Iterator for Fields<'a> {
    /// The field's number, and its value.
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if read.is_none() {
            self.rest = &[];
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_nested_message_has_a_long_length() {
        for len in [0, 127, 128, 16_383, 16_384] {
            let mut out = Vec::new();
            Message::new(&mut out).nested(1, |inner| inner.raw(&vec![b'x'; len]));
            let fields: Vec<_> = Fields::of(&out).collect();
            let [(1, Value::Bytes(inner))] = fields[..] else {
                panic!("{len}: {fields:?}");
            };
            assert_eq!(inner.len(), len);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(number: u64, bytes: Vec<u8>, field in 1_u32..1000) {
            let mut out = Vec::new();
            let mut message = Message::new(&mut out);
            message.varint(field, number);
            message.bytes(field, &bytes);
            message.fixed64(field, number);
            message.fixed32(field, number as u32);
            let expected = [
                Value::Number(number),
                Value::Bytes(&bytes),
                Value::Number(number),
                Value::Number(number & 0xffff_ffff),
            ];
            let read: Vec<_> = Fields::of(&out).collect();
            prop_assert_eq!(read, expected.map(|value| (field.into(), value)));
        }

        #[test]
        fn hostile_bytes_end_somewhere(bytes: Vec<u8>) {
            prop_assert!(Fields::of(&bytes).count() <= bytes.len());
        }
    }
}
