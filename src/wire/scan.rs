//! Finds a few top-level keys of a JSON object while its bytes pass by.
//!
//! Owns: what a request body says about `stream`, `model`, `max_tokens` (or
//! `max_completion_tokens`, `max_output_tokens`) and `user`, in any order and however the bytes are split. Refuses: to
//! build a tree, to recurse, to validate: malformed JSON is the upstream's to reject, here it only
//! finds nothing more. Invariant: on valid JSON it finds what a parser would (of equal keys the
//! last counts), except strings longer than 256 bytes, which it leaves out.
//! Cost: about 150 bytes, plus what it found; long strings (prompts, images) pass at the speed of
//! `memchr`.

use memchr::memchr2;

use crate::limits::SCANNED_VALUE_BYTES;

#[cfg(test)]
mod tests;

/// Longest number or literal that can matter: `u64::MAX` has 20 digits.
const SCALAR_BYTES_MAX: usize = 20;
/// Longer than any key that matters.
const KEY_BYTES_MAX: usize = 24;

/// What has been found so far. A key whose value has another type counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `stream`
    pub stream: Option<bool>,
    /// `model`
    pub model: Option<Box<str>>,
    /// `max_tokens`, or `max_completion_tokens`, which the Responses API calls `max_output_tokens`;
    /// of two non-null ones the later.
    pub max_tokens: Option<u64>,
    /// `user`
    pub user: Option<Box<str>>,
}

/// A top-level key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Stream,
    Model,
    MaxTokens,
    MaxCompletionTokens,
    User,
    Other,
}

/// What a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A top-level key.
    Key,
    /// The value of the current key.
    Value,
    /// Nothing that matters.
    Skip,
}

/// Where in a string the next byte falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Plain text.
    Text,
    /// Behind a backslash.
    Escape,
    /// Hexadecimal digits: how many have passed, and their value.
    Unicode(u8, u16),
}

/// What the next byte is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// White space, or the brace that opens the object.
    Begin,
    /// The first key, or the end of the object.
    FirstKey,
    /// A key, after a comma.
    NextKey,
    /// In a string.
    String(Use, Part),
    /// The colon after a key.
    Colon,
    /// A value's first byte.
    Value,
    /// In a number or literal at top level.
    Scalar,
    /// Within an array or object that is a value; `depth` says how deep.
    Nested,
    /// A comma, or the end of the object.
    AfterValue,
    /// Nothing: the object is over, or is none.
    Over,
}

/// Watches one JSON object pass by.
#[derive(Debug)]
pub struct Scanner {
    found: Found,
    /// Values of `max_tokens` and `max_completion_tokens`.
    tokens: [Option<u64>; 2],
    /// The key or value being read, decoded.
    text: Vec<u8>,
    /// Open brackets within the current value.
    depth: u32,
    /// The first half of a surrogate pair, until the second follows; else 0.
    surrogate: u16,
    key: Key,
    /// The current string cannot be used: too long, or no Unicode.
    unfit: bool,
    state: State,
}

impl Default for Scanner {
    fn default() -> Scanner {
        Scanner::new()
    }
}

impl Scanner {
    /// A scanner at the start of a body.
    pub fn new() -> Scanner {
        Scanner {
            found: Found::default(),
            tokens: [None; 2],
            text: Vec::new(),
            depth: 0,
            surrogate: 0,
            key: Key::Other,
            unfit: false,
            state: State::Begin,
        }
    }

