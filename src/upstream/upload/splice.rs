//! A change of a request's body that has come in whole.
//!
//! Nothing is copied: what stays of the body shares its block. Invariant: of the client's bytes only
//! those that the splice names are missing, and the length that is told is that of what goes out.

use bytes::Bytes;

use crate::upstream::upload::Upload;
use crate::wire::usage::ask::Splice;

impl Upload {
    /// Changes the body as `find` says; whether it did. One that has not come in whole is left as it is.
    pub fn splice(&mut self, find: impl FnOnce(&[u8]) -> Option<Splice>) -> bool {
        let (None, [whole]) = (&self.rest, self.ahead.make_contiguous()) else { return false };
        let Some(Splice { at, instead }) = find(whole) else { return false };
        let (goes, comes) = (at.len() as i64, instead.len() as i64);
        let before = whole.slice(..at.start);
        let pieces = [before, Bytes::from_static(instead), whole.slice(at.end..)];
        self.left = Some(pieces.iter().map(|piece| piece.len() as u64).sum());
        self.ahead = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        self.state.added.set(comes - goes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::wheel::Wheel;
    use http_body::Body;

    #[test]
    fn a_body_is_changed_without_being_copied() {
        let wheel = Wheel::new();
        let mut upload = Upload::made_of(&["{\"a\":null}"], &wheel);
        let block = upload.pieces()[0].as_ptr();
        assert!(upload.splice(|_| Some(Splice { at: 5..9, instead: b"true!" })));
        assert_eq!(upload.pieces(), [b"{\"a\":".as_slice(), b"true!", b"}"]);
        assert_eq!(upload.pieces()[0].as_ptr(), block);
        assert_eq!(upload.size_hint().exact(), Some(11));
        assert_eq!(upload.state().added.get(), 1);
        let again = upload.again();
        assert!(again.is_none(), "it is not known to have come in");
        let mut upload = Upload::made_of(&["ab"], &wheel);
        assert!(upload.splice(|_| Some(Splice { at: 2..2, instead: b"c" })));
        assert_eq!(upload.pieces(), [b"ab".as_slice(), b"c"], "no piece is empty");
    }

    #[test]
    fn what_is_not_to_be_changed_stays() {
        let wheel = Wheel::new();
        let mut upload = Upload::made_of(&["ab"], &wheel);
        assert!(!upload.splice(|whole| {
            assert_eq!(whole, b"ab");
            None
        }));
        assert_eq!((upload.pieces(), upload.size_hint().exact()), (vec![&b"ab"[..]], Some(2)));
        let some = |_: &[u8]| Some(Splice { at: 0..0, instead: b"c" });
        assert!(!Upload::made_of(&["a", "b"], &wheel).splice(some), "not in one block");
        assert!(!Upload::made_of(&[], &wheel).splice(some));
    }
}
