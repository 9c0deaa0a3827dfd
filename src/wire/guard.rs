//! The guard that every byte of an HTTP/1 client passes before the HTTP library sees it.
//!
//! Owns: refusing what a gateway must refuse and the library accepts and then hides (bare LF, a
//! fragment in the target, doubled or mixed framing headers; RFC 9112, sections 2.2, 3.2 and 6),
//! and what the library would refuse without a word of why (no request line, control characters,
//! too many fields). It follows the message framing, so pipelined heads are checked too. Refuses:
//! to judge what a head means (methods, hosts, paths, ordinary headers). Invariant: the library never sees the byte
//! that would complete a faulty head, nor anything after a fault; and since each byte is framed
//! here by the strictest reading, the two cannot disagree about where a message ends.
//! Cost: 64 bytes per connection, nothing on the heap; bodies are skipped, not looked at.

use super::chunked::{ChunkError, Decoder};
use crate::limits;

#[cfg(test)]
mod tests;

/// Field names that matter here, in lower case.
const NAMES: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];
const NAME_LENGTH: u8 = 0b01;
const NAME_CODING: u8 = 0b10;
const CHUNKED: &[u8; 7] = b"chunked";
/// What a request line ends in, before the minor version.
const VERSION: &[u8; 7] = b"HTTP/1.";

/// What is wrong with a request; the message tells its sender what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// RFC 9112, 2.2 lets a recipient take LF alone; intermediaries that differ on it get smuggled.
    #[error("lines of a request head must end with CRLF, not with LF alone")]
    BareLf,
    /// RFC 9112, 2.2: a CR without LF is invalid.
    #[error("a request head must not contain CR without LF")]
    BareCr,
    /// RFC 9112, 5.2.
    #[error("header lines must not be folded")]
    FoldedLine,
    /// RFC 9112, 5.1: a token, then a colon, and no white space between.
    #[error("a header line must be a name, directly followed by a colon")]
    BadFieldName,
    /// RFC 9112, 3: a method, a target and a version, with one space between.
    #[error("a request must begin with a line like 'GET /path HTTP/1.1'")]
    BadRequestLine,
    /// RFC 9110, 5.5: no control characters but tabs.
    #[error("a header value must not contain control characters")]
    BadFieldValue,
    /// More fields than [`limits::CLIENT_HEAD_FIELDS`].
    #[error("the request head has more than {} fields", limits::CLIENT_HEAD_FIELDS)]
    TooManyFields,
    /// RFC 9112, 3.2: no form of a request target has a fragment.
    #[error("the request target must not contain '#'")]
    Fragment,
    /// Two `Transfer-Encoding` lines.
    #[error("send Transfer-Encoding only once")]
    DuplicateTransferEncoding,
    /// Anything but exactly `chunked`.
    #[error("the only Transfer-Encoding taken is 'chunked'")]
    UnsupportedTransferEncoding,
    /// RFC 9112, 6.1: the framing of such a message is faulty.
    #[error("HTTP/1.0 has no Transfer-Encoding")]
    TransferEncodingInHttp10,
    /// RFC 9112, 6.3 allows to refuse it.
    #[error("send Content-Length or Transfer-Encoding, not both")]
    LengthWithTransferEncoding,
    /// Two `Content-Length` lines, even if equal.
    #[error("send Content-Length only once")]
    ConflictingLength,
    /// Not a decimal number below 2^64.
    #[error("Content-Length must be one decimal number")]
    BadLength,
    /// More bytes than the guard was made for.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// Broken chunk framing in a body.
    #[error("the chunked request body is malformed: {0}")]
    BadChunk(ChunkError),
}

impl Fault {
    /// The status to answer with: 431 for a head too large, else 400.
    pub fn status(&self) -> u16 {
        if matches!(self, Fault::HeadTooLarge | Fault::TooManyFields) { 431 } else { 400 }
    }
}

/// What the client is to send next; tells which deadline applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expecting {
    /// A new request, no byte of which is here (but for empty lines, RFC 9112, 2.2).
    Idle,
    /// The rest of a request head.
    Head,
    /// The rest of a request body.
    Body,
}

