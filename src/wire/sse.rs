//! Byte-exact tracking of Server-Sent-Event framing in a stream that is passed through untouched.
//!
//! Owns: where lines and events begin and end (WHATWG HTML, 9.2.5 and 9.2.6), where a heartbeat may
//! go, whether the stream's terminal mark or an error event has passed, and how long the current
//! event is. Refuses: to keep, decode, change or copy any byte; pieces may split anything anywhere.
//! Invariant: what is fed here, less `Fed::skip`, plus `Fed::replay` and whatever the caller wrote
//! while `at_boundary()` held, parses to the same events as the upstream's own bytes.
//! Cost: 32 bytes per stream. A 240-byte event takes a handful of steps and one `memchr`.

use memchr::memchr2;

use crate::config::{Family, HeartbeatStyle};
use marks::Object;

mod marks;
#[cfg(test)]
mod tests;

const BOM: &[u8] = b"\xEF\xBB\xBF";
/// Value of `Tracker::held` once the stream's first bytes are known to be, or not to be, a BOM.
const BOM_SETTLED: u8 = 3;
const DONE: &[u8; 6] = b"[DONE]";

/// The family of a request whose route says `auto`, by the end of its path: `/chat/completions` and
/// `/completions` are OpenAI's, `/responses` and `/responses/{id}` (which can stream an earlier
/// one again) the Responses API's, `/messages` Anthropic's, anything else is plain. Any other
/// configured family is returned as it is, so the answer is never `Auto`. `path` is without the
/// query.
pub fn family_of(path: &str, configured: Family) -> Family {
    if configured != Family::Auto {
        return configured;
    }
    let resumed = || path.rsplit_once('/').is_some_and(|(of, _)| of.ends_with("/responses"));
    if path.ends_with("/completions") {
        Family::OpenAi
    } else if path.ends_with("/messages") {
        Family::Anthropic
    } else if path.ends_with("/responses") || resumed() {
        Family::Responses
    } else {
        Family::Plain
    }
}

/// The bytes of one heartbeat; may be written only while [`Tracker::at_boundary`] holds, and leaves
/// the stream at a boundary again. The bare comment line is what every client library takes;
/// the others exist for clients that do not. OpenAI's clients take an event that carries data for
/// a chunk, so that those families get the comment in place of Anthropic's ping.
pub fn heartbeat(style: HeartbeatStyle, family: Family) -> &'static [u8] {
    match style {
        HeartbeatStyle::Anthropic if matches!(family, Family::OpenAi | Family::Responses) => {
            b": ping\n"
        }
        HeartbeatStyle::Comment => b": ping\n",
        HeartbeatStyle::CommentFrame => b": ping\n\n",
        HeartbeatStyle::Anthropic => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
        HeartbeatStyle::Off => b"",
    }
}

/// What one piece of the stream held; see [`Tracker::feed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Bytes held back earlier (a possible BOM that was none), to be sent before this piece.
    pub replay: &'static [u8],
    /// Leading bytes of this piece that must not be forwarded: (held) BOM bytes, or the LF of a
    /// CRLF whose CR already got a heartbeat behind it.
    pub skip: usize,
    /// Data-bearing events completed within this piece.
    pub events: u32,
    /// Offset in the piece, as it was given, just after its first completed data-bearing event.
    pub first_event_end: Option<usize>,
    /// An event (or an endless comment) exceeded the limit within this piece.
    pub too_long: bool,
}

/// Where in a line the next byte falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// At a line's first byte.
    Start,
    /// In a comment line.
    Comment,
    /// In a line, or the rest of a line, that means nothing more to us.
    Rest,
    /// This many bytes of the field name `data` have matched.
    Data(u8),
    /// After `data:`, before the optional space.
    DataGap,
    /// At the first byte of a data value.
    DataValue,
    /// In a data value that has matched this much of `[DONE]`; beyond it only spaces may follow.
    Done(u8),
    /// In a data value that may yet turn out to be an error object.
    Object,
    /// This many bytes of the field name `event` have matched.
    Event(u8),
    /// After `event:`, before the optional space.
    EventGap,
    /// In an event name; `alive` is the set of [`marks::NAMES`] whose first `pos` bytes have matched.
    EventName { alive: u8, pos: u8 },
}

