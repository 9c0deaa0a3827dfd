//! Every metric, declared once: name, type, labels, buckets, help (contract).
//!
//! Refuses: metrics that are not in this table; [`render`](super::render) matches on [`Name`], so a
//! name without series does not compile. Invariant: at most three labels, each from configuration
//! or from a closed list. `docs/METRICS.md` is the output of [`docs`]; a test keeps them equal.

use std::fmt::Write;

use super::labels::{
    BreakerState, ConnState, ConnectResult, Direction, DrainResult, Path, Proto, Reason, Rejection,
    ReloadResult, ResumeResult, RetryReason, Side, StatusClass, TokenKind, UsageUnknown,
};

/// Most labels one metric may have.
pub const LABELS_MAX: usize = 3;
/// Most finite buckets one histogram may have.
pub const BUCKETS_MAX: usize = 22;

/// Upper bounds of a histogram's finite buckets; `+Inf` follows them.
#[derive(Debug, PartialEq)]
pub struct Buckets {
    /// The bounds in seconds, ascending, as they are rendered.
    pub seconds: &'static [f64],
    ns: [u64; BUCKETS_MAX],
}

impl Buckets {
    /// Checks, at compile time, that the bounds ascend and fit.
    const fn new(seconds: &'static [f64]) -> Buckets {
        assert!(seconds.len() <= BUCKETS_MAX);
        let mut ns = [u64::MAX; BUCKETS_MAX];
        let mut i = 0;
        while i < seconds.len() {
            ns[i] = (seconds[i] * 1e9 + 0.5) as u64;
            assert!(ns[i] > 0 && (i == 0 || ns[i] > ns[i - 1]), "bounds must ascend");
            i += 1;
        }
        Buckets { seconds, ns }
    }

    /// The same bounds in nanoseconds.
    pub fn ns(&self) -> &[u64] {
        &self.ns[..self.seconds.len()]
    }
}

/// vLLM's `time_to_first_token_seconds`, so that dashboards look familiar.
pub static TTFB: Buckets = Buckets::new(&[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
]);
/// vLLM's inter-token latency, with three finer buckets before it.
pub static INTERVAL: Buckets = Buckets::new(&[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
]);
/// Our own time: 10 µs to 1 s.
pub static OWN_TIME: Buckets = Buckets::new(&[
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0,
]);
/// Whole streams: 0.1 s to one hour.
pub static DURATION: Buckets = Buckets::new(&[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0,
    3600.0,
]);
/// Waiting for an upstream connection or a slot: 1 ms to 10 s.
pub static WAIT: Buckets =
    Buckets::new(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only rises, until the process restarts.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts observations per bucket.
    Histogram(&'static Buckets),
}

impl Kind {
    /// The word of the exposition format's `# TYPE` line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Metric {
    /// Full name, `tidegate_…`.
    pub name: &'static str,
    /// Type, and the buckets of a histogram.
    pub kind: Kind,
    /// Label names in the order of the values that are added to it.
    pub labels: &'static [&'static str],
    /// Text of the `# HELP` line.
    pub help: &'static str,
}

impl Metric {
    const fn new(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Metric {
        assert!(labels.len() <= LABELS_MAX);
        Metric { name, kind, labels, help }
    }
}

macro_rules! table {
    ($($id:ident = $name:literal, $kind:expr, [$($label:literal),*], $help:literal;)+) => {
        /// Names the rows of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Name { $(#[doc = $help] $id,)+ }

        impl Name {
            /// Every name, in the order of the documentation.
            pub const ALL: &'static [Name] = &[$(Name::$id,)+];

            /// The row.
            pub fn metric(self) -> &'static Metric {
                match self {
                    $(Name::$id => {
                        static ROW: Metric = Metric::new($name, $kind, &[$($label),*], $help);
                        &ROW
                    })+
                }
            }
        }
    };
}