/// What the next byte is part of.
#[derive(Debug)]
enum At {
    /// Between messages.
    Idle,
    /// After the CR of an empty line before a request.
    IdleLf,
    /// The method, or the space after it.
    Method,
    /// The target, of which there is `any`, or the space after it.
    Target { any: bool },
    /// The version, so many bytes of which are here, or the CR after it.
    Version(u8),
    /// After the CR that ends a line of the head.
    LineLf,
    /// A line's first byte, after the request line.
    LineStart,
    /// A field name; `alive` is the set of [`NAMES`] whose first `pos` bytes have matched.
    Name { alive: u8, pos: u8 },
    /// A field value that does not matter.
    Value,
    /// The value of a Content-Length.
    Length(Stage),
    /// The value of a Transfer-Encoding, of which so many bytes of `chunked` have matched.
    Coding(Stage, u8),
    /// After the CR of the empty line that ends the head.
    EndLf,
    /// So many bytes of a body with a length, never 0.
    Fixed(u64),
    /// A chunked body.
    Chunked(Decoder),
    /// Nothing passes any more.
    Failed(Fault),
}

/// Where in a value a byte falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// White space before it.
    Lead,
    /// Itself.
    Token,
    /// White space after it.
    Tail,
}

/// Checks and frames what one HTTP/1 client sends.
#[derive(Debug)]
pub struct Guard {
    at: At,
    heads: u64,
    /// The Content-Length of the current head, if it has one.
    length: u64,
    head_bytes: u32,
    head_bytes_max: u32,
    has_length: bool,
    has_coding: bool,
    /// The minor version, as its digit.
    minor: u8,
    /// Fields of the current head so far.
    fields: u16,
}

impl Guard {
    /// A guard for a new connection; `head_max` is the largest head in bytes, empty lines before it
    /// included.
    pub fn new(head_max: usize) -> Guard {
        Guard {
            at: At::Idle,
            heads: 0,
            length: 0,
            head_bytes: 0,
            head_bytes_max: u32::try_from(head_max).unwrap_or(u32::MAX),
            has_length: false,
            has_coding: false,
            minor: 0,
            fields: 0,
        }
    }

