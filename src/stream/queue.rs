//! Pieces of a response that wait for their sink, first in, first out.
//!
//! Cost: a pointer while nothing waits, which is nearly always; an emptied queue keeps nothing.

use std::collections::VecDeque;

use bytes::Bytes;

/// See the module.
#[derive(Default)]
#[allow(
    clippy::box_collection,
    reason = "a pointer instead of 32 bytes for what is nearly always empty"
)]
pub struct Queue(Option<Box<VecDeque<Bytes>>>);

impl Queue {
    /// Queues `piece`, unless it is empty.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.0.get_or_insert_default().push_back(piece);
        }
    }

    /// The next piece.
    pub fn pop(&mut self) -> Option<Bytes> {
        let piece = self.0.as_mut()?.pop_front();
        if self.is_empty() {
            self.0 = None;
        }
        piece
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|pieces| pieces.is_empty())
    }

    /// What waits, piece by piece.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.0.iter().flat_map(|pieces| pieces.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_in_order_and_an_emptied_queue_keeps_nothing() {
        let mut queue = Queue::default();
        for piece in ["a", "", "b"] {
            queue.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!(queue.iter().map(Bytes::len).sum::<usize>(), 2);
        assert_eq!((queue.pop(), queue.pop()), (Some("a".into()), Some("b".into())));
        assert!(queue.is_empty() && queue.0.is_none() && queue.pop().is_none());
    }
}
