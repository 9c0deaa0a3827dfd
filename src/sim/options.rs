//! What the simulated upstream does with a request: the behaviour, its names and its parsing.
//!
//! Owns every `sim-*` name and the closed list of faults; the same names serve as request headers
//! and as query parameters. Refuses unknown names and values with a message that lists the valid
//! ones, so that a typing error never runs as a silent default.
//! Invariant: [`NAMES`] lists exactly what [`Behaviour::apply`] accepts (a test checks it).
//! Cost: a `Behaviour` is a plain value of under 200 bytes, held once per live stream.

use std::time::Duration;

use clap::ValueEnum;

use super::certificate::Certificate;

/// Everything [`Sim::start`](super::Sim::start) needs besides the address.
#[derive(Clone, Debug)]
pub struct Options {
    /// Behaviour of requests that do not override it.
    pub defaults: Behaviour,
    /// Serve TLS with this certificate; cleartext without.
    pub tls: Option<Tls>,
    /// Offer HTTP/2: by ALPN on TLS, by the connection preface on cleartext.
    pub h2: bool,
    /// Offer HTTP/1.1.
    pub h1: bool,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` of an HTTP/2 connection; unlimited if absent.
    pub h2_max_streams: Option<u32>,
    /// Pause between accepting a connection and its first read or TLS handshake.
    pub slow_accept: Duration,
    /// HTTP/2 receive window of one stream, bytes, which bounds request bodies in flight.
    pub window: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            defaults: Behaviour::default(),
            tls: None,
            h2: true,
            h1: true,
            h2_max_streams: None,
            slow_accept: Duration::ZERO,
            window: None,
        }
    }
}

/// TLS side of the simulator.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Chain and key to present, and the CA behind them.
    pub certificate: Certificate,
}

impl From<Certificate> for Tls {
    fn from(certificate: Certificate) -> Self {
        Self { certificate }
    }
}

/// How one request is answered. Headers and query parameters named in [`NAMES`] override it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Wait before the response head.
    pub first_byte: Duration,
    /// Wait between the head and the first event.
    pub first_event: Duration,
    /// Time from one event to the next; a late event does not delay those after it for long.
    pub interval: Duration,
    /// Events with content in a stream. What an API sends around them comes on top.
    pub count: u32,
    /// Bytes of padding in the content of every event.
    pub size: usize,
    /// What goes wrong.
    pub fault: Fault,
    /// Events sent before a mid-stream fault strikes (at most `count`); for [`Fault::Huge`] the
    /// number of the huge event, counted from 1.
    pub fault_after: u32,
    /// Fault and status strike only the first so many requests that carry the same `sim-stream`;
    /// later ones are answered well. All of them if absent.
    pub fault_times: Option<u32>,
    /// Bytes of padding in the one event of [`Fault::Huge`].
    pub size_huge: usize,
    /// How the bytes are laid out on the wire.
    pub framing: Framing,
    /// Status of an error answer (JSON body) in place of the endpoint's own.
    pub status: Option<u16>,
    /// Value of a `retry-after` field on the response.
    pub retry_after: Option<String>,
    /// Wait before the request body is read.
    pub read_delay: Duration,
    /// Whether ids and times are real; when false the payload is deterministic.
    pub clock: bool,
    /// The id written as `sim.stream` into every event; a counter if absent.
    pub stream: Option<u64>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            first_byte: Duration::ZERO,
            first_event: Duration::ZERO,
            interval: Duration::ZERO,
            count: 20,
            size: 0,
            fault: Fault::None,
            fault_after: 3,
            fault_times: None,
            size_huge: 3 * 512 * 1024,
            framing: Framing::default(),
            status: None,
            retry_after: None,
            read_delay: Duration::ZERO,
            clock: true,
            stream: None,
        }
    }
}

/// Layout of the event stream's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// Where chunks and writes are cut.
    pub split: Split,
    /// Line end of the event stream.
    pub line_end: LineEnd,
    /// Start the event stream with a byte order mark.
    pub bom: bool,
}

/// Where chunks (HTTP/1.1) or DATA frames (HTTP/2) are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// One event, one chunk, one write.
    #[default]
    None,
    /// Every byte is a chunk and a write of its own.
    Byte,
    /// Chunks of 1 to 40 bytes, and writes cut elsewhere; the same cuts for the same `sim-stream`.
    Random,
}

/// Line ends the WHATWG event-stream grammar allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LineEnd {
    /// `\n`
    #[default]
    Lf,
    /// `\r\n`
    Crlf,
    /// `\r`
    Cr,
}

impl LineEnd {
    /// The bytes of one line end.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Self::Lf => b"\n",
            Self::Crlf => b"\r\n",
            Self::Cr => b"\r",
        }
    }
}

/// What goes wrong with an answer. "After N" means after `fault_after` events, or half of a body
/// that is not an event stream. A fault that one protocol cannot express is a plain answer there,
/// unless its line says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// A good answer.
    #[default]
    None,
    /// Close after N without the last chunk; h2: RST_STREAM INTERNAL_ERROR
    Fin,
    /// TCP reset after N; h2: RST_STREAM CANCEL
    Rst,
    /// Drop the whole connection after N (TLS without close_notify)
    Conn,
    /// Send nothing more after N, and stay open
    Stall,
    /// Never send the response head
    StallHead,
    /// The first event is an error, then a clean end without the terminal mark
    ErrorFirst,
    /// An error event after N, then a clean end without the terminal mark
    ErrorMiddle,
    /// 200, the event-stream head, and a clean end without one byte of body
    Empty,
    /// Event number N carries sim-size-huge bytes (1.5 MiB unless set)
    Huge,
    /// A clean end without the terminal mark
    NoDone,
    /// The content-length promises more than is sent
    WrongLength,
    /// A chunk size that is no number after N; h2: as rst
    BadChunk,
    /// The half of a chunk, a comment, after N, then close; h2: as fin
    ShortChunk,
    /// Two informational heads (103) before the final one
    #[value(name = "103")]
    Informational,
    /// A trailer section after the last event
    Trailers,
    /// 200 with an HTML page, as captive portals and misconfigured proxies send
    Html,
    /// Reset before the head; h2: RST_STREAM INTERNAL_ERROR
    ResetHead,
    /// Closed before the head without a byte; h2: RST_STREAM REFUSED_STREAM (safe to retry)
    Refuse,
    /// h2: RST_STREAM ENHANCE_YOUR_CALM before the head
    Calm,
    /// h2: GOAWAY ENHANCE_YOUR_CALM after N, with all streams of the connection; h1: as conn
    CalmAway,
    /// Answer without reading the request body, then close; h2: then RST_STREAM NO_ERROR
    Early,
    /// h1: neither length nor chunks, the close ends the body
    EofDelimited,
    /// The event stream has an exact content-length (turns the clock off)
    ContentLengthExact,
    /// h2: graceful GOAWAY after N while streams finish; h1: connection: close
    Goaway,
    /// h1: the lines of the head end in a bare LF
    BareLfHead,
    /// h1: answer as an HTTP/1.0 server
    Http10,
}

impl Fault {
    /// Whether the fault strikes once `fault_after` events are out.
    pub(super) fn is_mid_stream(self) -> bool {
        use Fault::{BadChunk, CalmAway, Conn, ErrorMiddle, Fin, Rst, ShortChunk, Stall};
        matches!(self, Fin | Rst | Conn | CalmAway | Stall | ErrorMiddle | BadChunk | ShortChunk)
    }
}

/// Every name [`Behaviour::apply`] takes.
pub const NAMES: [&str; 17] = [
    "sim-first-byte",
    "sim-first-event",
    "sim-interval",
    "sim-count",
    "sim-size",
    "sim-size-huge",
    "sim-fault",
    "sim-fault-after",
    "sim-fault-times",
    "sim-split",
    "sim-line-end",
    "sim-bom",
    "sim-status",
    "sim-retry-after",
    "sim-read-delay",
    "sim-clock",
    "sim-stream",
];

impl Behaviour {
    /// Overrides one field from a header or a query parameter.
    ///
    /// # Errors
    /// The message names what is valid, for an unknown `name` as well as for a bad `value`.
    pub fn apply(&mut self, name: &str, value: &str) -> Result<(), String> {
        let of = |fault: String| format!("{name}: {fault}");
        match name {
            "sim-first-byte" => self.first_byte = parse_duration(value).map_err(of)?,
            "sim-first-event" => self.first_event = parse_duration(value).map_err(of)?,
            "sim-interval" => self.interval = parse_duration(value).map_err(of)?,
            "sim-count" => self.count = parse_number(value, u32::MAX).map_err(of)?,
            "sim-size" => self.size = parse_size(value).map_err(of)?,
            "sim-size-huge" => self.size_huge = parse_size(value).map_err(of)?,
            "sim-fault" => self.fault = parse_choice(value).map_err(of)?,
            "sim-fault-after" => self.fault_after = parse_number(value, u32::MAX).map_err(of)?,
            "sim-fault-times" => {
                self.fault_times = Some(parse_number(value, u32::MAX).map_err(of)?);
            }
            "sim-split" => self.framing.split = parse_choice(value).map_err(of)?,
            "sim-line-end" => self.framing.line_end = parse_choice(value).map_err(of)?,
            "sim-bom" => self.framing.bom = parse_switch(value).map_err(of)?,
            "sim-status" => self.status = Some(parse_status(value).map_err(of)?),
            "sim-retry-after" => self.retry_after = Some(parse_field(value).map_err(of)?),
            "sim-read-delay" => self.read_delay = parse_duration(value).map_err(of)?,
            "sim-clock" => self.clock = parse_switch(value).map_err(of)?,
            "sim-stream" => self.stream = Some(parse_number(value, u64::MAX).map_err(of)?),
            _ => return Err(format!("unknown name {name:?}; valid are {}", NAMES.join(", "))),
        }
        Ok(())
    }
}

/// Padding above this would only test the machine's memory.
const SIZE_MAX: usize = 64 * 1024 * 1024;

/// Parses `250ms`, `2s`, `1m`, `1h`, `100us` or a plain `0`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let fault = || format!("{text:?} is no duration; write it like 250ms (units: us, ms, s, m, h)");
    let number: u32 = number.parse().map_err(|_| fault())?;
    match unit {
        "us" => Ok(Duration::from_micros(number.into())),
        "ms" => Ok(Duration::from_millis(number.into())),
        "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(u64::from(number) * 60)),
        "h" => Ok(Duration::from_secs(u64::from(number) * 3600)),
        "" if number == 0 => Ok(Duration::ZERO),
        _ => Err(fault()),
    }
}

/// Parses a count of bytes: `200`, `4KiB`, `2MiB`.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1024),
        "MiB" => Some(1024 * 1024),
        _ => None,
    };
    let size = factor.and_then(|f: usize| number.parse::<usize>().ok()?.checked_mul(f));
    size.filter(|&size| size <= SIZE_MAX)
        .ok_or_else(|| format!("{text:?} is no size up to 64MiB; write it like 200, 4KiB, 2MiB"))
}

/// The name and help text of a choice come from its clap derive, so both faces stay the same.
fn parse_choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        format!("{text:?} is unknown; valid are {}", names.join(", "))
    })
}

fn parse_number<T: std::str::FromStr + std::fmt::Display>(text: &str, max: T) -> Result<T, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| format!("{text:?} is no number from 0 to {max}"))
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "on" | "true" => Ok(true),
        "0" | "off" | "false" => Ok(false),
        _ => Err(format!("{text:?} is no switch; valid are 1, on, true, 0, off, false")),
    }
}

fn parse_status(text: &str) -> Result<u16, String> {
    let status = text.parse().ok().filter(|status| (200..=599).contains(status));
    status.ok_or_else(|| format!("{text:?} is no status from 200 to 599"))
}

/// The value goes into a response head as it is, so it must not be able to end a line there.
fn parse_field(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    if plain { Ok(text.to_owned()) } else { Err(format!("{text:?} is not visible ASCII")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that differs from the default for each name.
    fn other_value(name: &str) -> &'static str {
        match name {
            "sim-first-byte" | "sim-first-event" | "sim-interval" | "sim-read-delay" => "250ms",
            "sim-fault" => "stall-head",
            "sim-split" => "byte",
            "sim-line-end" => "crlf",
            "sim-bom" => "1",
            "sim-status" => "429",
            "sim-clock" => "off",
            _ => "7",
        }
    }

    #[test]
    fn every_listed_name_is_accepted_and_changes_something() {
        for name in NAMES {
            let mut behaviour = Behaviour::default();
            behaviour.apply(name, other_value(name)).unwrap();
            assert_ne!(behaviour, Behaviour::default(), "{name}");
        }
    }

    #[test]
    fn unknown_names_and_values_name_the_valid_ones() {
        let mut behaviour = Behaviour::default();
        let fault = behaviour.apply("sim-intervall", "1ms").unwrap_err();
        assert!(fault.contains("sim-interval,") && fault.contains("sim-stream"), "{fault}");
        let fault = behaviour.apply("sim-fault", "explode").unwrap_err();
        for name in ["stall-head", "103", "content-length-exact", "http10", "goaway"] {
            assert!(fault.contains(name), "{name} missing in {fault}");
        }
        let fault = behaviour.apply("sim-split", "bytes").unwrap_err();
        assert!(fault.contains("none, byte, random"), "{fault}");
        assert_eq!(behaviour, Behaviour::default());
    }

    #[test]
    fn bad_values_are_refused() {
        let bad = [
            ("sim-interval", "20"),
            ("sim-interval", "ms"),
            ("sim-interval", "-1s"),
            ("sim-interval", "1.5s"),
            ("sim-interval", "99999999999s"),
            ("sim-count", "+1"),
            ("sim-count", "4294967296"),
            ("sim-count", ""),
            ("sim-size", "65MiB"),
            ("sim-size", "1kb"),
            ("sim-status", "199"),
            ("sim-status", "600"),
            ("sim-bom", "yes"),
            ("sim-retry-after", "1\r\nx: y"),
            ("sim-stream", "x"),
        ];
        for (name, value) in bad {
            let fault = Behaviour::default().apply(name, value).unwrap_err();
            assert!(fault.starts_with(name), "{fault}");
        }
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("150us"), Ok(Duration::from_micros(150)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_size("3KiB"), Ok(3072));
        assert_eq!(parse_size("64MiB"), Ok(SIZE_MAX));
    }
}