    /// Looks at the next bytes from the client. `Ok`: all may pass. `Err((n, fault))`: only the
    /// first `n` may, and nothing after that, ever (every later call says so again).
    ///
    /// A fault in a head is raised at the latest with the LF that would complete it. A fault in a
    /// body (only [`Fault::BadChunk`]) leaves [`Guard::expecting`] at `Body`: that head has passed,
    /// so the handler learns of it as a body that breaks off.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), (usize, Fault)> {
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Ok(used) => at += used,
                Err((used, fault)) => {
                    self.at = At::Failed(fault);
                    return Err((at + used, fault));
                }
            }
        }
        Ok(())
    }

    /// Whether it knows no more than a new one: no byte of a next request has come.
    pub fn is_fresh(&self) -> bool {
        matches!(self.at, At::Idle) && self.head_bytes == 0
    }

    /// What the client is to send next.
    pub fn expecting(&self) -> Expecting {
        match self.at {
            At::Idle | At::IdleLf => Expecting::Idle,
            At::Fixed(_) | At::Chunked(_) | At::Failed(Fault::BadChunk(_)) => Expecting::Body,
            _ => Expecting::Head,
        }
    }

    /// Complete heads so far.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// Takes some bytes and returns how many; or how many are still good, and what is wrong then.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, (usize, Fault)> {
        match &mut self.at {
            At::Failed(fault) => Err((0, *fault)),
            At::Fixed(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= here as u64;
                if *left == 0 {
                    self.at = At::Idle;
                }
                Ok(here)
            }
            At::Chunked(decoder) => {
                let step = decoder.feed(bytes).map_err(|error| (0, Fault::BadChunk(error)))?;
                if step.done {
                    self.at = At::Idle;
                }
                Ok(step.consumed)
            }
            _ => {
                let room = (self.head_bytes_max - self.head_bytes) as usize;
                if room == 0 {
                    return Err((0, Fault::HeadTooLarge));
                }
                let heads = self.heads;
                let used = self.head(&bytes[..bytes.len().min(room)])?;
                // Within `room`, so within 32 bits.
                self.head_bytes += used as u32;
                if self.heads > heads {
                    self.head_bytes = 0;
                }
                Ok(used)
            }
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, (usize, Fault)> {
        let byte = bytes[0];
        match self.at {
            At::Method => return self.method(bytes),
            At::Target { any } => return self.target(bytes, any),
            At::Name { alive, pos } => return self.name(bytes, alive, pos),
            At::Value => return self.value(bytes),
            _ => {}
        }
        // The remaining states take one byte each. LF is good only where one is due.
        let due = matches!(self.at, At::IdleLf | At::LineLf | At::EndLf);
        if due != (byte == b'\n') {
            return Err((0, if due { Fault::BareCr } else { Fault::BareLf }));
        }
        self.at = match (&self.at, byte) {
            (At::Idle, b'\r') => At::IdleLf,
            (At::Idle, _) if is_token(byte) => {
                self.begin();
                At::Method
            }
            (At::Idle, _) => return Err((0, Fault::BadRequestLine)),
            (At::Version(n), _) => self.version(*n, byte).ok_or((0, Fault::BadRequestLine))?,
            (At::IdleLf, _) => At::Idle,
            (At::LineLf, _) => At::LineStart,
            (At::LineStart, b'\r') => At::EndLf,
            (At::LineStart, b' ' | b'\t') => return Err((0, Fault::FoldedLine)),
            (At::LineStart, _) if self.fields >= limits::CLIENT_HEAD_FIELDS => {
                return Err((0, Fault::TooManyFields));
            }
            (At::LineStart, _) => {
                self.fields += 1;
                return self.name(bytes, NAME_LENGTH | NAME_CODING, 0);
            }
            (At::Length(stage), _) => self.length(*stage, byte).map_err(|fault| (0, fault))?,
            (At::Coding(stage, n), _) => coding(*stage, *n, byte).ok_or((0, CODING))?,
            _ => self.end().map_err(|fault| (0, fault))?,
        };
        Ok(1)
    }

    fn begin(&mut self) {
        self.has_length = false;
        self.has_coding = false;
        self.length = 0;
        self.fields = 0;
    }

    fn method(&mut self, bytes: &[u8]) -> Result<usize, (usize, Fault)> {
        let Some(n) = bytes.iter().position(|byte| !is_token(*byte)) else {
            return Ok(bytes.len());
        };
        match bytes[n] {
            b' ' => self.at = At::Target { any: false },
            b'\n' => return Err((n, Fault::BareLf)),
            _ => return Err((n, Fault::BadRequestLine)),
        }
        Ok(n + 1)
    }

    fn target(&mut self, bytes: &[u8], any: bool) -> Result<usize, (usize, Fault)> {
        let ends = |byte: &u8| *byte == b'#' || *byte <= b' ' || *byte == 0x7f;
        let Some(n) = bytes.iter().position(ends) else {
            self.at = At::Target { any: true };
            return Ok(bytes.len());
        };
        match bytes[n] {
            b' ' if any || n > 0 => self.at = At::Version(0),
            b'\n' => return Err((n, Fault::BareLf)),
            b'#' => return Err((n, Fault::Fragment)),
            _ => return Err((n, Fault::BadRequestLine)),
        }
        Ok(n + 1)
    }

    /// The next byte of the version; `None` if it is none that can be spoken here.
    fn version(&mut self, n: u8, byte: u8) -> Option<At> {
        let good = match VERSION.get(usize::from(n)) {
            Some(wanted) => byte == *wanted,
            None if usize::from(n) == VERSION.len() => {
                self.minor = byte;
                matches!(byte, b'0' | b'1')
            }
            None if byte == b'\r' => return Some(At::LineLf),
            None => false,
        };
        good.then_some(At::Version(n + 1))
    }

    fn name(&mut self, bytes: &[u8], alive: u8, pos: u8) -> Result<usize, (usize, Fault)> {
        let n = bytes.iter().position(|byte| !is_token(*byte)).unwrap_or(bytes.len());
        let (mut alive, mut pos) = (alive, pos);
        for byte in &bytes[..n] {
            if alive == 0 {
                break;
            }
            for (i, name) in NAMES.iter().enumerate() {
                if name.get(usize::from(pos)) != Some(&byte.to_ascii_lowercase()) {
                    alive &= !(1 << i);
                }
            }
            // A name that lives is never longer than one of those.
            pos += 1;
        }
        // Of a name that does not matter it only needs to stay above 0.
        pos = pos.max(u8::from(n > 0));
        match bytes.get(n) {
            None => self.at = At::Name { alive, pos },
            Some(b':') if pos > 0 => {
                self.at = self.field(alive, pos).map_err(|fault| (n, fault))?;
                return Ok(n + 1);
            }
            Some(b'\n') => return Err((n, Fault::BareLf)),
            Some(_) => return Err((n, Fault::BadFieldName)),
        }
        Ok(n)
    }

    /// What the value after a field name is to be read as.
    fn field(&mut self, alive: u8, pos: u8) -> Result<At, Fault> {
        let whole = |bit: u8, i: usize| alive & bit != 0 && NAMES[i].len() == usize::from(pos);
        if whole(NAME_LENGTH, 0) {
            if std::mem::replace(&mut self.has_length, true) {
                return Err(Fault::ConflictingLength);
            }
            return Ok(At::Length(Stage::Lead));
        }
        if whole(NAME_CODING, 1) {
            if std::mem::replace(&mut self.has_coding, true) {
                return Err(Fault::DuplicateTransferEncoding);
            }
            return Ok(At::Coding(Stage::Lead, 0));
        }
        Ok(At::Value)
    }

    fn value(&mut self, bytes: &[u8]) -> Result<usize, (usize, Fault)> {
        let ends = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
        // Nearly always a value ends in CR and holds nothing else of the kind: two fast looks.
        let line = memchr::memchr(b'\r', bytes).unwrap_or(bytes.len());
        let clean = !bytes[..line].iter().fold(false, |found, byte| found | ends(byte));
        let n = if clean { line } else { bytes.iter().position(ends).unwrap_or(line) };
        match bytes.get(n) {
            None => return Ok(n),
            Some(b'\r') => self.at = At::LineLf,
            Some(b'\n') => return Err((n, Fault::BareLf)),
            Some(_) => return Err((n, Fault::BadFieldValue)),
        }
        Ok(n + 1)
    }

    fn length(&mut self, stage: Stage, byte: u8) -> Result<At, Fault> {
        match (stage, byte) {
            (Stage::Token | Stage::Tail, b'\r') => Ok(At::LineLf),
            (Stage::Lead | Stage::Token, b'0'..=b'9') => {
                let digit = u64::from(byte - b'0');
                let shifted = self.length.checked_mul(10);
                let length = shifted.and_then(|length| length.checked_add(digit));
                self.length = length.ok_or(Fault::BadLength)?;
                Ok(At::Length(Stage::Token))
            }
            (_, b' ' | b'\t') => Ok(At::Length(after_space(stage))),
            _ => Err(Fault::BadLength),
        }
    }

    /// The LF that completes the head: last chance to refuse it.
    fn end(&mut self) -> Result<At, Fault> {
        if self.has_coding && self.has_length {
            return Err(Fault::LengthWithTransferEncoding);
        }
        if self.has_coding && self.minor == b'0' {
            return Err(Fault::TransferEncodingInHttp10);
        }
        self.heads += 1;
        Ok(match self.length {
            _ if self.has_coding => At::Chunked(Decoder::new()),
            0 => At::Idle,
            length => At::Fixed(length),
        })
    }
}

const CODING: Fault = Fault::UnsupportedTransferEncoding;

/// The next byte of a Transfer-Encoding's value; `None` if it is not `chunked`.
fn coding(stage: Stage, matched: u8, byte: u8) -> Option<At> {
    let whole = usize::from(matched) == CHUNKED.len();
    match byte {
        b'\r' if whole => Some(At::LineLf),
        b' ' | b'\t' if whole || stage == Stage::Lead => {
            Some(At::Coding(after_space(stage), matched))
        }
        _ if stage == Stage::Tail => None,
        _ => {
            let wanted = CHUNKED.get(usize::from(matched))?;
            let same = byte.eq_ignore_ascii_case(wanted);
            same.then_some(At::Coding(Stage::Token, matched + 1))
        }
    }
}

fn after_space(stage: Stage) -> Stage {
    if stage == Stage::Lead { Stage::Lead } else { Stage::Tail }
}

/// `tchar` of RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// By byte.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut n = 0;
    while n < others.len() {
        table[others[n] as usize] = true;
        n += 1;
    }
    table
};
