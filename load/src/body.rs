//! Where an HTTP/1.1 response body begins and ends, decoded in place.
//!
//! Owns the head's meaning for the body and the chunk framing (RFC 9112, sections 6 and 7).
//! Refuses framing it does not understand: it is the gateway's fault and is counted. Invariant:
//! the same bytes give the same data wherever they are split. Cost: no allocation, no copy.

/// The chunk framing was wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadFraming;

/// The decoder of one body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Chunks, and where we are in them.
    Chunked(Chunk),
    /// So many bytes are left.
    Length(u64),
    /// The close ends it.
    Close,
}

/// A place within chunk framing, named for what is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Digits of a size.
    Size { size: u64, digits: u8 },
    /// The rest of an extension.
    Extension { size: u64 },
    /// The line feed after a size.
    SizeLf { size: u64 },
    /// So many bytes of data.
    Data(u64),
    /// The carriage return after the data.
    DataCr,
    /// The line feed after the data.
    DataLf,
    /// A trailer line, of which so much was seen (0 or 1 for more).
    Trailer { begun: bool },
    /// The line feed of a trailer line, empty or not.
    TrailerLf { begun: bool },
    /// Nothing.
    Done,
}

impl Body {
    pub(crate) const CHUNKED: Self = Self::Chunked(Chunk::Size { size: 0, digits: 0 });

    /// Whether the body has come to its own end.
    pub(crate) fn is_done(self) -> bool {
        matches!(self, Self::Chunked(Chunk::Done) | Self::Length(0))
    }

    /// Whether an end of the connection is a proper end now.
    pub(crate) fn may_end(self) -> bool {
        self.is_done() || self == Self::Close
    }

    /// Takes the next bytes and hands on the data in them. Bytes after the end are bad framing:
    /// nothing was asked that they could answer.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), BadFraming> {
        match self {
            Self::Close => each(bytes),
            Self::Length(left) => {
                let length = bytes.len() as u64;
                each(&bytes[..usize::try_from(*left).map_or(bytes.len(), |l| l.min(bytes.len()))]);
                if length > *left {
                    return Err(BadFraming);
                }
                *left -= length;
            }
            Self::Chunked(chunk) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    rest = chunk.step(rest, &mut each)?;
                }
            }
        }
        Ok(())
    }
}

impl Chunk {
    fn step<'b>(
        &mut self,
        bytes: &'b [u8],
        each: &mut impl FnMut(&[u8]),
    ) -> Result<&'b [u8], BadFraming> {
        if let Self::Data(left) = *self {
            let take = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (data, rest) = bytes.split_at(take);
            each(data);
            let left = left - take as u64;
            *self = if left == 0 { Self::DataCr } else { Self::Data(left) };
            return Ok(rest);
        }
        *self = self.next(bytes[0])?;
        Ok(&bytes[1..])
    }

    fn next(self, byte: u8) -> Result<Self, BadFraming> {
        Ok(match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                Self::Size { size: size * 16 + u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { size, digits: 1.. } | Self::Extension { size }, b'\r') => {
                Self::SizeLf { size }
            }
            (Self::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => Self::Extension { size },
            (Self::Extension { size }, _) if byte != b'\n' => Self::Extension { size },
            (Self::SizeLf { size: 0 }, b'\n') => Self::Trailer { begun: false },
            (Self::SizeLf { size }, b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::Trailer { begun }, b'\r') => Self::TrailerLf { begun },
            (Self::Trailer { .. }, _) if byte != b'\n' => Self::Trailer { begun: true },
            (Self::TrailerLf { begun: true }, b'\n') => Self::Trailer { begun: false },
            (Self::TrailerLf { begun: false }, b'\n') => Self::Done,
            _ => return Err(BadFraming),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(mut body: Body, pieces: &[&[u8]]) -> (Vec<u8>, Result<(), BadFraming>, Body) {
        let mut data = Vec::new();
        let mut result = Ok(());
        for piece in pieces {
            result = body.feed(piece, |bytes| data.extend_from_slice(bytes));
            if result.is_err() {
                break;
            }
        }
        (data, result, body)
    }

    #[test]
    fn chunks_split_at_every_offset_give_the_same() {
        let bytes =
            b"5\r\nhello\r\n00A;x=1\r\n, big worl\r\n1 \r\nd\r\n0\r\nsim-trailer: end\r\n\r\n";
        for at in 0..=bytes.len() {
            let (data, result, body) = decode(Body::CHUNKED, &[&bytes[..at], &bytes[at..]]);
            assert_eq!((data.as_slice(), result), (b"hello, big world".as_slice(), Ok(())));
            assert!(body.is_done());
        }
        for end in 0..bytes.len() {
            let (_, result, body) = decode(Body::CHUNKED, &[&bytes[..end]]);
            assert!(result.is_ok() && !body.may_end(), "{end}");
        }
    }

    #[test]
    fn wrong_framing_is_refused() {
        let wrong: [&[u8]; 8] = [
            b"xyz\r\n",
            b"\r\n",
            b"5\nhello",
            b"5\r\nhello!\r\n",
            b"2\r\nab\n",
            b"fffffffffffffffff\r\n",
            b"0\r\n\r\nmore",
            b"-1\r\n",
        ];
        for bytes in wrong {
            assert_eq!(decode(Body::CHUNKED, &[bytes]).1, Err(BadFraming), "{bytes:?}");
        }
        assert_eq!(decode(Body::Length(2), &[b"abc"]).1, Err(BadFraming));
    }

    #[test]
    fn lengths_and_closes_end_where_they_should() {
        let (data, _, body) = decode(Body::Length(4), &[b"ab", b"cd"]);
        assert!(body.is_done() && data == b"abcd");
        assert!(!decode(Body::Length(4), &[b"ab"]).2.may_end());
        let close = decode(Body::Close, &[b"ab"]).2;
        assert!(close.may_end() && !close.is_done());
    }
}
