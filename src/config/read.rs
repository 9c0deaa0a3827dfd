//! One pass over a spanned TOML tree: sections, positions, key paths, and the faults found so far.
//!
//! Refuses unknown keys, naming the nearest valid one. Invariant: reading goes on after a fault,
//! so that one run reports all of them; a configuration with any fault never leaves the caller.
//! The readers of single values are in `values`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Notice, NoticeKind};
use super::keys;
use super::nearest::nearest;
use super::units::quoted;

/// How an environment variable is looked up; tests bring their own.
pub(super) type Env<'e> = &'e dyn Fn(&str) -> Option<OsString>;

/// Where something stands, for messages about it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) key: String,
    pub(super) line: Option<usize>,
}

impl Place {
    /// The place of entry `name` below this one, on the same line.
    pub(super) fn below(&self, name: &str) -> Place {
        Place { key: join(&self.key, name), line: self.line }
    }
}

/// A table of the configuration; one that is absent reads as all defaults.
pub(super) struct Section<'t> {
    table: Option<&'t DeTable<'t>>,
    pub(super) place: Place,
}

impl Section<'_> {
    /// True if the file has this section, even an empty one.
    pub(super) fn present(&self) -> bool {
        self.table.is_some()
    }
}

/// One pass over one configuration.
pub(super) struct Reading<'e> {
    file: String,
    base: PathBuf,
    line_starts: Vec<usize>,
    env: Env<'e>,
    lines: BTreeMap<String, usize>,
    pub(super) faults: Vec<Fault>,
    pub(super) notices: Vec<Notice>,
}

impl<'e> Reading<'e> {
    /// Starts a pass over `text`. Relative paths in it are taken from the folder of `file`.
    pub(super) fn new(file: &str, text: &str, env: Env<'e>) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Reading {
            file: file.to_owned(),
            base: Path::new(file).parent().unwrap_or(Path::new("")).to_owned(),
            line_starts: std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect(),
            env,
            lines: BTreeMap::new(),
            faults: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Records a fault at `place`.
    pub(super) fn fault(&mut self, place: &Place, text: impl Into<String>) {
        let (file, key) = (self.file.clone(), place.key.clone());
        self.faults.push(Fault { file, line: place.line, column: None, key, text: text.into() });
    }

    /// Records a TOML syntax error at byte `at` of `text`.
    pub(super) fn syntax(&mut self, text: &str, at: Option<usize>, message: &str) {
        let line = at.map(|at| self.line(at));
        let column = at.zip(line).map(|(at, line)| {
            let before = text.get(self.line_starts[line - 1]..at).unwrap_or_default();
            before.chars().count() + 1
        });
        let text = format!("not valid TOML: {message}");
        let file = self.file.clone();
        self.faults.push(Fault { file, line, column, key: String::new(), text });
    }

    /// Records that `name` of `section`, which the user set, is checked but has no effect yet.
    pub(super) fn not_yet(&mut self, section: &Section<'_>, name: &str, text: &str) {
        if let Some((place, _)) = self.field(section, name) {
            self.notice(NoticeKind::NotYet, &place, text);
        }
    }

    /// Records a notice about `place`.
    pub(super) fn notice(&mut self, kind: NoticeKind, place: &Place, text: impl Into<String>) {
        let (key, line) = (place.key.clone(), place.line);
        self.notices.push(Notice { kind, key, line, text: text.into() });
    }

    /// The place of a key by its full path, wherever it was read; without a line if it was not.
    pub(super) fn place(&self, key: &str) -> Place {
        Place { key: key.to_owned(), line: self.lines.get(key).copied() }
    }

    /// The value of an environment variable.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        (self.env)(name)
    }

