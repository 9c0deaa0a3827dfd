//! What reading a configuration has to say: faults, which stop it, and notices, which do not.
//!
//! Owns the printed form that `check` and a failing `serve` show. Invariant: no text made here
//! carries a secret; whoever writes a fault names the key and leaves the value of anything that
//! may hold a credential out.

use std::fmt;

/// One thing that is wrong with a configuration.
///
/// Printed as `file:line: key.path: what is wrong; what to write`, with a column after the line
/// for TOML syntax errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file as it was named to us; empty if there is none (`serve --upstream`).
    pub file: String,
    /// Line in the file, from 1; `None` if the fault is about something that is not there.
    pub line: Option<usize>,
    /// Column in characters, from 1; only for TOML syntax errors.
    pub column: Option<usize>,
    /// Key path such as `upstream[0].urls[1]`; empty for syntax errors and unreadable files.
    pub key: String,
    /// What is wrong and what to write instead.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            if let Some(column) = self.column {
                write!(f, "{column}:")?;
            }
            f.write_str(" ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Everything that is wrong with a configuration, in the order of the file. Never empty.
///
/// Printed one fault per line, without a trailing newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The faults, by line; those without a line come last.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.faults.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Why a [`Notice`] was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// The key is valid and checked, but nothing acts on it yet.
    NotYet,
    /// The value works, but probably not as intended.
    Advice,
    /// The value was lowered to what the system allows.
    Clamped,
    /// A reload cannot change it.
    Restart,
}

impl NoticeKind {
    /// The word that a printed notice starts with.
    pub fn as_str(self) -> &'static str {
        match self {
            NoticeKind::NotYet => "not yet",
            NoticeKind::Advice => "advice",
            NoticeKind::Clamped => "clamped",
            NoticeKind::Restart => "restart",
        }
    }
}

/// Something an operator should know about a configuration that is accepted nevertheless.
///
/// Printed as `kind: key (line n): text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Why it was made.
    pub kind: NoticeKind,
    /// Key path, as in [`Fault::key`].
    pub key: String,
    /// Line of the key, from 1; `None` if the key is not in the file.
    pub line: Option<usize>,
    /// What to know, and the remedy.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.key)?;
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        write!(f, ": {}", self.text)
    }
}
