//! The beginning of a request's body, collected before the upstream is chosen.

use bytes::Bytes;

use crate::admission::budget::Charge;

/// The beginning of a body while it is collected, in one block, so that what is charged is what is
/// held: small pieces would each keep a whole read buffer of the client's connection.
#[derive(Default)]
pub(super) struct Ahead {
    /// A body that came whole in one piece is not copied.
    whole: Bytes,
    pieces: Vec<u8>,
}

impl Ahead {
    /// Bytes collected so far.
    pub(super) fn len(&self) -> usize {
        self.whole.len() + self.pieces.len()
    }

    /// Adds `bytes`; they are all of the body, alone in a buffer, if `whole`. Grows towards `most`.
    /// False if the budget is used up: what was charged then is beyond it.
    pub(super) fn collect(
        &mut self,
        bytes: Bytes,
        whole: bool,
        most: usize,
        charge: &mut Charge,
    ) -> bool {
        if whole && self.pieces.is_empty() {
            let fits = charge.try_grow(bytes.len());
            self.whole = bytes;
            return fits;
        }
        let (had, needed) = (self.pieces.capacity(), self.pieces.len() + bytes.len());
        let mut fits = true;
        if needed > had {
            let doubled = needed.max((had * 2).min(most));
            // With a full budget it grows by what is there already, and no more.
            fits = charge.try_grow(doubled - had);
            let wanted = if fits { doubled } else { needed };
            self.pieces.reserve_exact(wanted - self.pieces.len());
            charge.set(self.pieces.capacity());
        }
        self.pieces.extend_from_slice(&bytes);
        fits
    }

    /// All of them; `None`: there are none.
    pub(super) fn into_bytes(self) -> Option<Bytes> {
        let all = if self.pieces.is_empty() { self.whole } else { self.pieces.into() };
        (!all.is_empty()).then_some(all)
    }
}
