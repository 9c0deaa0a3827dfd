//! Decoder of the chunked transfer coding (RFC 9112, section 7.1), without copying.
//!
//! Owns: which bytes of a piece are payload, and where the body ends. Refuses: every leniency in
//! which two implementations could differ (bare LF, white space or a sign beside the size, more
//! than 16 digits), since a difference about where a message ends is how requests are smuggled.
//! Extensions and trailers are skipped, up to a limit. Invariant: an error is final.
//! Cost: 16 bytes per message.

use std::ops::Range;

use memchr::memchr2;

use crate::limits::{CHUNK_EXTENSION_BYTES, CHUNK_TRAILER_BYTES};

#[cfg(test)]
mod tests;

/// Most digits of a chunk size, leading zeros included: more could overflow 64 bits.
pub const SIZE_DIGITS_MAX: u8 = 16;

/// Why the bytes are not a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// No digit, or something that is neither a digit nor the end of the size.
    #[error("chunk size is not a hexadecimal number")]
    Size,
    /// More than 16 digits.
    #[error("chunk size has more than 16 digits")]
    SizeTooLong,
    /// A bare LF or a bare CR, or a control character where only text may be.
    #[error("chunk framing must end its lines with CRLF")]
    LineEnd,
    /// Payload goes on after the announced size.
    #[error("chunk is longer than its size")]
    Overrun,
    /// Extensions beyond [`CHUNK_EXTENSION_BYTES`].
    #[error("chunk extensions are too long")]
    ExtensionsTooLong,
    /// Trailers beyond [`CHUNK_TRAILER_BYTES`].
    #[error("trailers are too long")]
    TrailersTooLong,
}

/// What one call of [`Decoder::feed`] made of its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes used up. More may remain: the next chunk, or (when done) what follows the message.
    pub consumed: usize,
    /// Payload within the bytes given; may be empty.
    pub data: Range<usize>,
    /// The body is complete, trailers included.
    pub done: bool,
}

/// What the next byte is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first digit of a size.
    SizeStart,
    /// A further digit, or the end of the size.
    Size,
    /// A chunk extension's byte, or CR.
    Extension,
    /// The LF that ends the size line.
    SizeLf,
    /// Payload; `left` bytes of it.
    Data,
    /// The CR behind the payload.
    DataCr,
    /// The LF behind the payload.
    DataLf,
    /// A trailer line's first byte, or the CR of the last line.
    TrailerStart,
    /// A trailer line's further byte, or its CR.
    Trailer,
    /// The LF of a trailer line.
    TrailerLf,
    /// The LF of the last, empty line.
    EndLf,
    /// Nothing: the body is complete.
    Done,
    /// Nothing: the framing is broken.
    Broken(ChunkError),
}

/// Follows one chunked body.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Payload bytes left of the current chunk; while in the size line, its value so far.
    left: u64,
    /// Extension bytes so far; from the last chunk on, trailer bytes.
    skipped: u16,
    digits: u8,
    state: State,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder at the start of a body.
    pub fn new() -> Decoder {
        Decoder { left: 0, skipped: 0, digits: 0, state: State::SizeStart }
    }

    /// Takes bytes up to the end of one run of payload and the framing behind it. To be called
    /// again with the rest until everything is consumed or the body is done. When done, it
    /// consumes nothing more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step, ChunkError> {
        let mut step = Step::default();
        while step.consumed < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                if !step.data.is_empty() {
                    break;
                }
                step.data = self.take_data(step.consumed, bytes.len());
                step.consumed = step.data.end;
                continue;
            }
            match self.frame(&bytes[step.consumed..]) {
                Ok(used) => step.consumed += used,
                Err(error) => {
                    self.state = State::Broken(error);
                    // Payload that came before the fault is still good: hand it out first.
                    if step.data.is_empty() {
                        return Err(error);
                    }
                    break;
                }
            }
        }
        step.done = self.state == State::Done;
        Ok(step)
    }

    /// The body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn take_data(&mut self, from: usize, len: usize) -> Range<usize> {
        let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(len - from);
        self.left -= here as u64;
        if self.left == 0 {
            self.state = State::DataCr;
        }
        from..from + here
    }

    /// Takes at least one byte of framing; returns how many.
    fn frame(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let byte = bytes[0];
        let mut used = 1;
        self.state = match (self.state, byte) {
            (State::Broken(error), _) => return Err(error),
            (State::Size, b'\r') => State::SizeLf,
            (State::Size, b';') => {
                self.skip(1, CHUNK_EXTENSION_BYTES, ChunkError::ExtensionsTooLong)?;
                State::Extension
            }
            (State::SizeStart | State::Size, _) => self.size(byte)?,
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, _) => {
                used = text(bytes)?;
                self.skip(used, CHUNK_EXTENSION_BYTES, ChunkError::ExtensionsTooLong)?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                if self.left > 0 {
                    State::Data
                } else {
                    self.skipped = 0;
                    State::TrailerStart
                }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataCr, _) => return Err(ChunkError::Overrun),
            (State::DataLf, b'\n') => State::SizeStart,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, _) => {
                used = text(bytes)?;
                self.skip(used, CHUNK_TRAILER_BYTES, ChunkError::TrailersTooLong)?;
                State::Trailer
            }
            (State::TrailerLf, b'\n') => {
                self.skip(2, CHUNK_TRAILER_BYTES, ChunkError::TrailersTooLong)?;
                State::TrailerStart
            }
            (State::EndLf, b'\n') => State::Done,
            (State::SizeLf | State::DataLf | State::TrailerLf | State::EndLf, _) => {
                return Err(ChunkError::LineEnd);
            }
            // `feed` handles these two itself.
            (State::Data | State::Done, _) => return Ok(0),
        };
        Ok(used)
    }

    fn size(&mut self, byte: u8) -> Result<State, ChunkError> {
        let digit = char::from(byte).to_digit(16).ok_or(ChunkError::Size)?;
        if self.digits == SIZE_DIGITS_MAX {
            return Err(ChunkError::SizeTooLong);
        }
        self.digits += 1;
        // Exactly 16 digits fill 64 bits, and the chunk before is used up: nothing is shifted out.
        self.left = self.left << 4 | u64::from(digit);
        Ok(State::Size)
    }

    fn skip(&mut self, n: usize, most: u16, error: ChunkError) -> Result<(), ChunkError> {
        let total = usize::from(self.skipped) + n;
        self.skipped = u16::try_from(total).ok().filter(|total| *total <= most).ok_or(error)?;
        Ok(())
    }
}

/// Length of the text before the next line end; a line of an extension or trailer is never empty.
fn text(bytes: &[u8]) -> Result<usize, ChunkError> {
    let len = memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
    let fine = |byte: &u8| *byte >= b' ' && *byte != 0x7F || *byte == b'\t';
    if len == 0 || !bytes[..len].iter().all(fine) {
        return Err(ChunkError::LineEnd);
    }
    Ok(len)
}