/// What the lines since the last blank line amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// No field line: a boundary.
    Nothing,
    /// Fields, none of them data.
    Fields,
    /// One `data` line with an empty value.
    EmptyData,
    /// Data: the event counts.
    Data,
}

/// The fate of a CR that was the last byte fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cr {
    /// The last byte was no CR.
    No,
    /// It was one, and ended a line; an LF now would belong to it.
    Last,
    /// As before, and the caller wrote something of its own after it.
    Answered,
}

/// Follows the framing of one event stream.
#[derive(Debug)]
pub struct Tracker {
    events: u64,
    /// Bytes since the last boundary, up to the end of the last piece.
    event_bytes: u32,
    event_bytes_max: u32,
    family: Family,
    line: Line,
    object: Object,
    pending: Pending,
    /// BOM bytes held back so far, or `BOM_SETTLED`.
    held: u8,
    cr: Cr,
    /// The stream has shown a CR that no LF followed.
    lone_cr: bool,
    /// The current event carries the terminal mark, in its name or as its data.
    terminal: bool,
    named_error: bool,
    completed: bool,
    error: bool,
}

impl Tracker {
    /// A tracker at the start of a stream. `max_event` is in bytes (those from 4 GiB on mean no
    /// limit); `Family::Auto` counts as plain.
    pub fn new(family: Family, max_event: usize) -> Tracker {
        Tracker {
            events: 0,
            event_bytes: 0,
            event_bytes_max: u32::try_from(max_event).unwrap_or(u32::MAX),
            family: if family == Family::Auto { Family::Plain } else { family },
            line: Line::Start,
            object: Object::Brace,
            pending: Pending::Nothing,
            held: 0,
            cr: Cr::No,
            lone_cr: false,
            terminal: false,
            named_error: false,
            completed: false,
            error: false,
        }
    }

    /// Looks at the next bytes from upstream; never changes them, decodes them, or allocates.
    /// To forward: `replay`, then the piece from `skip` on.
    pub fn feed(&mut self, bytes: &[u8]) -> Fed {
        let mut fed = Fed::default();
        if bytes.is_empty() {
            return fed;
        }
        let mut at = if self.held < BOM_SETTLED { self.settle_bom(bytes, &mut fed) } else { 0 };
        if self.cr != Cr::No {
            at = self.settle_cr(bytes, &mut fed);
        }
        let mut mark = at;
        while at < bytes.len() {
            at = self.step(bytes, at, &mut fed);
            if self.line == Line::Start && self.pending == Pending::Nothing {
                self.count_bytes(at - mark, &mut fed);
                self.event_bytes = 0;
                mark = at;
            }
        }
        self.count_bytes(at - mark, &mut fed);
        fed
    }

    /// Something of the caller's own (a heartbeat, an error event) may be written here, now.
    ///
    /// After a CR that may be the first half of a CRLF this is so only if the stream is known to
    /// use lone CRs.
    pub fn at_boundary(&self) -> bool {
        self.line == Line::Start
            && self.pending == Pending::Nothing
            && (self.held == 0 || self.held == BOM_SETTLED)
            && (self.cr == Cr::No || self.lone_cr)
    }

    /// To be called after anything of the caller's own was written at a boundary.
    pub fn heartbeat_written(&mut self) {
        debug_assert!(self.at_boundary(), "a heartbeat inside an event");
        if self.cr == Cr::Last {
            self.cr = Cr::Answered;
        }
    }

