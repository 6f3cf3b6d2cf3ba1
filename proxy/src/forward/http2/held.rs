//! Body bytes that the other side does not take yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Smaller chunks are copied together: each chunk keeps alive the whole buffer it was read into, and
/// costs a queue entry.
const SMALL: usize = 4 * 1024;

/// Takes no room worth mentioning before the first byte is held: most bodies never are.
#[derive(Debug, Default)]
pub(super) struct Held(Option<Box<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Small chunks behind `chunks`, copied together.
    tail: BytesMut,
    len: usize,
}

impl Held {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        let queue = self.0.get_or_insert_default();
        queue.len += chunk.len();
        if chunk.len() < SMALL {
            queue.tail.extend_from_slice(&chunk);
        } else {
            queue.close_tail();
            queue.chunks.push_back(chunk);
        }
    }

    /// Puts `chunks` before all others.
    pub(super) fn push_front(&mut self, chunks: Vec<Bytes>) {
        let queue = self.0.get_or_insert_default();
        for chunk in chunks.into_iter().rev() {
            queue.len += chunk.len();
            queue.chunks.push_front(chunk);
        }
    }

    /// All of it, which stays.
    pub(super) fn chunks(&mut self) -> Vec<Bytes> {
        let Some(queue) = &mut self.0 else {
            return Vec::new();
        };
        queue.close_tail();
        queue.chunks.iter().cloned().collect()
    }

    /// Takes some of the first bytes, at most `max`.
    pub(super) fn pop(&mut self, max: usize) -> Bytes {
        let Some(queue) = &mut self.0 else {
            return Bytes::new();
        };
        if queue.chunks.is_empty() {
            queue.close_tail();
        }
        let Some(first) = queue.chunks.front_mut() else {
            return Bytes::new();
        };
        let taken = first.split_to(first.len().min(max));
        if first.is_empty() {
            queue.chunks.pop_front();
        }
        queue.len -= taken.len();
        taken
    }
}

impl Queue {
    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_the_order_they_went_in() {
        let mut held = Held::default();
        let large = Bytes::from(vec![b'L'; SMALL]);
        for chunk in [
            Bytes::from("ab"),
            Bytes::from("cd"),
            large.clone(),
            Bytes::from("e"),
        ] {
            held.push(chunk);
        }
        held.push_front(vec![Bytes::from("1"), Bytes::from("2")]);
        assert_eq!(held.len(), 2 + 4 + SMALL + 1);
        let mut all = Vec::new();
        while !held.is_empty() {
            all.extend_from_slice(&held.pop(3));
        }
        assert_eq!(all, [b"12abcd", &large[..], b"e"].concat());
    }

    #[test]
    fn small_chunks_share_one_queue_entry() {
        let mut held = Held::default();
        for _ in 0..1000 {
            held.push(Bytes::from_static(b"x"));
        }
        assert_eq!(held.pop(usize::MAX).len(), 1000);
        assert!(held.is_empty());
    }
}
