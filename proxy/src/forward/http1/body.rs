//! Where a message's body ends.

use super::chunked::Chunked;

/// How a body tells its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// 0 stands for no body as well.
    Length(u64),
    Chunked,
    /// The connection's end is the body's; responses only.
    UntilClose,
}

/// A body on its way, and how much of it is still to come.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Length { left: u64 },
    Chunked(Chunked),
    UntilClose,
}

impl Body {
    pub(super) fn new(framing: Framing, max_trailer_bytes: usize) -> Self {
        match framing {
            Framing::Length(left) => Self::Length { left },
            Framing::Chunked => Self::Chunked(Chunked::new(max_trailer_bytes)),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length { left } => *left == 0,
            Self::Chunked(chunked) => chunked.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Keeps the trailer section of a chunked body.
    pub(super) fn keep_trailers(&mut self) {
        if let Self::Chunked(chunked) = self {
            chunked.keep_trailers();
        }
    }

    pub(super) fn trailers(&self) -> Option<&[u8]> {
        match self {
            Self::Chunked(chunked) => chunked.trailers(),
            Self::Length { .. } | Self::UntilClose => None,
        }
    }

    /// Counts those of `bytes` that belong to the body as seen, and tells how many they are.
    ///
    /// # Errors
    /// What is wrong with the chunked coding.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        match self {
            Self::Length { left } => {
                let here = (*left).min(bytes.len() as u64);
                *left -= here;
                Ok(here as usize)
            }
            Self::Chunked(chunked) => chunked.scan(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }
}