table! {
    ConnectionsLive = "tidegate_connections_live", Kind::Gauge, ["listener", "proto"],
        "Client connections that are open.";
    ConnectionsTotal = "tidegate_connections_total", Kind::Counter, ["listener", "proto"],
        "Client connections accepted.";
    StreamsLive = "tidegate_streams_live", Kind::Gauge, ["route", "upstream"],
        "Streams that are open.";
    RequestsTotal = "tidegate_requests_total", Kind::Counter, ["route", "status_class"],
        "Requests answered, by the status sent to the client.";
    StreamTtfb = "tidegate_stream_ttfb_seconds", Kind::Histogram(&TTFB), ["route", "upstream"],
        "From the request's arrival to the stream's first data event; heartbeats do not count.";
    ChunkInterval = "tidegate_chunk_interval_seconds", Kind::Histogram(&INTERVAL), ["upstream"],
        "Time between two events of a stream, per event.";
    StreamJitter = "tidegate_stream_jitter_seconds", Kind::Histogram(&INTERVAL), ["upstream"],
        "Standard deviation of a stream's event intervals, observed once at its end.";
    StreamMaxGap = "tidegate_stream_max_gap_seconds", Kind::Histogram(&INTERVAL), ["upstream"],
        "Longest event interval of a stream, observed once at its end.";
    ChunkRelay = "tidegate_chunk_relay_seconds", Kind::Histogram(&OWN_TIME), [],
        "The gateway's own time per chunk: upstream read to client write.";
    GatewayOverhead = "tidegate_gateway_overhead_seconds", Kind::Histogram(&OWN_TIME), [],
        "The gateway's own time per request: request read to upstream write.";
    StreamDuration = "tidegate_stream_duration_seconds", Kind::Histogram(&DURATION),
        ["route", "upstream"],
        "From the request's arrival to the end of its stream.";
    BytesTotal = "tidegate_bytes_total", Kind::Counter, ["direction", "side"],
        "Body bytes read (in) and written (out), per side.";
    EventsTotal = "tidegate_events_total", Kind::Counter, ["upstream"],
        "Data events relayed.";
    StreamsEnded = "tidegate_streams_ended_total", Kind::Counter, ["upstream", "reason"],
        "Streams that ended, each for exactly one reason.";
    Heartbeats = "tidegate_heartbeats_total", Kind::Counter, [],
        "Heartbeats written to quiet streams.";
    BacklogBytes = "tidegate_backlog_bytes", Kind::Gauge, [],
        "Bytes held for clients that lag.";
    MemoryBytes = "tidegate_memory_bytes", Kind::Gauge, [],
        "Bytes of limits.memory in use: request bodies, and what is held for clients that lag.";
    StalledStreams = "tidegate_stalled_streams", Kind::Gauge, [],
        "Streams whose client takes nothing at the moment.";
    StreamPaths = "tidegate_stream_paths_total", Kind::Counter, ["path"],
        "Event streams begun, by the way they reach their client.";
    Rejections = "tidegate_rejections_total", Kind::Counter, ["limit"],
        "Connections and requests refused, by the limit or rule that refused them.";
    QueueDepth = "tidegate_queue_depth", Kind::Gauge, ["upstream"],
        "Requests that wait for a slot.";
    QueueWait = "tidegate_queue_wait_seconds", Kind::Histogram(&WAIT), ["upstream"],
        "Time a request waited for a slot.";
    UpstreamConnections = "tidegate_upstream_connections", Kind::Gauge, ["upstream", "state"],
        "Upstream connections, by what they are doing.";
    PoolWaiting = "tidegate_pool_waiting", Kind::Gauge, ["upstream"],
        "Requests that wait for an upstream connection: to be opened, or, under pool_max, to come free.";
    PoolLeaks = "tidegate_pool_leaks_total", Kind::Counter, ["upstream"],
        "Upstream connections that were kept for longer than their streams lived: a bug, please report it.";
    UpstreamConnects = "tidegate_upstream_connects_total", Kind::Counter, ["upstream", "result"],
        "Attempts to open an upstream connection, by outcome.";
    UpstreamHandshake = "tidegate_upstream_handshake_seconds", Kind::Histogram(&WAIT), ["upstream"],
        "Time to open an upstream connection: TCP and TLS.";
    BreakerStates = "tidegate_breaker_state", Kind::Gauge, ["upstream", "state"],
        "1 for the state an upstream's circuit breaker is in, else 0.";
    Retries = "tidegate_retries_total", Kind::Counter, ["upstream", "reason"],
        "Further attempts, by what the attempt before them met.";
    Tokens = "tidegate_tokens_total", Kind::Counter, ["tenant", "model", "kind"],
        "Tokens used, as upstreams told of them.";
    UsageUnknowns = "tidegate_usage_unknown_total", Kind::Counter, ["tenant", "model", "reason"],
        "Answers of models of which nobody knows how many tokens they took.";
    UsageDrainsLive = "tidegate_usage_drains_live", Kind::Gauge, [],
        "Answers whose clients have left that are being read on to learn their usage.";
    UsageDrains = "tidegate_usage_drains_total", Kind::Counter, ["result"],
        "Answers whose clients left before their usage was known, where usage_drain is set.";
    Resumes = "tidegate_resumes_total", Kind::Counter, ["result"],
        "Requests to continue a stream, by outcome.";
    LogBytes = "tidegate_log_bytes", Kind::Gauge, [],
        "Bytes held in event logs of resumable streams.";
    ConfigReloads = "tidegate_config_reloads_total", Kind::Counter, ["result"],
        "Configuration reloads, by outcome.";
    LogLinesDropped = "tidegate_log_lines_dropped_total", Kind::Counter, [],
        "Log lines lost because standard output was not read fast enough, or not at all.";
    BuildInfo = "tidegate_build_info", Kind::Gauge, ["version", "profile", "arch"],
        "Always 1; its labels say what is running.";
}

