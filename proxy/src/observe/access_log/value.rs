//! Values of our own making, in which nothing needs escaping. Digits and addresses, most of a line,
//! are written without `core::fmt`, which would cost more than all the rest of it.

use std::{fmt::Display, io::Write, net::SocketAddr};

pub(super) trait Append {
    fn append(&self, out: &mut Vec<u8>);
}

/// Whatever shows itself.
pub(super) struct Shown<T>(pub(super) T);

impl<T: Display> Append for Shown<T> {
    fn append(&self, out: &mut Vec<u8>) {
        // Writing to a `Vec` cannot fail.
        let _ = write!(out, "{}", self.0);
    }
}

macro_rules! digits {
    ($($number:ty),*) => {$(
        impl Append for $number {
            fn append(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
            }
        }
    )*};
}

digits!(u8, u16, u32, u64, u128);

impl Append for bool {
    fn append(&self, out: &mut Vec<u8>) {
        let text = if *self { "true" } else { "false" };
        text.append(out);
    }
}

impl Append for &str {
    fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
}

impl Append for SocketAddr {
    fn append(&self, out: &mut Vec<u8>) {
        let Self::V4(address) = self else {
            return Shown(self).append(out);
        };
        let [first, rest @ ..] = address.ip().octets();
        first.append(out);
        for octet in rest {
            out.push(b'.');
            octet.append(out);
        }
        out.push(b':');
        address.port().append(out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn appended(value: impl Append) -> String {
        let mut out = Vec::new();
        value.append(&mut out);
        String::from_utf8(out).expect("text")
    }

    proptest! {
        #[test]
        fn values_are_written_as_they_show_themselves(address: SocketAddr, number: u64, truth: bool) {
            prop_assert_eq!(appended(address), address.to_string());
            prop_assert_eq!(appended(number), number.to_string());
            prop_assert_eq!(appended(u128::from(number) << 60), (u128::from(number) << 60).to_string());
            prop_assert_eq!(appended(truth), truth.to_string());
        }
    }
}