    /// Looks at the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Over {
            at += match self.state {
                State::String(usage, Part::Text) => self.string(&bytes[at..], usage),
                State::String(usage, part) => self.escape(bytes[at], usage, part),
                State::Nested => self.nested(&bytes[at..]),
                _ => self.token(bytes[at]),
            };
        }
    }

    /// What has been found so far; only values that have passed wholly.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The top-level object has ended (or there is none): nothing more will be found.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// One byte outside strings and nested values; returns how many were used up.
    fn token(&mut self, byte: u8) -> usize {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            if self.state == State::Scalar {
                self.end_scalar();
                self.state = State::AfterValue;
            }
            return 1;
        }
        self.state = match (self.state, byte) {
            (State::Begin, b'{') => State::FirstKey,
            (State::FirstKey | State::NextKey, b'"') => self.open_string(Use::Key),
            (State::Colon, b':') => State::Value,
            (State::Value, b'"') => match self.key {
                Key::Model | Key::User => self.open_string(Use::Value),
                _ => State::String(Use::Skip, Part::Text),
            },
            (State::Value, b'{' | b'[') => {
                self.depth = 1;
                State::Nested
            }
            (State::Value, b'-' | b'0'..=b'9' | b'a'..=b'z') => {
                self.text.clear();
                self.unfit = false;
                self.push(byte, SCALAR_BYTES_MAX);
                State::Scalar
            }
            (State::Scalar, b',' | b'}') => {
                self.end_scalar();
                self.state = State::AfterValue;
                return 0;
            }
            (State::Scalar, b'"' | b':' | b'{' | b'[' | b']') => State::Over,
            (State::Scalar, _) => {
                self.push(byte, SCALAR_BYTES_MAX);
                State::Scalar
            }
            (State::AfterValue, b',') => State::NextKey,
            // The object's end, or malformed; either way there is nothing more to find.
            _ => State::Over,
        };
        1
    }

    fn open_string(&mut self, usage: Use) -> State {
        self.text.clear();
        self.surrogate = 0;
        self.unfit = false;
        State::String(usage, Part::Text)
    }

    /// Takes a string's text up to its end or the next escape.
    fn string(&mut self, bytes: &[u8], usage: Use) -> usize {
        let found = memchr2(b'"', b'\\', bytes);
        let text = &bytes[..found.unwrap_or(bytes.len())];
        if usage != Use::Skip && !text.is_empty() {
            self.end_surrogate();
            self.extend(text, limit(usage));
        }
        let Some(n) = found else { return bytes.len() };
        if bytes[n] == b'\\' {
            self.state = State::String(usage, Part::Escape);
        } else {
            self.close_string(usage);
        }
        n + 1
    }

    fn close_string(&mut self, usage: Use) {
        self.end_surrogate();
        self.state = match usage {
            Use::Key => {
                self.key = if self.unfit { Key::Other } else { key(&self.text) };
                self.forget();
                State::Colon
            }
            Use::Value => {
                let text = if self.unfit { None } else { std::str::from_utf8(&self.text).ok() };
                let text = text.map(Box::from);
                match self.key {
                    Key::Model => self.found.model = text,
                    Key::User => self.found.user = text,
                    _ => {}
                }
                State::AfterValue
            }
            Use::Skip if self.depth > 0 => State::Nested,
            Use::Skip => State::AfterValue,
        };
    }

    /// One byte of an escape. In a skipped string only what follows a backslash must not end it.
    fn escape(&mut self, byte: u8, usage: Use, part: Part) -> usize {
        let next = match (part, byte) {
            (Part::Escape, b'u') if usage != Use::Skip => Part::Unicode(0, 0),
            (Part::Escape, _) => {
                if usage != Use::Skip {
                    self.end_surrogate();
                    match plain_escape(byte) {
                        Some(decoded) => self.push(decoded, limit(usage)),
                        None => self.unfit = true,
                    }
                }
                Part::Text
            }
            (Part::Unicode(n, value), _) => match char::from(byte).to_digit(16) {
                Some(digit) => {
                    let value = value << 4 | digit as u16;
                    if n < 3 {
                        Part::Unicode(n + 1, value)
                    } else {
                        self.unicode(value, limit(usage));
                        Part::Text
                    }
                }
                None => {
                    // Malformed; the byte may end the string, so it is looked at again.
                    self.unfit = true;
                    self.state = State::String(usage, Part::Text);
                    return 0;
                }
            },
            (Part::Text, _) => Part::Text,
        };
        self.state = State::String(usage, next);
        1
    }

    /// One UTF-16 unit that was written as `\uXXXX`.
    fn unicode(&mut self, unit: u16, most: usize) {
        let high = std::mem::replace(&mut self.surrogate, 0);
        let decoded = match (high, unit) {
            (0, 0xD800..=0xDBFF) => {
                self.surrogate = unit;
                return;
            }
            (0, _) => char::from_u32(u32::from(unit)),
            _ => char::decode_utf16([high, unit]).next().and_then(Result::ok),
        };
        match decoded {
            Some(c) => self.extend(c.encode_utf8(&mut [0; 4]).as_bytes(), most),
            None => self.unfit = true,
        }
    }

    /// Something other than a second half follows: a first half alone is no character.
    fn end_surrogate(&mut self) {
        self.unfit |= std::mem::replace(&mut self.surrogate, 0) != 0;
    }

    fn push(&mut self, byte: u8, most: usize) {
        self.extend(&[byte], most);
    }

    fn extend(&mut self, bytes: &[u8], most: usize) {
        self.unfit |= self.text.len() + bytes.len() > most;
        if !self.unfit {
            self.text.extend_from_slice(bytes);
        }
    }

    /// Takes bytes within an array or object; brackets are counted, not matched.
    fn nested(&mut self, bytes: &[u8]) -> usize {
        for (n, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => {
                    self.state = State::String(Use::Skip, Part::Text);
                    return n + 1;
                }
                b'{' | b'[' => match self.depth.checked_add(1) {
                    Some(depth) => self.depth = depth,
                    None => {
                        self.state = State::Over;
                        return n + 1;
                    }
                },
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        self.state = State::AfterValue;
                        return n + 1;
                    }
                }
                _ => {}
            }
        }
        bytes.len()
    }

    /// A key begins anew: an earlier value of the same key no longer counts.
    fn forget(&mut self) {
        match self.key {
            Key::Stream => self.found.stream = None,
            Key::Model => self.found.model = None,
            Key::User => self.found.user = None,
            Key::MaxTokens => self.set_tokens(0, None),
            Key::MaxCompletionTokens => self.set_tokens(1, None),
            Key::Other => {}
        }
    }

    fn end_scalar(&mut self) {
        let text = if self.unfit { &[] } else { self.text.as_slice() };
        match self.key {
            Key::Stream => {
                self.found.stream = match text {
                    b"true" => Some(true),
                    b"false" => Some(false),
                    _ => None,
                }
            }
            Key::MaxTokens => self.set_tokens(0, number(text)),
            Key::MaxCompletionTokens => self.set_tokens(1, number(text)),
            Key::Model | Key::User | Key::Other => {}
        }
    }

    fn set_tokens(&mut self, which: usize, value: Option<u64>) {
        self.tokens[which] = value;
        self.found.max_tokens = value.or(self.tokens[1 - which]);
    }
}

fn limit(usage: Use) -> usize {
    if usage == Use::Key { KEY_BYTES_MAX } else { SCANNED_VALUE_BYTES }
}

fn key(text: &[u8]) -> Key {
    match text {
        b"stream" => Key::Stream,
        b"model" => Key::Model,
        b"max_tokens" => Key::MaxTokens,
        b"max_completion_tokens" | b"max_output_tokens" => Key::MaxCompletionTokens,
        b"user" => Key::User,
        _ => Key::Other,
    }
}

/// RFC 8259, section 7; without `\u`.
fn plain_escape(byte: u8) -> Option<u8> {
    match byte {
        b'"' | b'\\' | b'/' => Some(byte),
        b'b' => Some(0x08),
        b'f' => Some(0x0C),
        b'n' => Some(b'\n'),
        b'r' => Some(b'\r'),
        b't' => Some(b'\t'),
        _ => None,
    }
}

/// A whole number that fits 64 bits, without sign, fraction, exponent or leading zeros.
fn number(text: &[u8]) -> Option<u64> {
    if text.len() > 1 && text[0] == b'0' || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