    /// What ends the unfinished event, or line, that the stream broke off in, so that an event of
    /// the caller's own can follow: empty at a boundary. The unfinished event is thereby
    /// dispatched by clients; there is no way to take it back.
    pub fn closing(&self) -> &'static [u8] {
        let open = self.pending != Pending::Nothing;
        match self.line {
            Line::Start if self.held < BOM_SETTLED => b"",
            // An LF right after the CR would only complete a CRLF.
            Line::Start if open && self.cr != Cr::No => b"\n\n",
            Line::Start if open => b"\n",
            Line::Start if self.cr == Cr::Last && !self.lone_cr => b"\n",
            Line::Start => b"",
            // No blank line after a bare comment: some clients fail on it (see the heartbeats).
            Line::Comment if !open => b"\n",
            _ => b"\n\n",
        }
    }

    /// The family's terminal event has passed wholly, with its blank line. Never, when plain.
    pub fn completed(&self) -> bool {
        self.completed
    }

    /// If the upstream ended the stream here, would it be complete? For OpenAI the `data: [DONE]`
    /// line is enough, without blank line or final newline: its clients stop reading at it.
    /// A plain stream is completed by its end.
    pub fn complete_at_eof(&self) -> bool {
        match self.family {
            Family::OpenAi => self.completed || self.terminal || self.line == Line::Done(6),
            Family::Responses | Family::Anthropic => self.completed,
            Family::Plain | Family::Auto => true,
        }
    }

    /// The upstream itself sent a whole error event: `event: error`, or data that is a JSON object
    /// whose first key is `error` with a value that is not null. In the Responses API also data
    /// whose first key is `type` with the value `error`, and `response.failed`.
    pub fn error_event(&self) -> bool {
        self.error
    }

    /// Data-bearing events completed so far. An event whose whole data is empty (WHATWG does
    /// dispatch it) carries nothing and is not counted.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Bytes held back as a possible BOM that the end of the stream proves to be none.
    pub fn held_at_eof(&self) -> &'static [u8] {
        if self.held < BOM_SETTLED { &BOM[..usize::from(self.held)] } else { b"" }
    }

    fn count_bytes(&mut self, n: usize, fed: &mut Fed) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.event_bytes = self.event_bytes.saturating_add(n);
        fed.too_long |= self.event_bytes > self.event_bytes_max;
    }

    /// Compares the stream's first bytes with a BOM; returns where in the piece to go on.
    fn settle_bom(&mut self, bytes: &[u8], fed: &mut Fed) -> usize {
        let held = usize::from(self.held);
        let wanted = &BOM[held..];
        let n = wanted.iter().zip(bytes).take_while(|(want, got)| want == got).count();
        if n == wanted.len() || n == bytes.len() {
            self.held += n as u8;
            fed.skip = n;
            return n;
        }
        self.held = BOM_SETTLED;
        if held > 0 {
            fed.replay = &BOM[..held];
            self.line = Line::Rest;
            self.pending = Pending::Fields;
            self.event_bytes = u32::from(held as u8);
        }
        0
    }

    /// Decides what the CR at the end of the last piece was.
    fn settle_cr(&mut self, bytes: &[u8], fed: &mut Fed) -> usize {
        let cr = std::mem::replace(&mut self.cr, Cr::No);
        if bytes[0] != b'\n' {
            self.lone_cr = true;
            return 0;
        }
        fed.skip = usize::from(cr == Cr::Answered);
        1
    }

    /// Takes at least one byte and returns the offset of the next.
    fn step(&mut self, bytes: &[u8], at: usize, fed: &mut Fed) -> usize {
        let byte = bytes[at];
        if let Line::Comment | Line::Rest = self.line {
            return match memchr2(b'\r', b'\n', &bytes[at..]) {
                Some(n) => self.end_line(bytes, at + n, fed),
                None => bytes.len(),
            };
        }
        if byte == b'\n' || byte == b'\r' {
            return self.end_line(bytes, at, fed);
        }
        self.line = match self.line {
            Line::Start if bytes[at..].starts_with(b"data:") => {
                self.line = Line::DataGap;
                return at + 5;
            }
            Line::Start => match byte {
                b':' => Line::Comment,
                b'd' => Line::Data(1),
                b'e' => Line::Event(1),
                _ => Line::Rest,
            },
            Line::Data(4) if byte == b':' => Line::DataGap,
            Line::Data(n) if b"data".get(usize::from(n)) == Some(&byte) => Line::Data(n + 1),
            Line::DataGap if byte == b' ' => Line::DataValue,
            Line::DataGap | Line::DataValue => self.begin_value(byte),
            Line::Done(6) if byte == b' ' => Line::Done(6),
            Line::Done(n) if DONE.get(usize::from(n)) == Some(&byte) => Line::Done(n + 1),
            Line::Object => self.match_object(byte),
            Line::Event(5) if byte == b':' => {
                self.forget_name();
                Line::EventGap
            }
            Line::Event(n) if b"event".get(usize::from(n)) == Some(&byte) => Line::Event(n + 1),
            Line::EventGap if byte == b' ' => {
                Line::EventName { alive: marks::names(self.family), pos: 0 }
            }
            Line::EventGap => match_name(marks::names(self.family), 0, byte),
            Line::EventName { alive, pos } => match_name(alive, pos, byte),
            Line::Data(_) | Line::Done(_) | Line::Event(_) | Line::Comment | Line::Rest => {
                Line::Rest
            }
        };
        at + 1
    }

    fn begin_value(&mut self, byte: u8) -> Line {
        self.pending = Pending::Data;
        if byte == b'[' {
            if !self.object.is_final() {
                self.object = Object::Ruled;
            }
            return Line::Done(1);
        }
        self.match_object(byte)
    }

    fn match_object(&mut self, byte: u8) -> Line {
        self.object = self.object.next(byte, self.family);
        if self.object.is_final() { Line::Rest } else { Line::Object }
    }

    /// A further `event` line replaces the name that an earlier one gave.
    fn forget_name(&mut self) {
        self.named_error = false;
        if self.family != Family::OpenAi {
            self.terminal = false;
        }
    }

    /// Handles the line end at `at`; returns the offset of the next line.
    fn end_line(&mut self, bytes: &[u8], at: usize, fed: &mut Fed) -> usize {
        let mut next = at + 1;
        if bytes[at] == b'\r' {
            match bytes.get(next) {
                None => self.cr = Cr::Last,
                Some(b'\n') => next += 1,
                Some(_) => self.lone_cr = true,
            }
        }
        match std::mem::replace(&mut self.line, Line::Start) {
            Line::Start => {
                self.dispatch(next, fed);
                return next;
            }
            Line::Comment => return next,
            Line::Data(4) | Line::DataGap | Line::DataValue => {
                self.pending = match self.pending {
                    Pending::Nothing | Pending::Fields => Pending::EmptyData,
                    Pending::EmptyData | Pending::Data => Pending::Data,
                };
            }
            Line::Done(6) => self.terminal |= self.family == Family::OpenAi,
            // Between a JSON object's tokens the newline that joins data lines is white space.
            Line::Object if self.object.is_word() => self.object = Object::Ruled,
            Line::Event(5) => self.forget_name(),
            Line::EventName { alive, pos } => {
                if let Some(name) = marks::whole(alive, pos) {
                    self.named_error = marks::is_error(name);
                    self.terminal |= marks::is_terminal(name);
                }
            }
            _ => {}
        }
        if self.pending == Pending::Nothing {
            self.pending = Pending::Fields;
        }
        next
    }

    /// A blank line: the event is over. `end` is the offset after it.
    fn dispatch(&mut self, end: usize, fed: &mut Fed) {
        if self.pending == Pending::Data {
            self.events += 1;
            fed.events += 1;
            fed.first_event_end.get_or_insert(end);
        }
        let told = self.object.name();
        self.completed |= self.terminal | told.is_some_and(marks::is_terminal);
        self.error |=
            self.named_error | told.is_some_and(marks::is_error) | (self.object == Object::Error);
        self.terminal = false;
        self.named_error = false;
        self.object = Object::Brace;
        self.pending = Pending::Nothing;
    }
}

fn match_name(alive: u8, pos: u8, byte: u8) -> Line {
    match marks::matching(alive, pos, byte) {
        0 => Line::Rest,
        alive => Line::EventName { alive, pos: pos + 1 },
    }
}
