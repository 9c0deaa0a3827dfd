//! Durations and sizes as the configuration writes them: an integer and a unit, in one string.
//!
//! Refuses bare numbers, fractions and compounds such as `1h30m`, so that a value reads the same
//! way to everybody. The errors say what to write.

use std::time::Duration;

use super::nearest::nearest;

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads `250ms`, `15s`, `10m` or `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    scaled(text, &DURATION_UNITS, "duration", "15s", "ms, s, m or h").map(Duration::from_millis)
}

/// Reads `512B`, `64KiB`, `1MiB`, `16MB`, `1GiB` and the like into bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    scaled(text, &SIZE_UNITS, "size", "64KiB", "B, kB, MB, GB, TB, KiB, MiB, GiB or TiB")
}

fn scaled(
    text: &str,
    units: &[(&'static str, u64)],
    noun: &str,
    example: &str,
    valid: &str,
) -> Result<u64, String> {
    let written = text.trim();
    let digits = written.len() - written.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = (&written[..digits], written[digits..].trim());
    if number.is_empty() {
        return Err(format!(
            "{} is not a {noun}; write an integer and a unit, such as \"{example}\"",
            quoted(text)
        ));
    }
    if unit.is_empty() {
        return Err(format!("{} has no unit; write one of {valid} after it", quoted(text)));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(match near_unit(unit, units) {
            Some(near) => format!(
                "{} is not a unit of a {noun}; did you mean \"{number}{near}\"?",
                quoted(unit)
            ),
            None => format!(
                "{} is not a {noun}; write an integer and one of {valid}, such as \"{example}\"",
                quoted(text)
            ),
        });
    };
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| format!("{} is too large", quoted(text)))
}

/// `sec`, `minutes`, `K`, `kb`: what people write, and the unit they mean.
fn near_unit(unit: &str, units: &[(&'static str, u64)]) -> Option<&'static str> {
    let lower = unit.to_ascii_lowercase();
    let meant = match lower.as_str() {
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" if units.iter().any(|(name, _)| *name == "MiB") => "MiB",
        "g" | "gb" | "gib" => "GiB",
        "t" | "tb" | "tib" => "TiB",
        "b" | "byte" | "bytes" => "B",
        "msec" | "millis" | "milliseconds" => "ms",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        _ => "",
    };
    let names = || units.iter().map(|(name, _)| *name);
    names().find(|name| *name == meant).or_else(|| nearest(unit, names().filter(|n| n.len() > 1)))
}

/// `text` in quotes for a message: control characters escaped, cut after 40 characters.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().count() > 40 {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// A duration the way it would be written, in the largest unit that divides it.
pub(super) fn show_duration(value: Duration) -> String {
    let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    show(millis, &[("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)])
}

/// A size the way it would be written, in the largest binary unit that divides it.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)])
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |factor: &u64| value >= *factor && value.is_multiple_of(*factor);
    match units.iter().find(|(_, factor)| fits(factor)) {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => format!("0{}", units[units.len() - 1].0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in
            [("250ms", 250), ("15s", 15_000), ("10m", 600_000), ("1h", 3_600_000), (" 3 s ", 3_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0B", 0),
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("16MB", 16_000_000),
            ("5kB", 5_000),
            ("1GiB", 1 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_units_name_the_right_one() {
        for (text, hint) in [
            ("15sec", "did you mean \"15s\"?"),
            ("5 minutes", "did you mean \"5m\"?"),
            ("2H", "did you mean \"2h\"?"),
            ("10", "has no unit"),
            ("", "is not a duration"),
            ("-5s", "is not a duration"),
            ("1.5s", "is not a duration"),
            ("1h30m", "is not a duration"),
            ("5days", "ms, s, m or h"),
            ("99999999999999999999s", "too large"),
            ("18446744073709551615h", "too large"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
        for (text, hint) in [
            ("64K", "did you mean \"64KiB\"?"),
            ("64kib", "did you mean \"64KiB\"?"),
            ("1m", "did you mean \"1MiB\"?"),
            ("16", "has no unit"),
            ("many", "is not a size"),
            ("12\u{7}", "is not a size"),
            ("99999999999TiB", "too large"),
        ] {
            let error = size(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn values_are_shown_as_they_are_written() {
        assert_eq!(show_duration(Duration::from_millis(1_500)), "1500ms");
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(7_200)), "2h");
        assert_eq!(show_duration(Duration::ZERO), "0ms");
        assert_eq!(show_size(65_536), "64KiB");
        assert_eq!(show_size(1_000), "1000B");
        assert_eq!(show_size(0), "0B");
    }

    #[test]
    fn quotes_are_short_and_harmless() {
        assert_eq!(quoted("a\u{1b}[31m\n"), "\"a\\u{1b}[31m\\n\"");
        assert_eq!(quoted(&"x".repeat(41)), format!("\"{}…\"", "x".repeat(40)));
    }
}