    /// A path of the file, from the folder of the file if it is relative.
    pub(super) fn relative(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    /// The line, from 1, of byte `at`.
    pub(super) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// The whole document, its top-level keys checked.
    pub(super) fn root<'t>(&mut self, table: &'t DeTable<'t>) -> Section<'t> {
        self.open(Place { key: String::new(), line: None }, "", table)
    }

    /// The table `name` inside `parent`.
    pub(super) fn section<'t>(&mut self, parent: &Section<'t>, name: &str) -> Section<'t> {
        let absent = Section { table: None, place: self.place(&join(&parent.place.key, name)) };
        let Some((place, value)) = self.field(parent, name) else { return absent };
        match value.get_ref() {
            DeValue::Table(table) => {
                let schema = schema(&place.key);
                self.open(place, &schema, table)
            }
            DeValue::Array(_) => {
                let text = format!("may be given only once; write [{}]", place.key);
                self.fault(&place, text);
                absent
            }
            other => {
                let text = format!("must be a table, found {}", found(other));
                self.fault(&place, text);
                absent
            }
        }
    }

    /// The tables of the array `name` inside `parent`: `[[upstream]]`, `[[tenant.key]]`.
    pub(super) fn sections<'t>(&mut self, parent: &Section<'t>, name: &str) -> Vec<Section<'t>> {
        let Some((place, value)) = self.field(parent, name) else { return Vec::new() };
        let path = schema(&place.key);
        let DeValue::Array(items) = value.get_ref() else {
            self.fault(&place, format!("there may be several; write [[{path}]]"));
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            let place = Place {
                key: format!("{}[{n}]", place.key),
                line: Some(self.line(item.span().start)),
            };
            match item.get_ref() {
                DeValue::Table(table) => sections.push(self.open(place, &path, table)),
                other => self.fault(&place, format!("must be a table, found {}", found(other))),
            }
        }
        sections
    }

    /// Enters a table: remembers where its keys are and refuses those the contract lacks.
    fn open<'t>(&mut self, place: Place, schema: &str, table: &'t DeTable<'t>) -> Section<'t> {
        if let Some(line) = place.line {
            self.lines.insert(place.key.clone(), line);
        }
        let valid = keys::children(schema);
        for (name, value) in table {
            let line = self.line(name.span().start);
            let at = Place { key: join(&place.key, name.get_ref()), line: Some(line) };
            if valid.contains(&name.get_ref().as_ref()) {
                self.lines.insert(at.key, line);
            } else {
                let text = unknown_key(name.get_ref(), schema, &valid, value.get_ref());
                self.fault(&at, text);
            }
        }
        Section { table: Some(table), place }
    }

    /// True if `name` is not set at all, or is an array without entries.
    pub(super) fn lacks(&self, section: &Section<'_>, name: &str) -> bool {
        let field = self.field(section, name);
        field.is_none_or(|(_, value)| value.get_ref().as_array().is_some_and(|a| a.is_empty()))
    }

    /// The value of `name`, if it is set.
    pub(super) fn field<'t>(
        &self,
        section: &Section<'t>,
        name: &str,
    ) -> Option<(Place, &'t Spanned<DeValue<'t>>)> {
        debug_assert!(
            keys::children(&schema(&section.place.key)).contains(&name),
            "{name} is in keys.rs"
        );
        let (key, value) = section.table?.iter().find(|(key, _)| key.get_ref() == name)?;
        let line = Some(self.line(key.span().start));
        Some((Place { key: join(&section.place.key, name), line }, value))
    }
}

/// `upstream[0].credential` without its indices: `upstream.credential`.
fn schema(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut index = false;
    for c in path.chars() {
        match c {
            '[' => index = true,
            ']' => index = false,
            c if !index => plain.push(c),
            _ => {}
        }
    }
    plain
}

/// A path one segment longer; a name that TOML would not take bare is shown quoted and escaped.
pub(super) fn join(path: &str, name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let plain = !name.is_empty() && name.len() <= 64 && name.chars().all(bare);
    let name = if plain { name.to_owned() } else { quoted(name) };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn unknown_key(name: &str, schema: &str, valid: &[&str], value: &DeValue<'_>) -> String {
    let noun = if value.is_table() { "section" } else { "key" };
    if let Some(near) = nearest(name, valid.iter().copied()) {
        return format!("unknown {noun}; nearest valid key: {near}");
    }
    let homes = keys::homes(name, schema);
    if !homes.is_empty() {
        return format!("unknown {noun} here; it belongs under {}", homes.join(" or "));
    }
    format!("unknown {noun}; valid here: {}", valid.join(", "))
}

/// A value's type with its article, for messages.
pub(super) fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