/// What the `prometheus` crate reports about the process itself, with its help text shortened.
pub const PROCESS: &[(&str, &str, &str)] = &[
    ("process_cpu_seconds_total", "counter", "CPU time, user and system, in whole seconds."),
    ("process_max_fds", "gauge", "Limit of open files."),
    ("process_open_fds", "gauge", "Open files."),
    ("process_resident_memory_bytes", "gauge", "Resident memory."),
    ("process_start_time_seconds", "gauge", "Start time, seconds since the epoch."),
    ("process_threads", "gauge", "Threads."),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory."),
];

/// Every closed list as (metric or empty for all, label, its values); labels that are not here come
/// from configuration.
const CLOSED: &[(&str, &str, &[&str])] = &[
    ("", "proto", Proto::LABELS),
    ("", "status_class", StatusClass::LABELS),
    ("", "direction", Direction::LABELS),
    ("", "side", Side::LABELS),
    ("", "limit", Rejection::LABELS),
    ("", "path", Path::LABELS),
    ("tidegate_streams_ended_total", "reason", Reason::LABELS),
    ("tidegate_retries_total", "reason", RetryReason::LABELS),
    ("tidegate_usage_unknown_total", "reason", UsageUnknown::LABELS),
    ("", "kind", TokenKind::LABELS),
    ("tidegate_upstream_connections", "state", ConnState::LABELS),
    ("tidegate_breaker_state", "state", BreakerState::LABELS),
    ("tidegate_upstream_connects_total", "result", ConnectResult::LABELS),
    ("tidegate_resumes_total", "result", ResumeResult::LABELS),
    ("tidegate_usage_drains_total", "result", DrainResult::LABELS),
    ("tidegate_config_reloads_total", "result", ReloadResult::LABELS),
];

/// The values a label of a metric can have; `None` when they come from configuration or the build.
pub fn closed_values(metric: &str, label: &str) -> Option<&'static [&'static str]> {
    let fits =
        |(of, name, _): &&(&str, &str, _)| *name == label && (of.is_empty() || *of == metric);
    CLOSED.iter().find(fits).map(|(_, _, values)| *values)
}

