//! Withholds the chunk that tells an OpenAI stream's usage, where its client has not asked for it.
//!
//! It is an event of its own before the end mark, with `"choices":[]` and an object `usage`; clients that
//! did not ask for it fail on the empty list. Every other event passes, byte for byte. An event is held
//! back only as long as its beginning may be that of such a chunk: until a first choice is seen, as a rule
//! within the piece it came in, and never beyond [`USAGE_CHUNK`] bytes. Refuses: to take anything out of an
//! event that passes, such as the `"usage":null` that some servers add. Invariant: which events are withheld
//! does not depend on how the bytes are split. Cost: for an event that comes whole, one search of its lines and
//! one for `"choices"`; nothing is copied or allocated. What is held is copied.

use std::sync::LazyLock;

use memchr::memchr2;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Map;

use crate::limits::USAGE_CHUNK;

const CHOICES: &[u8] = b"\"choices\"";
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(CHOICES));

/// What is known of the event that the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// None has begun.
    None,
    /// It is a comment between two events.
    Comment,
    /// It may be a usage chunk; none of it went on.
    Open,
    /// It goes on.
    Passes,
}

/// Follows one stream.
#[derive(Debug)]
pub struct UsageChunk {
    /// The beginning of the event, if it may be a usage chunk and came in earlier pieces.
    held: Vec<u8>,
    event: Event,
    /// No byte of the current line has come.
    at_line_start: bool,
    /// The last byte was a CR; an LF now belongs to it.
    cr: bool,
    /// The event that this CR ended was withheld.
    withheld: bool,
}

impl Default for UsageChunk {
    fn default() -> UsageChunk {
        UsageChunk {
            held: Vec::new(),
            event: Event::None,
            at_line_start: true,
            cr: false,
            withheld: false,
        }
    }
}

/// A piece, and what goes on of it.
struct Piece<'b> {
    bytes: &'b [u8],
    /// What is before this offset has been decided about.
    from: usize,
    /// What goes on in place of it; `None` while that is all of it.
    out: Option<Vec<u8>>,
}

impl Piece<'_> {
    /// `bytes[from..end]` goes on.
    fn pass(&mut self, end: usize) {
        if let Some(out) = &mut self.out {
            out.extend_from_slice(&self.bytes[self.from..end]);
            self.from = end;
        }
    }

    /// `bytes[begin..end]` does not go on, what is before it does.
    fn cut(&mut self, begin: usize, end: usize) {
        if begin < end {
            self.out.get_or_insert_default();
            self.pass(begin);
            self.from = end;
        }
    }
}

impl UsageChunk {
    /// What goes on in place of the next bytes; `None`: they go on as they are.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if bytes.is_empty() {
            return None;
        }
        let mut piece = Piece { bytes, from: 0, out: None };
        // Where the bytes of the open event begin in this piece that are not in `held`.
        let (mut begin, mut at) = (0, 0);
        if std::mem::take(&mut self.cr) && bytes.first() == Some(&b'\n') {
            at = 1;
            if self.withheld {
                piece.cut(0, 1);
            }
        }
        self.withheld = false;
        while at < bytes.len() {
            if self.event == Event::None && !matches!(bytes[at], b'\r' | b'\n') {
                self.event = if bytes[at] == b':' { Event::Comment } else { Event::Open };
                begin = at;
            }
            let (end, whole) = match memchr2(b'\r', b'\n', &bytes[at..]) {
                Some(n) => (self.end_of_line(bytes, at + n), true),
                None => (bytes.len(), false),
            };
            let blank = whole && self.at_line_start && matches!(bytes[at], b'\r' | b'\n');
            self.at_line_start = whole;
            if self.event == Event::Open {
                begin = self.look(&mut piece, begin, end, blank);
            }
            if blank || whole && self.event == Event::Comment {
                self.event = Event::None;
            }
            at = end;
        }
        if self.event == Event::Open {
            self.held.extend_from_slice(&bytes[begin..]);
            piece.cut(begin, bytes.len());
        }
        piece.pass(bytes.len());
        piece.out
    }

    /// What is held back, to go on after all.
    pub fn take(&mut self) -> Vec<u8> {
        if self.event == Event::Open {
            self.event = Event::Passes;
        }
        std::mem::take(&mut self.held)
    }

    /// Whether the client is at the beginning of an event that the upstream has begun.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// The offset behind the line end at `at`.
    fn end_of_line(&mut self, bytes: &[u8], at: usize) -> usize {
        match (bytes[at], bytes.get(at + 1)) {
            (b'\r', Some(b'\n')) => at + 2,
            (b'\r', None) => {
                self.cr = true;
                at + 1
            }
            _ => at + 1,
        }
    }

    /// Looks at the open event, of which `bytes[begin..end]` are new; `over`: that is all of it. Returns
    /// where what is not in `held` begins then.
    fn look(&mut self, piece: &mut Piece<'_>, begin: usize, end: usize, over: bool) -> usize {
        let new = &piece.bytes[begin..end];
        if self.held.is_empty() {
            if !may_be(new) {
                self.event = Event::Passes;
            } else if over && is_usage_only(new) {
                piece.cut(begin, end);
                self.withheld = self.cr;
            }
            return begin;
        }
        self.held.extend_from_slice(new);
        piece.cut(begin, end);
        let passes = !may_be(&self.held);
        if passes || over {
            let held = std::mem::take(&mut self.held);
            if passes || !is_usage_only(&held) {
                piece.out.get_or_insert_default().extend_from_slice(&held);
            } else {
                self.withheld = self.cr;
            }
            if passes {
                self.event = Event::Passes;
            }
        }
        end
    }
}

/// Whether an event that begins so may be a usage chunk.
fn may_be(event: &[u8]) -> bool {
    if event.len() > USAGE_CHUNK {
        return false;
    }
    let value = event.strip_prefix(b"data:").map(<[u8]>::trim_ascii_start);
    if value.and_then(<[u8]>::first).is_some_and(|byte| *byte != b'{') {
        return false;
    }
    // Quotation marks within a string are escaped, so that this is a key, or a whole string.
    for at in FINDER.find_iter(event) {
        let behind = event[at + CHOICES.len()..].trim_ascii_start();
        let Some(list) = behind.strip_prefix(b":") else { continue };
        return match list.trim_ascii_start() {
            [] | [b'['] => true,
            [b'[', inner @ ..] => inner.trim_ascii_start().first().is_none_or(|byte| *byte == b']'),
            _ => false,
        };
    }
    true
}

/// What is asked of the data of an event.
#[derive(Deserialize)]
struct Chunk {
    choices: Vec<IgnoredAny>,
    #[serde(rename = "usage")]
    _usage: Map<String, serde_json::Value>,
    error: Option<IgnoredAny>,
}

/// Whether a whole event is a usage chunk.
fn is_usage_only(event: &[u8]) -> bool {
    let mut data = Vec::with_capacity(event.len());
    for line in event.split(|byte| matches!(byte, b'\r' | b'\n')) {
        if let Some(value) = line.strip_prefix(b"data:") {
            data.extend_from_slice(value);
            // Lines of data are joined by one.
            data.push(b'\n');
        }
    }
    let chunk = serde_json::from_slice::<Chunk>(&data);
    chunk.is_ok_and(|chunk| chunk.choices.is_empty() && chunk.error.is_none())
}

#[cfg(test)]
mod tests;
