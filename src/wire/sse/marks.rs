//! By what each family tells that a stream is complete, or has failed: event names and keys of data.
//!
//! Owns the closed list of names. Refuses to keep bytes: a name is matched byte by byte as a set of
//! those that are still possible. Cost: three bytes for an event's data, two for its name.

use crate::config::Family;

/// What follows the opening quote of the key that makes a JSON object an error.
const ERROR_KEY: &[u8; 6] = b"error\"";
/// What follows the opening quote of the key that names an event of the Responses API.
const TYPE_KEY: &[u8; 5] = b"type\"";
/// Event names that mean something to a family: first the error event, then the terminal ones.
pub(super) const NAMES: [&[u8]; 5] =
    [b"error", b"message_stop", b"response.completed", b"response.failed", b"response.incomplete"];
const ERROR: u8 = 0;
const FAILED: u8 = 3;

/// The event names that `family` looks for, as a set over [`NAMES`].
pub(super) fn names(family: Family) -> u8 {
    match family {
        Family::Anthropic => 0b00011,
        Family::Responses => 0b11101,
        Family::OpenAi | Family::Plain | Family::Auto => 0b00001,
    }
}

/// Those of the set `alive` that have `byte` at `pos`.
pub(super) fn matching(alive: u8, pos: u8, byte: u8) -> u8 {
    let mut left = 0;
    for (i, name) in NAMES.iter().enumerate() {
        if alive & 1 << i != 0 && name.get(usize::from(pos)) == Some(&byte) {
            left |= 1 << i;
        }
    }
    left
}

/// Which of the set `alive` is wholly matched after `pos` bytes.
pub(super) fn whole(alive: u8, pos: u8) -> Option<u8> {
    let whole = |i: &u8| alive & 1 << i != 0 && NAMES[usize::from(*i)].len() == usize::from(pos);
    (0..NAMES.len() as u8).find(whole)
}

/// Whether an event of this name tells an error; that of a failed response is a terminal one too.
pub(super) fn is_error(name: u8) -> bool {
    matches!(name, ERROR | FAILED)
}

/// Whether an event of this name is the last that a client waits for.
pub(super) fn is_terminal(name: u8) -> bool {
    name != ERROR
}

/// How far an event's data has matched `{"error":` and a value other than null, or, in the
/// Responses API, whose clients go by it, `{"type":` and one of [`NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Brace,
    Quote,
    Key(u8),
    Colon,
    Value,
    TypeKey(u8),
    TypeColon,
    TypeQuote,
    /// `alive` is the set of [`NAMES`] whose first `pos` bytes have matched.
    TypeName {
        alive: u8,
        pos: u8,
    },
    /// It says nothing more.
    Ruled,
    /// It is an error object.
    Error,
    /// Its type is this one of [`NAMES`].
    Named(u8),
}

impl Object {
    /// After the next byte of the data. Inlined, since every event of every stream comes by.
    #[inline]
    pub(super) fn next(self, byte: u8, family: Family) -> Object {
        let white = matches!(byte, b' ' | b'\t');
        match self {
            Object::Brace if byte == b'{' => Object::Quote,
            Object::Quote if byte == b'"' => Object::Key(0),
            Object::Key(n) => match match_key(ERROR_KEY, n, byte) {
                Some(n) if usize::from(n) == ERROR_KEY.len() => Object::Colon,
                Some(n) => Object::Key(n),
                None if n == 0 && byte == TYPE_KEY[0] && family == Family::Responses => {
                    Object::TypeKey(1)
                }
                None => Object::Ruled,
            },
            Object::TypeKey(n) => match match_key(TYPE_KEY, n, byte) {
                Some(n) if usize::from(n) == TYPE_KEY.len() => Object::TypeColon,
                Some(n) => Object::TypeKey(n),
                None => Object::Ruled,
            },
            Object::TypeName { alive, pos } if byte == b'"' => {
                whole(alive, pos).map_or(Object::Ruled, Object::Named)
            }
            Object::TypeName { alive, pos } => match matching(alive, pos, byte) {
                0 => Object::Ruled,
                alive => Object::TypeName { alive, pos: pos + 1 },
            },
            Object::Ruled | Object::Error | Object::Named(_) => self,
            _ if white => self,
            Object::Colon if byte == b':' => Object::Value,
            Object::TypeColon if byte == b':' => Object::TypeQuote,
            Object::TypeQuote if byte == b'"' => Object::TypeName { alive: names(family), pos: 0 },
            Object::Value if byte != b'n' => Object::Error,
            _ => Object::Ruled,
        }
    }

    /// The rest of the data cannot change it.
    #[inline]
    pub(super) fn is_final(self) -> bool {
        matches!(self, Object::Ruled | Object::Error | Object::Named(_))
    }

    /// Within a quoted word, which a line end breaks.
    pub(super) fn is_word(self) -> bool {
        matches!(self, Object::Key(_) | Object::TypeKey(_) | Object::TypeName { .. })
    }

    /// Which of [`NAMES`] the data has for its type.
    #[inline]
    pub(super) fn name(self) -> Option<u8> {
        if let Object::Named(name) = self { Some(name) } else { None }
    }
}

/// How much of `key` has matched with this byte after `n` others; `None`: it is another key.
fn match_key(key: &[u8], n: u8, byte: u8) -> Option<u8> {
    (key.get(usize::from(n)) == Some(&byte)).then_some(n + 1)
}
