//! Netlink attributes: type, length, value. Whatever does not fit ends the walk.

/// The attributes in a stretch of bytes, each with its type and value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

const HEADER: usize = 4;
/// Without the flags `nested` and `network byte order`.
const TYPE_MASK: u16 = 0x3fff;

impl<'a> Attributes<'a> {
    /// The first of type `kind`.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter()
            .find_map(|(found, value)| (found == kind).then_some(value))
    }

    pub(crate) fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }

    /// netfilter sends numbers in network byte order.
    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    pub(super) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    pub(super) fn string(self, kind: u16) -> Option<String> {
        Some(string(self.find(kind)?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0;
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & TYPE_MASK;
        let value = bytes.get(HEADER..length)?;
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Up to the first zero, as C has it.
pub(super) fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Appends an attribute whose value is a string.
pub(super) fn put_string(bytes: &mut Vec<u8>, kind: u16, value: &str) {
    let length = HEADER + value.len() + 1;
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value.as_bytes());
    bytes.resize(bytes.len() + 1 + (length.next_multiple_of(4) - length), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_their_type() {
        let mut bytes = Vec::new();
        put_string(&mut bytes, 1, "nat");
        put_string(&mut bytes, 2, "OUTPUT");
        assert_eq!(Attributes(&bytes).string(2).unwrap(), "OUTPUT");
        assert_eq!(Attributes(&bytes).string(3), None);
    }

    #[test]
    fn a_length_that_leads_outside_ends_the_walk() {
        for bytes in [&[0, 0, 1, 0][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 0], &[8]] {
            assert_eq!(Attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
