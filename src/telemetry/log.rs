//! The log: standard output, never blocking a worker; exactly one line per ended stream.
//!
//! Refuses: header values and content. Therefore the level applies to this crate alone and
//! dependencies stay at `warn`: below it `h2` writes whole header blocks. Invariant: a reader that
//! is too slow costs lines, which are counted, never time. Cost: a line is formatted on the
//! caller's thread and handed over a bounded queue to one writing thread ([`super::lines`]). The lines of
//! ended streams are as many as requests, and go there without `tracing` where they are JSON
//! ([`super::line`]).

use std::cell::RefCell;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::labels::Reason;
use super::line::Pen;
use super::lines::{self, Lines};
use crate::limits;

/// What the line of an ended stream says, and where it says to come from.
pub(super) const MESSAGE: &str = "stream ended";
pub(super) const TARGET: &str = module_path!();

/// The lines of the process, once its log was started.
static LINES: OnceLock<Lines> = OnceLock::new();

/// The same for lines of ended streams that pass `tracing` by: there if they are to be JSON.
static DIRECT: OnceLock<&Lines> = OnceLock::new();

/// Sets the level; there once the log of the process was started.
static LEVEL: OnceLock<Box<dyn Fn(LevelFilter) + Send + Sync>> = OnceLock::new();

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// Compact text for people.
    Text,
}

impl Format {
    fn is_json(self, terminal: bool) -> bool {
        match self {
            Format::Auto => !terminal,
            Format::Json => true,
            Format::Text => false,
        }
    }
}

/// Keeps the writing thread alive; dropping it writes what is still queued (for at most a second).
#[derive(Debug)]
#[must_use = "dropping the guard ends the log"]
pub struct LogGuard {
    _writer: Option<lines::Guard>,
}

/// Starts the log of this process on standard output. `level` is one of `off`, `error`, `warn`,
/// `info`, `debug`, `trace`; anything else means `info` and is said in the log. A second call
/// changes nothing.
pub fn init(level: &str, format: Format) -> LogGuard {
    let (filter, understood) = match level.parse::<LevelFilter>() {
        Ok(filter) => (filter, true),
        Err(_) => (LevelFilter::INFO, false),
    };
    let terminal = std::io::stdout().is_terminal();
    let (lines, guard) = lines::start(std::io::stdout()).expect("a process can start one thread");
    let (filter, handle) = reload::Layer::new(targets(filter));
    if layered(filter, format, terminal, lines.clone()).try_init().is_err() {
        return LogGuard { _writer: None };
    }
    let _ = LEVEL.set(Box::new(move |level| {
        // It fails only when there is no subscriber any more.
        let _ = handle.reload(targets(level));
    }));
    // Only the one call that installed its subscriber comes here.
    let lines = LINES.get_or_init(|| lines);
    if format.is_json(terminal) {
        let _ = DIRECT.set(lines);
    }
    if !understood {
        tracing::warn!(level, "unknown log level, using info");
    }
    LogGuard { _writer: Some(guard) }
}

/// Changes the level of the log that [`init`] started; without one nothing happens.
pub fn set_level(level: &str) {
    if let (Some(set), Ok(level)) = (LEVEL.get(), level.parse()) {
        set(level);
    }
}

/// Whether the level in force admits the lines of ended streams. `tracing` keeps the level of what
/// is installed in one atomic number; no dependency is let through below `warn`, so from `info` on
/// it is ours.
fn says_info() -> bool {
    LevelFilter::current() >= LevelFilter::INFO
}

/// Log lines lost so far: standard output was not read fast enough, or not at all.
pub fn dropped_lines() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

/// What is logged at `level`, of us and of others.
fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_PKG_NAME"), level)
}

/// A log at a level for good; `terminal` settles [`Format::Auto`] and colours.
#[cfg(test)]
pub(super) fn subscriber<W>(
    level: LevelFilter,
    format: Format,
    terminal: bool,
    writer: W,
) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    layered(targets(level), format, terminal, writer)
}

/// The one place that decides how it is logged.
fn layered<F, W>(
    filter: F,
    format: Format,
    terminal: bool,
    writer: W,
) -> impl tracing::Subscriber + Send + Sync
where
    F: Filter<Registry> + Send + Sync + 'static,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = if format.is_json(terminal) {
        layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        layer.compact().with_ansi(terminal).with_target(false).boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(filter))
}

/// What is known of a stream at its end.
#[derive(Clone, Debug)]
pub struct StreamEnd<'a> {
    /// The request id: the client's, or ours.
    pub id: &'a str,
    /// The upstream's `x-request-id`.
    pub upstream_request_id: Option<&'a str>,
    /// Trace id of the request's `traceparent`.
    pub trace_id: Option<u128>,
    /// Path of the route, as configured.
    pub route: &'a str,
    /// Name of the upstream.
    pub upstream: &'a str,
    /// Status sent to the client; 499 if it left before one was sent.
    pub status: u16,
    /// Why the stream ended.
    pub reason: Reason,
    /// Request in to first data event out; `None` without an event.
    pub ttfb: Option<Duration>,
    /// Request in to end.
    pub duration: Duration,
    /// Data events relayed.
    pub events: u64,
    /// Body bytes handed to the client.
    pub bytes: u64,
    /// Longest interval between two events; `None` with fewer than two.
    pub max_gap: Option<Duration>,
    /// Which attempt this was; the first is 1.
    pub attempt: u32,
}

/// Writes the one line that every ended stream gets.
pub fn stream_end(end: &StreamEnd<'_>) {
    match DIRECT.get() {
        Some(lines) if says_info() => directly(lines, end),
        Some(_) => {}
        None => by_tracing(end),
    }
}

fn directly(lines: &'static Lines, end: &StreamEnd<'_>) {
    thread_local! {
        static PEN: RefCell<Option<Pen<&'static Lines>>> = const { RefCell::new(None) };
    }
    let kept =
        PEN.try_with(|kept| kept.borrow_mut().get_or_insert_with(|| Pen::new(lines)).write(end));
    // A thread that ends has no pen any more. Handing over never fails: it drops and counts.
    let _ = kept.unwrap_or_else(|_| Pen::new(lines).write(end));
}

/// The same line by way of `tracing`: as text for people, or where [`init`] was not called.
pub(super) fn by_tracing(end: &StreamEnd<'_>) {
    tracing::info!(
        id = bounded(end.id),
        upstream_request_id = end.upstream_request_id.map(bounded),
        trace_id = end.trace_id.map(|id| format!("{id:032x}")),
        route = end.route,
        upstream = end.upstream,
        status = end.status,
        reason = end.reason.as_str(),
        ttfb_ms = end.ttfb.map(millis),
        duration_ms = millis(end.duration),
        events = end.events,
        bytes = end.bytes,
        max_gap_ms = end.max_gap.map(millis),
        attempt = end.attempt,
        "{MESSAGE}"
    );
}

/// Milliseconds with three decimals: microseconds are as fine as it means anything.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Ids come from outside: no longer than [`limits::REQUEST_ID`] bytes of them are logged.
pub(super) fn bounded(id: &str) -> &str {
    &id[..id.floor_char_boundary(limits::REQUEST_ID)]
}
