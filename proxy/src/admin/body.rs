//! Answer bodies.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::turns::{Overtaken, Paced};

/// A text, or what is written out piece by piece, as fast as it is read and no faster.
pub(super) enum Body {
    Text(Option<Bytes>),
    Pieces(Pieces),
    /// The same, one turn after the other.
    Paced(Paced),
}

pub(super) type Pieces = Box<dyn Iterator<Item = Vec<u8>> + Send>;

impl Body {
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Overtaken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Overtaken>>> {
        let next = match &mut *self {
            Self::Text(text) => text.take().map(Ok),
            Self::Pieces(pieces) => pieces.next().map(|piece| Ok(piece.into())),
            Self::Paced(paced) => {
                ready!(paced.poll_piece(context)).map(|piece| piece.map(Bytes::from))
            }
        };
        Poll::Ready(next.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Pieces(_) | Self::Paced(_) => SizeHint::default(),
        }
    }
}
