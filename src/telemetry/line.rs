//! The JSON line of an ended stream, without the machinery of `tracing`.
//!
//! Every short request ends with one, so it is the one line whose cost is that of a request:
//! `make bench` has it beside the same line by `tracing`, which visits each field behind a trait
//! object and asks the calendar anew. Refuses to be another format: byte for byte it is what
//! `tracing` would have written at the same time, and a test holds them together. Strings and
//! numbers are `serde_json`'s, so nothing is escaped here. Invariant: one call writes one whole
//! line, in one piece. Cost: one buffer per thread, kept; nothing is allocated per line.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::log::{MESSAGE, StreamEnd, TARGET, bounded, millis};

/// Writes lines to `W`, each with a single `write_all`.
pub struct Pen<W> {
    out: W,
    line: Vec<u8>,
    stamp: Stamp,
}

impl<W: Write> Pen<W> {
    /// One that writes to `out`.
    pub fn new(out: W) -> Pen<W> {
        Pen { out, line: Vec::new(), stamp: Stamp::default() }
    }

    /// Writes the line of a stream that ended now.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&mut self, end: &StreamEnd<'_>) -> io::Result<()> {
        let line = &mut self.line;
        line.clear();
        line.extend_from_slice(b"{\"timestamp\":\"");
        line.extend_from_slice(self.stamp.now().as_bytes());
        line.extend_from_slice(b"\",\"level\":\"INFO\"");
        field(line, "message", MESSAGE);
        field(line, "id", bounded(end.id));
        optional(line, "upstream_request_id", end.upstream_request_id.map(bounded));
        if let Some(trace_id) = end.trace_id {
            line.extend_from_slice(b",\"trace_id\":\"");
            line.extend(trace_id.to_be_bytes().into_iter().flat_map(hexadecimal));
            line.push(b'"');
        }
        field(line, "route", end.route);
        field(line, "upstream", end.upstream);
        field(line, "status", end.status);
        field(line, "reason", end.reason.as_str());
        optional(line, "ttfb_ms", end.ttfb.map(millis));
        field(line, "duration_ms", millis(end.duration));
        field(line, "events", end.events);
        field(line, "bytes", end.bytes);
        optional(line, "max_gap_ms", end.max_gap.map(millis));
        field(line, "attempt", end.attempt);
        field(line, "target", TARGET);
        line.extend_from_slice(b"}\n");
        self.out.write_all(line)
    }
}

/// Adds a field behind another one. Keys are ours and need no escaping.
#[inline]
fn field(line: &mut Vec<u8>, key: &'static str, value: impl Serialize) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(key.as_bytes());
    line.extend_from_slice(b"\":");
    serde_json::to_writer(line, &value).expect("text and numbers always fit into memory");
}

/// What is not known is left out.
#[inline]
fn optional(line: &mut Vec<u8>, key: &'static str, value: Option<impl Serialize>) {
    if let Some(value) = value {
        field(line, key, value);
    }
}

fn hexadecimal(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)])
}

/// The time of the last line, such as `2026-11-21T09:30:00.000123Z`. Within a second only its
/// microseconds change.
#[derive(Default)]
struct Stamp {
    text: String,
    /// Seconds since 1970 of `text`, if they are known.
    second: Option<u64>,
}

/// Digits of the microseconds at the text's end, before its `Z`.
const MICROS: usize = 6;

impl Stamp {
    fn now(&mut self) -> &str {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(now) if self.second == Some(now.as_secs()) => self.micros(now.subsec_micros()),
            before => {
                self.text.clear();
                let time = tracing_subscriber::fmt::time::SystemTime;
                time.format_time(&mut Writer::new(&mut self.text)).expect("memory takes any text");
                // It looked at the clock by itself; the second may have gone by meanwhile.
                let after = SystemTime::now().duration_since(UNIX_EPOCH);
                let seconds = (before.ok(), after.ok());
                self.second = match seconds {
                    (Some(a), Some(b)) if a.as_secs() == b.as_secs() => Some(a.as_secs()),
                    _ => None,
                };
            }
        }
        &self.text
    }

    /// Puts others into the text.
    fn micros(&mut self, mut micros: u32) {
        let mut digits = [0; MICROS];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
        self.text.truncate(self.text.len() - MICROS - 1);
        self.text.extend(digits.map(char::from));
        self.text.push('Z');
    }
}

#[cfg(test)]
mod tests;
