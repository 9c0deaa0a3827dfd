//! The report: what a run found, in a form that scripts can rely on.
//!
//! Owns the JSON schema and the marks that say when figures do not mean what they seem to. Refuses
//! to hide zeros: every name of a closed list is there. Invariant: within one `schema` number,
//! names are only added.

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::args::Args;
use crate::conduct::{Measured, Server};
use crate::plan::Plan;
use crate::sequence::Faults;
use crate::tally::{End, Failure, Tally, Times};

/// Number of the schema described in load/README.md.
const SCHEMA: u32 = 1;
/// Above this share of chunks that shared a read, latencies are those of bursts.
const COALESCED_MAX: f64 = 0.01;
/// Below this share of the offered rate, something was the bottleneck.
const ACHIEVED_MIN: f64 = 0.97;
/// Above this share of its threads' time, the tool itself may be the bottleneck.
const OWN_CPU_MAX: f64 = 0.85;

/// A distribution, microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) max: u64,
}

/// The report of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) tool: &'static str,
    pub(crate) version: &'static str,
    pub(crate) schema: u32,
    /// Seconds since 1970.
    pub(crate) started_at: u64,
    pub(crate) options: Args,
    pub(crate) seed: u32,
    /// Why figures are to be read with care; empty in a good run.
    pub(crate) marked: Vec<&'static str>,
    pub(crate) streams: Value,
    pub(crate) failed: Map<String, Value>,
    pub(crate) statuses: Value,
    pub(crate) ends: Map<String, Value>,
    pub(crate) sequence: Faults,
    pub(crate) events: Value,
    pub(crate) heartbeats: Value,
    pub(crate) rate: Value,
    pub(crate) coalesced: Value,
    pub(crate) latency_us: Latency,
    pub(crate) server: Value,
    pub(crate) tool_cost: Value,
}

/// All distributions, microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    /// Intended start to response head.
    pub(crate) head: Spread,
    /// Intended start to first event with data.
    pub(crate) first_event: Spread,
    /// Simulator's stamp to our read.
    pub(crate) relay: Spread,
    /// Event to event of a stream.
    pub(crate) interval: Spread,
    /// Standard deviation of a stream's intervals.
    pub(crate) jitter: Spread,
    /// Longest interval of a stream, the one that was open at its end included.
    pub(crate) max_gap: Spread,
    /// Intended start to actual start.
    pub(crate) start_delay: Spread,
}

impl Spread {
    fn of(times: &Times) -> Self {
        let histogram: &Histogram<u64> = times.get();
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            mean: round(histogram.mean(), 10.0),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
        }
    }
}

