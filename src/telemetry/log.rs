//! The log: standard output, never blocking a worker; exactly one line per ended stream.
//!
//! Refuses: header values and content. Therefore the level applies to this crate alone and
//! dependencies stay at `warn`: below it `h2` writes whole header blocks. Invariant: a reader that
//! is too slow costs lines, which are counted, never time. Cost: a line is formatted on the
//! caller's thread and handed over a bounded queue to one writing thread.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::labels::Reason;
use crate::limits;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

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

/// Keeps the writing thread alive; dropping it writes what is still queued (for at most a second).
#[derive(Debug)]
#[must_use = "dropping the guard ends the log"]
pub struct LogGuard {
    _writer: Option<WorkerGuard>,
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
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(limits::LOG_LINES)
        .thread_name("log")
        .finish(std::io::stdout());
    let dropped = writer.error_counter();
    if subscriber(filter, format, terminal, writer).try_init().is_err() {
        return LogGuard { _writer: None };
    }
    // Only the one call that installed its subscriber comes here.
    let _ = DROPPED.set(dropped);
    if !understood {
        tracing::warn!(level, "unknown log level, using info");
    }
    LogGuard { _writer: Some(guard) }
}

/// Log lines dropped so far because standard output was not read fast enough.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// The one place that decides what is logged and how; `terminal` settles [`Format::Auto`] and
/// colours.
pub(super) fn subscriber<W>(
    level: LevelFilter,
    format: Format,
    terminal: bool,
    writer: W,
) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_PKG_NAME"), level);
    let json = match format {
        Format::Auto => !terminal,
        Format::Json => true,
        Format::Text => false,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = if json {
        layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        layer.compact().with_ansi(terminal).with_target(false).boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(targets))
}

/// What is known of a stream at its end.
#[derive(Clone, Debug)]
pub struct StreamEnd<'a> {
    /// The request id: the client's, or ours.
    pub id: &'a str,
    /// The upstream's `x-request-id`.
    pub upstream_request_id: Option<&'a str>,
    /// Trace id of the request's `traceparent`.
    pub trace_id: Option<&'a str>,
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
    tracing::info!(
        id = bounded(end.id),
        upstream_request_id = end.upstream_request_id.map(bounded),
        trace_id = end.trace_id.map(bounded),
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
        "stream ended"
    );
}

/// Milliseconds with three decimals: microseconds are as fine as it means anything.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Ids come from outside: no longer than [`limits::REQUEST_ID`] bytes of them are logged.
fn bounded(id: &str) -> &str {
    &id[..id.floor_char_boundary(limits::REQUEST_ID)]
}
