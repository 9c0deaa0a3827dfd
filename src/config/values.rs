//! Typed readers of single values: durations, sizes, numbers, choices, lists.
//!
//! Invariant: a reader that recorded a fault returns its default, so that the pass can go on.
//! Values are quoted in messages only where they cannot hold a secret; plain strings are not.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::nearest::nearest;
use super::read::{Place, Reading, Section, found, join};
use super::units::{self, quoted, show_duration, show_size};

impl Reading<'_> {
    /// A string, if it is set and is one.
    pub(super) fn text<'t>(&mut self, s: &Section<'t>, name: &str) -> Option<(Place, &'t str)> {
        let (place, value) = self.field(s, name)?;
        let text = self.string(&place, value.get_ref(), "a string")?;
        Some((place, text))
    }

    fn string<'t>(
        &mut self,
        place: &Place,
        value: &'t DeValue<'t>,
        wanted: &str,
    ) -> Option<&'t str> {
        if let DeValue::String(text) = value {
            return Some(text);
        }
        self.fault(place, format!("must be {wanted}, found {}", found(value)));
        None
    }

    /// A file's path, if it is set; a relative one starts at the configuration's folder.
    pub(super) fn path(&mut self, s: &Section<'_>, name: &str) -> Option<(Place, PathBuf)> {
        let (place, text) = self.text(s, name)?;
        if text.is_empty() || text.contains('\0') {
            self.fault(&place, "must be the path of a file");
            return None;
        }
        Some((place, self.relative(text)))
    }

    /// An integer within `range`.
    pub(super) fn number<N>(
        &mut self,
        s: &Section<'_>,
        name: &str,
        range: RangeInclusive<u64>,
        default: N,
    ) -> N
    where
        N: TryFrom<u64>,
    {
        let Some((place, value)) = self.field(s, name) else { return default };
        let read = self.integer(&place, value.get_ref(), &range);
        read.and_then(|n| N::try_from(n).ok()).unwrap_or(default)
    }

    fn integer(
        &mut self,
        place: &Place,
        value: &DeValue<'_>,
        range: &RangeInclusive<u64>,
    ) -> Option<u64> {
        let DeValue::Integer(integer) = value else {
            self.fault(place, format!("must be an integer, found {}", found(value)));
            return None;
        };
        let read = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = read.filter(|n| range.contains(n));
        if number.is_none() {
            let shown = quoted(&integer.to_string()).replace('"', "");
            let (min, max) = (range.start(), range.end());
            self.fault(place, format!("{shown} is out of range; write {min} to {max}"));
        }
        number
    }

    /// The integers of an array, if it is set; entries that are none, or not within `range`, are
    /// faults and left out.
    pub(super) fn integers(
        &mut self,
        s: &Section<'_>,
        name: &str,
        most: usize,
        range: RangeInclusive<u64>,
    ) -> Option<Vec<(Place, u64)>> {
        let (place, value) = self.field(s, name)?;
        let DeValue::Array(items) = value.get_ref() else {
            let found = found(value.get_ref());
            self.fault(&place, format!("must be an array of integers, found {found}"));
            return None;
        };
        if items.len() > most {
            self.fault(&place, format!("has {} entries; at most {most} are possible", items.len()));
        }
        let mut integers = Vec::new();
        for (n, item) in items.iter().enumerate().take(most) {
            let line = Some(self.line(item.span().start));
            let at = Place { key: format!("{}[{n}]", place.key), line };
            if let Some(integer) = self.integer(&at, item.get_ref(), &range) {
                integers.push((at, integer));
            }
        }
        Some(integers)
    }

    /// A share such as `"20%"`, as a number from 0 to 1.
    pub(super) fn percent(&mut self, s: &Section<'_>, name: &str, default: f64) -> f64 {
        let Some((place, value)) = self.field(s, name) else { return default };
        let wanted = "a share such as \"20%\"";
        let Some(text) = self.string(&place, value.get_ref(), wanted) else { return default };
        let number = text.strip_suffix('%').and_then(|number| number.parse::<u8>().ok());
        match number.filter(|number| *number <= 100) {
            Some(number) => f64::from(number) / 100.0,
            None => {
                self.fault(&place, "must be a share, \"0%\" to \"100%\"");
                default
            }
        }
    }

    /// The names and numbers of a table with names of the user's choice.
    pub(super) fn numbers(
        &mut self,
        s: &Section<'_>,
        name: &str,
        most: usize,
        range: RangeInclusive<u64>,
    ) -> Vec<(Place, String, u64)> {
        let Some((place, value)) = self.field(s, name) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            let found = found(value.get_ref());
            self.fault(&place, format!("must be a table of integers, found {found}"));
            return Vec::new();
        };
        if table.len() > most {
            self.fault(&place, format!("has {} entries; at most {most} are possible", table.len()));
        }
        let mut numbers = Vec::new();
        for (key, value) in table.iter().take(most) {
            let line = Some(self.line(key.span().start));
            let at = Place { key: join(&place.key, key.get_ref()), line };
            if let Some(number) = self.integer(&at, value.get_ref(), &range) {
                numbers.push((at, key.get_ref().to_string(), number));
            }
        }
        numbers
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, s: &Section<'_>, name: &str, default: bool) -> bool {
        let Some((place, value)) = self.field(s, name) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            let found = found(value.get_ref());
            self.fault(&place, format!("must be true or false without quotes, found {found}"));
            default
        })
    }

    /// A duration within `range`.
    pub(super) fn duration(
        &mut self,
        s: &Section<'_>,
        name: &str,
        range: &RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some((place, value)) = self.field(s, name) else { return default };
        self.duration_at(&place, value.get_ref(), range, "").unwrap_or(default)
    }

    /// A duration within `range`, or `None` for `"off"`.
    pub(super) fn duration_or_off(
        &mut self,
        s: &Section<'_>,
        name: &str,
        range: &RangeInclusive<Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let Some((place, value)) = self.field(s, name) else { return default };
        if value.get_ref().as_str() == Some("off") {
            return None;
        }
        self.duration_at(&place, value.get_ref(), range, " or \"off\"").or(default)
    }

    fn duration_at(
        &mut self,
        place: &Place,
        value: &DeValue<'_>,
        range: &RangeInclusive<Duration>,
        or: &str,
    ) -> Option<Duration> {
        let wanted = format!("a duration such as \"15s\"{or}");
        let text = match value {
            DeValue::String(text) => text,
            other => {
                self.fault(place, format!("must be {wanted}, found {}", found(other)));
                return None;
            }
        };
        match units::duration(text) {
            Ok(read) if range.contains(&read) => return Some(read),
            Ok(_) => {
                let (min, max) = (show_duration(*range.start()), show_duration(*range.end()));
                let text = quoted(text);
                self.fault(place, format!("{text} is out of range; write {min} to {max}{or}"));
            }
            Err(error) => self.fault(place, format!("{error}{or}")),
        }
        None
    }

    /// A size in bytes within `range`.
    pub(super) fn size(
        &mut self,
        s: &Section<'_>,
        name: &str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let Some((place, value)) = self.field(s, name) else { return default };
        let Some(text) = self.string(&place, value.get_ref(), "a size such as \"64KiB\"") else {
            return default;
        };
        match units::size(text) {
            Ok(read) if range.contains(&read) => return read,
            Ok(_) => {
                let (min, max) = (show_size(*range.start()), show_size(*range.end()));
                let text = quoted(text);
                self.fault(&place, format!("{text} is out of range; write {min} to {max}"));
            }
            Err(error) => self.fault(&place, error),
        }
        default
    }

    /// One of a closed list of names.
    pub(super) fn choice<T: Copy>(
        &mut self,
        s: &Section<'_>,
        name: &str,
        choices: &[(&'static str, T)],
        default: T,
    ) -> T {
        let Some((place, value)) = self.field(s, name) else { return default };
        let integer = value.get_ref().as_integer().map(|integer| integer.as_str());
        let names = || choices.iter().map(|(name, _)| *name);
        let Some(text) = value.get_ref().as_str().or(integer) else {
            let all = names().collect::<Vec<_>>().join(", ");
            self.fault(&place, format!("must be one of {all}, found {}", found(value.get_ref())));
            return default;
        };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return *choice;
        }
        let all = names().collect::<Vec<_>>().join(", ");
        let hint = nearest(text, names()).map(|near| format!("; did you mean \"{near}\"?"));
        let text = format!("{} is not one of {all}{}", quoted(text), hint.unwrap_or_default());
        self.fault(&place, text);
        default
    }

    /// The strings of an array, if it is set; entries of another type are faults and left out.
    pub(super) fn texts<'t>(
        &mut self,
        s: &Section<'t>,
        name: &str,
        most: usize,
    ) -> Option<Vec<(Place, &'t str)>> {
        let (place, value) = self.field(s, name)?;
        let items = match value.get_ref() {
            DeValue::Array(items) => items,
            other => {
                let hint = if other.is_str() { "; put it in brackets: [\"…\"]" } else { "" };
                let found = found(other);
                self.fault(&place, format!("must be an array of strings, found {found}{hint}"));
                return None;
            }
        };
        if items.len() > most {
            self.fault(&place, format!("has {} entries; at most {most} are possible", items.len()));
        }
        let mut texts = Vec::new();
        for (n, item) in items.iter().enumerate().take(most) {
            let line = Some(self.line(item.span().start));
            let place = Place { key: format!("{}[{n}]", place.key), line };
            if let Some(text) = self.string(&place, item.get_ref(), "a string") {
                texts.push((place, text));
            }
        }
        Some(texts)
    }

    /// The names and strings of a table with names of the user's choice, in the order of the file.
    pub(super) fn pairs<'t>(
        &mut self,
        s: &Section<'t>,
        name: &str,
        most: usize,
    ) -> Vec<(Place, &'t str, &'t str)> {
        let Some((place, value)) = self.field(s, name) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            let found = found(value.get_ref());
            self.fault(&place, format!("must be a table of strings, found {found}"));
            return Vec::new();
        };
        if table.len() > most {
            self.fault(&place, format!("has {} entries; at most {most} are possible", table.len()));
        }
        let mut entries: Vec<(&Spanned<DeString<'_>>, _)> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut pairs = Vec::new();
        for (key, value) in entries.into_iter().take(most) {
            let Range { start, .. } = key.span();
            let at = Place { key: join(&place.key, key.get_ref()), line: Some(self.line(start)) };
            if let Some(text) = self.string(&at, value.get_ref(), "a string in quotes") {
                pairs.push((at, key.get_ref().as_ref(), text));
            }
        }
        pairs
    }
}
