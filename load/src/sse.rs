//! Cuts the bytes of an event stream into events and comments.
//!
//! Owns line ends (LF, CRLF, CR, also split between reads), the byte order mark and the fields.
//! It shares no code with the gateway, so that it cannot share a framing bug. Refuses to judge what
//! an event says. Invariant: the same bytes give the same items wherever they are split.
//! Cost: a line that arrives whole is looked at in place; only a split line and the data of the
//! open event are copied, into buffers that are given back when large.

use memchr::memchr2;

/// A line longer than this is reported as [`Item::Strange`] and dropped, bytes.
const LINE_MAX: usize = 80 * 1024 * 1024;
/// Buffers above this do not outlive the event that needed them, bytes.
const KEEP: usize = 4 * 1024;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// What the bytes turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// An event with data; `name` is empty if it has none.
    Event { name: &'a [u8], data: &'a [u8] },
    /// A comment line. Inside means: after a field of an event whose blank line is still to come.
    Comment { inside: bool },
    /// A blank line after so many comment lines and nothing else.
    Frame { comments: u32 },
    /// A line that no field of the format begins, or one without bounds.
    Strange,
}

/// The parser of one stream.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// The beginning of a line whose end is still to come.
    line: Vec<u8>,
    after_cr: bool,
    started: bool,
    data: Vec<u8>,
    has_data: bool,
    name: Vec<u8>,
    /// Fields since the last blank line.
    fields: bool,
    /// Comment lines since the last blank line.
    comments: u32,
}

impl Parser {
    /// Takes the next bytes and hands on what they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Item<'_>)) {
        let mut rest = bytes;
        if self.after_cr
            && let Some((first, after)) = rest.split_first()
        {
            self.after_cr = false;
            if *first == b'\n' {
                rest = after;
            }
        }
        while let Some(at) = memchr2(b'\n', b'\r', rest) {
            if self.line.is_empty() {
                self.take_line(&rest[..at], &mut each);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&rest[..at]);
                self.take_line(&line, &mut each);
                line.clear();
                if line.capacity() <= KEEP {
                    self.line = line;
                }
            }
            let cr = rest[at] == b'\r';
            rest = &rest[at + 1..];
            match rest.first() {
                Some(b'\n') if cr => rest = &rest[1..],
                None => self.after_cr = cr,
                _ => {}
            }
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > LINE_MAX {
            self.line = Vec::new();
            each(Item::Strange);
        }
    }

    /// Whether an event, a comment or a line has begun that did not end. A comment line that
    /// did end is whole.
    pub(crate) fn is_inside(&self) -> bool {
        self.fields || !self.line.is_empty()
    }

    fn take_line(&mut self, line: &[u8], each: &mut impl FnMut(Item<'_>)) {
        let line = if self.started { line } else { line.strip_prefix(BOM).unwrap_or(line) };
        self.started = true;
        if line.is_empty() {
            return self.blank(each);
        }
        if line[0] == b':' {
            self.comments = self.comments.saturating_add(1);
            return each(Item::Comment { inside: self.fields });
        }
        let colon = memchr::memchr(b':', line);
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            b"id" | b"retry" => {}
            _ => each(Item::Strange),
        }
        self.fields = true;
    }

    fn blank(&mut self, each: &mut impl FnMut(Item<'_>)) {
        if self.has_data {
            each(Item::Event { name: &self.name, data: &self.data });
        } else if !self.fields && self.comments > 0 {
            each(Item::Frame { comments: self.comments });
        }
        self.data.clear();
        self.name.clear();
        if self.data.capacity() > KEEP {
            self.data = Vec::new();
        }
        self.has_data = false;
        self.fields = false;
        self.comments = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(item: &Item<'_>) -> String {
        match item {
            Item::Event { name, data } => {
                format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(data))
            }
            other => format!("{other:?}"),
        }
    }

    fn parse(pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut parser = Parser::default();
        let mut items = Vec::new();
        for piece in pieces {
            parser.feed(piece, |item| items.push(show(&item)));
        }
        (items, parser.is_inside())
    }

    #[test]
    fn splits_at_every_offset_change_nothing() {
        let text = "\u{feff}: hi\n\ndata: one\n\nevent: ping\ndata: {}\n\n: ping\ndata:a\n: in\ndata: b\n\n\
                    id: 4\nretry: 9\n\nmad line\n\ndata: é\n\ndata: open\n";
        for end in ["\n", "\r\n", "\r"] {
            let bytes = text.replace('\n', end).into_bytes();
            let whole = parse(&[&bytes]);
            assert_eq!(
                whole.0,
                [
                    "Comment { inside: false }",
                    "Frame { comments: 1 }",
                    "=one",
                    "ping={}",
                    "Comment { inside: false }",
                    "Comment { inside: true }",
                    "=a\nb",
                    "Strange",
                    "=é",
                ]
            );
            assert!(whole.1);
            for at in 0..=bytes.len() {
                assert_eq!(parse(&[&bytes[..at], &bytes[at..]]), whole, "{end:?} {at}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(parse(&single), whole);
        }
    }

    #[test]
    fn a_heartbeat_within_a_line_is_strange_to_the_parser_or_its_reader() {
        let (items, inside) = parse(&[b"data: {\"a\"", b": ping\n", b":1}\n\n"]);
        assert_eq!(items, ["Comment { inside: true }", "={\"a\": ping"]);
        assert!(!inside);
    }
}