/// The table as Markdown: `docs/METRICS.md`.
pub fn docs() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         Served on the admin listener at `/metrics` in the Prometheus text format. Every series\n\
         exists from the start, at zero. Label values come from the configuration or from the\n\
         closed lists below. A route (its path with its upstream) or an upstream that a reload\n\
         brings has its series from then on; one that a reload removes keeps them, so that streams\n\
         that still run there are counted, and goes on with them if it comes back. In the life of a\n\
         process there are at most 1,024 such routes and 256 upstreams. The same holds for tenants with\n\
         their models, of which there are at most 4,096 pairs; what finds no place among them is counted\n\
         under the tenant with the model `*`, or with `*` for both. Written from the table in\n\
         `src/telemetry/names.rs`; a test keeps the two equal.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    let mut row = |name: &str, kind: &str, labels: &[&str], help: &str| {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
    };
    for metric in Name::ALL.iter().map(|name| name.metric()) {
        row(metric.name, metric.kind.as_str(), metric.labels, metric.help);
    }
    for (name, kind, help) in PROCESS {
        row(name, kind, &[], help);
    }
    docs_labels(&mut out);
    docs_buckets(&mut out);
    out
}

fn docs_labels(out: &mut String) {
    out.push_str("\n## Label values\n\n| label | values |\n|---|---|\n");
    out.push_str("| `listener` | each address of `server.listen`, as configured |\n");
    out.push_str("| `route` | each `path` of `[[route]]` |\n");
    out.push_str("| `upstream` | each `name` of `[[upstream]]` |\n");
    out.push_str("| `tenant` | each `name` of `[[tenant]]`, empty where no key is asked for; `*`: see above |\n");
    out.push_str("| `model` | those of `usage.models` and of the tenant's `tokens_per_minute`; `*` is any other |\n");
    for (metric, label, values) in CLOSED {
        let of = if metric.is_empty() { String::new() } else { format!(" of `{metric}`") };
        let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        let _ = writeln!(out, "| `{label}`{of} | {} |", values.join(", "));
    }
    out.push_str("| `version`, `profile`, `arch` | those of the build |\n");
}

fn docs_buckets(out: &mut String) {
    out.push_str("\n## Histogram buckets\n\nUpper bounds in seconds; `+Inf` follows them.\n\n");
    out.push_str("| metric | bounds |\n|---|---|\n");
    for metric in Name::ALL.iter().map(|name| name.metric()) {
        if let Kind::Histogram(buckets) = metric.kind {
            let bounds: Vec<String> = buckets.seconds.iter().map(f64::to_string).collect();
            let _ = writeln!(out, "| `{}` | {} |", metric.name, bounds.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn metrics_md_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
        if std::env::var_os("TIDEGATE_WRITE_DOCS").is_some() {
            std::fs::write(path, docs()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == docs(),
            "docs/METRICS.md is stale: run this test with TIDEGATE_WRITE_DOCS=1 and commit it"
        );
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        let mut seen = BTreeSet::new();
        for metric in Name::ALL.iter().map(|name| name.metric()) {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("tidegate_"), "{}", metric.name);
            assert!(!metric.help.is_empty() && metric.help.ends_with('.'), "{}", metric.name);
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
            if let Kind::Histogram(_) = metric.kind {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
            }
        }
    }

    #[test]
    fn every_label_is_configured_or_closed() {
        let open =
            ["listener", "route", "upstream", "tenant", "model", "version", "profile", "arch"];
        for metric in Name::ALL.iter().map(|name| name.metric()) {
            for label in metric.labels {
                let closed = closed_values(metric.name, label).is_some();
                assert!(closed != open.contains(label), "{} {label}", metric.name);
            }
        }
    }

    #[test]
    fn bounds_keep_their_values_in_nanoseconds() {
        assert_eq!(OWN_TIME.ns()[0], 10_000);
        assert_eq!(OWN_TIME.ns().last(), Some(&1_000_000_000));
        assert_eq!(INTERVAL.ns()[1], 2_500_000);
        assert_eq!(TTFB.ns().len(), 22);
        assert_eq!(TTFB.ns()[21], 2_560_000_000_000);
        assert_eq!(DURATION.ns().last(), Some(&3_600_000_000_000));
        assert_eq!(WAIT.ns().last(), Some(&10_000_000_000));
    }
}