fn round(value: f64, per_one: f64) -> f64 {
    (value * per_one).round() / per_one
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Report {
    pub(crate) fn new(plan: &Plan, measured: &Measured) -> Self {
        let tally = &measured.tally;
        // Shorter than this, the phase of the first interval decides, not the rate.
        let judged =
            |interval| tally.live_ns >= tally.opened.saturating_mul(interval).saturating_mul(4);
        let achieved = plan.interval_ns.filter(|&interval| judged(interval)).and_then(|interval| {
            ratio(tally.measured_chunks.saturating_mul(interval), tally.live_ns)
        });
        let coalesced = ratio(tally.coalesced, tally.measured_chunks);
        Self {
            tool: "tidegate-load",
            version: env!("CARGO_PKG_VERSION"),
            schema: SCHEMA,
            started_at: measured.started_at,
            options: plan.args.clone(),
            seed: plan.seed,
            marked: marks(plan, measured, coalesced, achieved),
            streams: streams(plan, measured),
            failed: list(Failure::ALL, |f| (f.name(), tally.failures.get(&f).copied())),
            statuses: json!(tally.statuses),
            ends: list(End::ALL, |end| (end.name(), tally.ends.get(&end).copied())),
            sequence: tally.faults,
            events: json!({
                "chunks": tally.chunks,
                "plain": tally.plain_events,
                "body_bytes": tally.body_bytes,
                "faulty_streams": tally.faulty_streams,
                "future_stamps": tally.future_stamps,
            }),
            heartbeats: json!({
                "bare_comments": tally.bare_comments,
                "comment_frames": tally.comment_frames,
                "pings": tally.pings,
            }),
            rate: rate(measured, achieved),
            coalesced: json!({ "chunks": tally.coalesced, "share": coalesced }),
            latency_us: Latency {
                head: Spread::of(&tally.head),
                first_event: Spread::of(&tally.first_event),
                relay: Spread::of(&tally.relay),
                interval: Spread::of(&tally.interval),
                jitter: Spread::of(&tally.jitter),
                max_gap: Spread::of(&tally.max_gap),
                start_delay: Spread::of(&tally.start_delay),
            },
            server: measured.server.as_ref().map_or(Value::Null, |s| server(s, measured)),
            tool_cost: json!({
                "cpu": measured.own_cpu,
                "cores": round(own_cores(measured), 1000.0),
                "memory": measured.own_memory,
            }),
        }
    }

    /// 2 if the sequence check failed, 1 if no stream was opened, else 0.
    pub(crate) fn exit_code(&self) -> u8 {
        match (self.sequence.total(), self.streams["opened"].as_u64()) {
            (1.., _) => 2,
            (0, Some(1..)) => 0,
            _ => 1,
        }
    }
}

fn list<T: Copy>(all: &[T], of: impl Fn(T) -> (&'static str, Option<u64>)) -> Map<String, Value> {
    let count = |&item: &T| {
        let (name, count) = of(item);
        (name.to_owned(), json!(count.unwrap_or(0)))
    };
    all.iter().map(count).collect()
}

fn streams(plan: &Plan, measured: &Measured) -> Value {
    let tally: &Tally = &measured.tally;
    json!({
        "asked": plan.args.streams,
        "places": plan.streams,
        "begun": tally.attempts,
        "opened": tally.opened,
        "failed": tally.failed(),
        "unfinished": tally.unfinished(),
        "completed": tally.ended(End::Done),
        "cut": tally.cut(),
        "aborted": tally.ended(End::Aborted),
        "live": measured.live,
        "live_max": measured.live_max,
        "stalled_cut": tally.stalled_cut,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn rate(measured: &Measured, achieved: Option<f64>) -> Value {
    let seconds = measured.window.as_secs_f64();
    let per_second = measured.tally.window_chunks as f64 / seconds.max(1e-9);
    let full = measured.tally.measured_chunks as f64 / seconds.max(1e-9);
    json!({
        "window_s": round(seconds, 1000.0),
        "window_chunks": measured.tally.window_chunks,
        "chunks_per_s": round(per_second, 10.0),
        "offered_per_s": achieved.filter(|&share| share > 0.0).map(|share| round(full / share, 10.0)),
        "achieved": achieved.map(|share| round(share, 10_000.0)),
    })
}

#[expect(clippy::cast_precision_loss, reason = "kibibytes")]
fn server(server: &Server, measured: &Measured) -> Value {
    let chunks = measured.tally.window_chunks;
    let per_chunk =
        |seconds: f64| (chunks > 0).then(|| round(seconds * 1e6 / chunks as f64, 100.0));
    let live = measured.live;
    let per_stream = |at: u64, before: u64| {
        (live > 0).then(|| round((at as f64 - before as f64) * 1024.0 / live as f64, 1.0))
    };
    let (at, before) = (&server.at, &server.before);
    json!({
        "memory_before": before,
        "memory_at": at,
        "memory_after": server.after,
        "bytes_per_stream": {
            "rss": per_stream(at.rss_kb, before.rss_kb),
            "pss": per_stream(at.pss_kb, before.pss_kb),
            "private": per_stream(at.private_kb, before.private_kb),
            "machine_kernel": per_stream(
                at.machine_slab_kb + at.machine_tcp_kb,
                before.machine_slab_kb + before.machine_tcp_kb,
            ),
        },
        "cpu": server.cpu,
        "cores": round(server.cpu.total_s() / measured.window.as_secs_f64().max(1e-9), 1000.0),
        "cpu_us_per_chunk": {
            "user": per_chunk(server.cpu.user_s),
            "system": per_chunk(server.cpu.system_s),
            "total": per_chunk(server.cpu.total_s()),
        },
    })
}

fn own_cores(measured: &Measured) -> f64 {
    measured.own_cpu.total_s() / measured.window.as_secs_f64().max(1e-9)
}

/// What is wrong with the run as a measurement.
#[expect(clippy::cast_precision_loss, reason = "at most 1024 workers")]
fn marks(
    plan: &Plan,
    measured: &Measured,
    coalesced: Option<f64>,
    achieved: Option<f64>,
) -> Vec<&'static str> {
    let tally = &measured.tally;
    // A window shorter than this says nothing about CPU shares: they come in 10 ms ticks.
    let long_enough = measured.window.as_millis() >= 1000;
    let marks = [
        ("sequence", tally.faults.total() > 0),
        ("coalesced", coalesced.is_some_and(|share| share > COALESCED_MAX)),
        ("rate", achieved.is_some_and(|share| share < ACHIEVED_MIN)),
        ("failures", tally.failed() > 0),
        ("fewer_streams", plan.streams < plan.args.streams),
        ("ended_early", measured.ended_early),
        ("unsettled", measured.unsettled > 0),
        ("clock", tally.future_stamps > 0),
        ("tool_busy", long_enough && own_cores(measured) > OWN_CPU_MAX * plan.workers() as f64),
    ];
    marks.into_iter().filter(|(_, is)| *is).map(|(mark, _)| mark).collect()
}

/// What a mark means, for people.
pub(crate) fn explain(mark: &str) -> &'static str {
    match mark {
        "sequence" => "events were lost, duplicated, reordered, malformed or another stream's",
        "coalesced" => "more than 1 % of the chunks shared a read with another of their stream",
        "rate" => "less than 97 % of the offered rate arrived",
        "failures" => "not every stream could be opened",
        "fewer_streams" => "fewer streams than asked for: open files ran out",
        "ended_early" => "all streams ended before the time was over",
        "unsettled" => "the window began though some streams had neither begun nor failed",
        "clock" => "stamps lie in the future: not one machine's clock, or it was set",
        "tool_busy" => "the tool itself was near the limit of its threads",
        _ => "",
    }
}
