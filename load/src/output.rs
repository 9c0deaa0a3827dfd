//! What people see: a progress line on standard error, a table on standard output.
//!
//! Owns the screen. Refuses to write anywhere else. Cost: ten lines a second at most.
#![expect(clippy::print_stdout, reason = "the table is this program's product")]

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::control::Progress;
use crate::report::{Report, Spread, explain};

/// Redraw a terminal's line this often.
const REDRAW: Duration = Duration::from_millis(200);
/// Without a terminal: a line this often.
const REPEAT: Duration = Duration::from_secs(10);

/// The progress line.
pub(crate) struct Screen {
    quiet: bool,
    terminal: bool,
    streams: u64,
    began: Instant,
    drawn: Instant,
    chunks: u64,
}

impl Screen {
    pub(crate) fn new(quiet: bool, streams: u64) -> Self {
        let terminal = io::stderr().is_terminal();
        let now = Instant::now();
        Self { quiet, terminal, streams, began: now, drawn: now, chunks: 0 }
    }

    pub(crate) fn progress(&mut self, progress: &Progress) {
        let since = self.drawn.elapsed();
        if self.quiet || since < if self.terminal { REDRAW } else { REPEAT } {
            return;
        }
        let new = progress.chunks.saturating_sub(self.chunks) as u128;
        let line = format!(
            "{:6.1} s  {}/{} opened  {} live  {}/s  {} faults",
            self.began.elapsed().as_secs_f64(),
            progress.opened,
            self.streams,
            progress.live,
            new * 1000 / since.as_millis().max(1),
            progress.faults,
        );
        if self.terminal {
            eprint!("\r\x1b[K{line}")
        } else {
            eprintln!("{line}")
        }
        self.drawn = Instant::now();
        self.chunks = progress.chunks;
    }

    pub(crate) fn clear(&self) {
        if !self.quiet && self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// Something the user must know, whatever was asked for.
pub(crate) fn say(text: &str) {
    eprintln!("tidegate-load: {text}");
}

/// One line of a child's words to its parent.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("the parent has gone")
}

/// Writes the report as JSON, and as a table unless told to be quiet.
pub(crate) fn publish(report: &Report, json: Option<&Path>, quiet: bool) -> Result<()> {
    let to_stdout = json == Some(Path::new("-"));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(report)? + "\n";
        if to_stdout {
            print!("{text}");
        } else {
            std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if !quiet && !to_stdout {
        print!("{}", table(report));
    }
    for mark in &report.marked {
        say(&format!("MARKED {mark}: {}", explain(mark)));
    }
    if report.sequence.total() > 0 {
        say(&format!("SEQUENCE CHECK FAILED: {}", faults(report)));
    }
    Ok(())
}

fn faults(report: &Report) -> String {
    let f = &report.sequence;
    format!(
        "lost {}, duplicated {}, reordered {}, foreign {}, malformed {}, heartbeats inside events {}",
        f.lost, f.duplicated, f.reordered, f.foreign, f.malformed, f.heartbeats_inside
    )
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut put = |name: &str, what: String| {
        writeln!(text, "{name:<12}{what}").expect("writing to a String cannot fail");
    };
    put(
        "streams",
        pick(&report.streams, &["begun", "opened", "failed", "completed", "cut", "aborted"]),
    );
    put("live", pick(&report.streams, &["asked", "places", "live", "live_max", "stalled_cut"]));
    let failed = nonzero(&report.failed);
    if !failed.is_empty() {
        put("failed", format!("{failed}  statuses {}", report.statuses));
    }
    put("ends", nonzero(&report.ends));
    put("sequence", if report.sequence.total() == 0 { "ok".to_owned() } else { faults(report) });
    put("events", pick(&report.events, &["chunks", "plain", "body_bytes"]));
    put("heartbeats", pick(&report.heartbeats, &["bare_comments", "comment_frames", "pings"]));
    put(
        "rate",
        pick(
            &report.rate,
            &["window_s", "window_chunks", "chunks_per_s", "offered_per_s", "achieved"],
        ),
    );
    put("coalesced", pick(&report.coalesced, &["chunks", "share"]));
    let names = ["mean", "p50", "p90", "p99", "p99.9", "max"];
    put("", names.map(|name| format!("{name:>11}")).concat());
    let latency = &report.latency_us;
    for (name, spread) in [
        ("head", &latency.head),
        ("first event", &latency.first_event),
        ("relay", &latency.relay),
        ("interval", &latency.interval),
        ("jitter", &latency.jitter),
        ("max gap", &latency.max_gap),
        ("start delay", &latency.start_delay),
    ] {
        put(name, row(spread));
    }
    if !report.server.is_null() {
        server(&report.server, &mut put);
    }
    put("this tool", format!("{} cores", report.tool_cost["cores"]));
    text
}

fn server(server: &serde_json::Value, put: &mut impl FnMut(&str, String)) {
    let rss = |time: &str| format!("{time} {} kB", server[&format!("memory_{time}")]["rss_kb"]);
    put("resident", ["before", "at", "after"].map(rss).join("  "));
    let per_stream = &server["bytes_per_stream"];
    put("per stream", pick(per_stream, &["rss", "pss", "private", "machine_kernel"]) + " bytes");
    let per_chunk = &server["cpu_us_per_chunk"];
    put("cpu/chunk", pick(per_chunk, &["user", "system", "total"]) + " us");
    put("server", format!("{} cores", server["cores"]));
}

fn row(spread: &Spread) -> String {
    if spread.count == 0 {
        return format!("{:>11}", "-");
    }
    let exact = [spread.p50, spread.p90, spread.p99, spread.p99_9, spread.max];
    #[expect(clippy::cast_precision_loss, reason = "below an hour in microseconds")]
    let all = std::iter::once(spread.mean).chain(exact.into_iter().map(|us| us as f64));
    all.map(|us| format!("{:>11}", time(us))).collect()
}

fn time(us: f64) -> String {
    match us {
        ..1000.0 => format!("{us:.0} us"),
        ..1_000_000.0 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// The named fields of an object, in this order.
fn pick(value: &serde_json::Value, names: &[&str]) -> String {
    let texts: Vec<String> = names.iter().map(|name| format!("{name} {}", value[*name])).collect();
    texts.join("  ")
}

fn nonzero(list: &serde_json::Map<String, serde_json::Value>) -> String {
    let some = list.iter().filter(|(_, count)| count.as_u64() != Some(0));
    let texts: Vec<String> = some.map(|(name, count)| format!("{name} {count}")).collect();
    texts.join("  ")
}
