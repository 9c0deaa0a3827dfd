//! The rendered text through a strict parser, the log line, and what an update costs.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::cells::{
    BreakerState, Cells, ConnState, ConnectResult, Direction, DrainResult, Histogram, Proto,
    Rejection, ReloadResult, ResumeResult, RetryReason, Shape, Side, StatusClass, TokenKind,
    UsageUnknown,
};
use super::log::{Format, StreamEnd, stream_end};
use super::names::{self, Kind, Name, closed_values};
use super::{Metrics, Reason};

type Labels = BTreeMap<String, String>;

/// One metric family as it was rendered.
#[derive(Default)]
struct Parsed {
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<(String, Labels, f64)>,
}

/// A strict reader of the text format 0.0.4: panics on whatever a scraper might stumble over.
fn parse(text: &str) -> BTreeMap<String, Parsed> {
    assert!(text.ends_with('\n'));
    let mut families: BTreeMap<String, Parsed> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        assert!(!line.is_empty(), "blank line");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help text");
            assert!(!families.contains_key(name), "{name} comes twice");
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = Some(help.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("type");
            assert_eq!(name, current, "TYPE must follow its HELP");
            let family = families.get_mut(name).unwrap();
            assert!(family.samples.is_empty() && family.kind.is_none(), "{name}: TYPE too late");
            family.kind = Some(kind.to_owned());
        } else {
            let sample = parse_sample(line);
            assert!(seen.insert((sample.0.clone(), sample.1.clone())), "duplicate: {line}");
            let family = families.get_mut(&current).expect("a sample before any HELP");
            let suffix = sample.0.strip_prefix(&current).expect("a sample of another family");
            match family.kind.as_deref() {
                Some("histogram") => assert!(["_bucket", "_sum", "_count"].contains(&suffix)),
                Some(_) => assert_eq!(suffix, ""),
                None => panic!("{line}: no TYPE before it"),
            }
            family.samples.push(sample);
        }
    }
    families
}

fn parse_sample(line: &str) -> (String, Labels, f64) {
    let (head, value) = line.rsplit_once(' ').expect("a value");
    let value: f64 = value.parse().expect("a number");
    let Some((name, rest)) = head.split_once('{') else {
        return (head.to_owned(), Labels::new(), value);
    };
    let mut rest = rest.strip_suffix('}').expect("a closing brace");
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").expect("a quoted value");
        let mut text = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at + 1,
                (_, '\\') => text.push(match chars.next().expect("an escaped character").1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => text.push(other),
            }
        };
        assert!(labels.insert(label.to_owned(), text).is_none(), "label twice: {line}");
        rest = after[end..].strip_prefix(',').unwrap_or(&after[end..]);
    }
    (name.to_owned(), labels, value)
}

/// The value of the one sample with this name and these labels.
fn value(families: &BTreeMap<String, Parsed>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let want: Labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let mut hits = families
        .values()
        .flat_map(|family| &family.samples)
        .filter(|(n, l, _)| n == name && *l == want);
    let hit = hits.next().unwrap_or_else(|| panic!("no {name} {labels:?}"));
    hit.2
}

fn shape() -> Shape {
    Shape {
        listeners: vec!["127.0.0.1:8080".into(), "[::1]:8443".into()],
        upstreams: vec!["main".into(), "spare \"x\"\\".into()],
        routes: vec![("/v1/{*rest}".into(), 0), ("/v2/{*rest}".into(), 1)],
        usage: [("", "*"), ("", "m"), ("a", "*"), ("a", "m")]
            .map(|(t, m)| (t.into(), m.into()))
            .into(),
    }
}

fn two_workers() -> (Vec<Arc<Cells>>, Metrics) {
    let workers: Vec<_> = (0..2).map(|_| Arc::new(Cells::new(&shape()))).collect();
    let metrics = Metrics::new(shape(), workers.clone());
    (workers, metrics)
}

/// Writes a different number into every cell of a worker.
fn fill(cells: &Cells) {
    for listener in 0..2 {
        for proto in Proto::ALL {
            cells.connections(listener, *proto).live.add(1);
            cells.connections(listener, *proto).total.add(2);
        }
    }
    for route in cells.routes.iter() {
        route.streams_live.add(3);
        route.ttfb.observe(Duration::from_millis(300));
        route.duration.observe(Duration::from_secs(4000));
        StatusClass::ALL.iter().for_each(|class| route.requests(*class).add(4));
    }
    for upstream in cells.upstreams.iter() {
        for histogram in
            [&upstream.chunk_interval, &upstream.jitter, &upstream.max_gap, &upstream.handshake]
        {
            histogram.observe(Duration::from_millis(25));
        }
        upstream.queue_wait.observe(Duration::from_micros(10));
        upstream.events.add(5);
        upstream.queue_depth.add(6);
        Reason::ALL.iter().for_each(|reason| upstream.ended(*reason).add(7));
        ConnState::ALL.iter().for_each(|state| upstream.connections(*state).add(8));
        ConnectResult::ALL.iter().for_each(|result| upstream.connects(*result).add(9));
        RetryReason::ALL.iter().for_each(|reason| upstream.retries(*reason).add(10));
    }
    for slot in 0..4 {
        TokenKind::ALL.iter().for_each(|kind| cells.usage(slot).tokens(*kind).add(18));
        UsageUnknown::ALL.iter().for_each(|why| cells.usage(slot).unknown(*why).add(19));
    }
    for direction in Direction::ALL {
        Side::ALL.iter().for_each(|side| cells.bytes(*direction, *side).add(11));
    }
    cells.heartbeats.add(12);
    cells.backlog_bytes.add(13);
    cells.stalled_streams.add(14);
    cells.usage_drains.add(20);
    DrainResult::ALL.iter().for_each(|result| cells.drained(*result).add(21));
    cells.log_bytes.add(15);
    cells.chunk_relay.observe(Duration::from_micros(15));
    cells.overhead.observe(Duration::from_micros(150));
    Rejection::ALL.iter().for_each(|limit| cells.rejections(*limit).add(16));
    ResumeResult::ALL.iter().for_each(|result| cells.resumes(*result).add(17));
}

/// How many series (histograms count as one) a metric must have for [`shape`].
fn series_expected(name: &str, labels: &[&str]) -> usize {
    if labels.contains(&"version") {
        return 1;
    }
    // Each route has one upstream, so the upstream adds no series beside it.
    let labels = if labels == ["route", "upstream"] { &labels[..1] } else { labels };
    labels.iter().map(|label| closed_values(name, label).map_or(2, <[_]>::len)).product()
}

#[test]
fn every_series_is_there_from_the_start() {
    let (_, metrics) = two_workers();
    let families = parse(&metrics.render());
    for metric in Name::ALL.iter().map(|name| name.metric()) {
        let family = families.get(metric.name).unwrap_or_else(|| panic!("no {}", metric.name));
        assert_eq!(family.help.as_deref(), Some(metric.help));
        assert_eq!(family.kind.as_deref(), Some(metric.kind.as_str()));
        let per_series = match metric.kind {
            Kind::Histogram(buckets) => buckets.seconds.len() + 3,
            _ => 1,
        };
        let expected = per_series * series_expected(metric.name, metric.labels);
        assert_eq!(family.samples.len(), expected, "{}", metric.name);
        for (_, labels, value) in &family.samples {
            let names: BTreeSet<_> = labels.keys().map(String::as_str).collect();
            let mut want: BTreeSet<_> = metric.labels.iter().copied().collect();
            if names.contains("le") {
                want.insert("le");
            }
            assert_eq!(names, want, "{}", metric.name);
            for (label, text) in labels.iter().filter(|(label, _)| *label != "le") {
                let closed = closed_values(metric.name, label);
                assert!(closed.is_none_or(|all| all.contains(&text.as_str())), "{label}={text}");
            }
            let one = metric.name == "tidegate_build_info"
                || labels.get("state").is_some_and(|state| state == "closed");
            assert_eq!(*value, f64::from(u8::from(one)), "{} {labels:?}", metric.name);
        }
    }
    let known: BTreeSet<&str> = Name::ALL
        .iter()
        .map(|name| name.metric().name)
        .chain(names::PROCESS.iter().map(|row| row.0))
        .collect();
    let rendered: BTreeSet<&str> = families.keys().map(String::as_str).collect();
    assert_eq!(rendered, known, "the documentation must list what is rendered, and no more");
}

#[test]
fn the_contract_names_are_there() {
    let (_, metrics) = two_workers();
    let families = parse(&metrics.render());
    for name in
        "connections_live connections_total streams_live requests_total stream_ttfb_seconds \
        chunk_interval_seconds stream_jitter_seconds stream_max_gap_seconds chunk_relay_seconds \
        gateway_overhead_seconds stream_duration_seconds bytes_total events_total \
        streams_ended_total heartbeats_total backlog_bytes stalled_streams rejections_total \
        queue_depth queue_wait_seconds upstream_connections upstream_connects_total \
        upstream_handshake_seconds breaker_state retries_total resumes_total log_bytes \
        config_reloads_total log_lines_dropped_total build_info tokens_total usage_unknown_total"
            .split_whitespace()
    {
        assert!(families.contains_key(&format!("tidegate_{name}")), "{name}");
    }
}

#[test]
fn workers_are_added_up() {
    let (workers, metrics) = two_workers();
    workers.iter().for_each(|cells| fill(cells));
    workers[1].heartbeats.add(100);
    let families = parse(&metrics.render());
    let get =
        |name: &str, labels: &[(&str, &str)]| value(&families, &format!("tidegate_{name}"), labels);
    let main = ("upstream", "main");
    let spare = ("upstream", "spare \"x\"\\");
    assert_eq!(get("connections_live", &[("listener", "[::1]:8443"), ("proto", "h2")]), 2.0);
    assert_eq!(get("connections_total", &[("listener", "127.0.0.1:8080"), ("proto", "h1")]), 4.0);
    assert_eq!(get("streams_live", &[("route", "/v1/{*rest}"), main]), 6.0);
    assert_eq!(get("requests_total", &[("route", "/v2/{*rest}"), ("status_class", "5xx")]), 8.0);
    assert_eq!(get("events_total", &[spare]), 10.0);
    assert_eq!(get("queue_depth", &[main]), 12.0);
    assert_eq!(get("streams_ended_total", &[spare, ("reason", "upstream_truncated")]), 14.0);
    assert_eq!(get("upstream_connections", &[main, ("state", "idle")]), 16.0);
    assert_eq!(get("upstream_connects_total", &[main, ("result", "tls")]), 18.0);
    assert_eq!(get("retries_total", &[main, ("reason", "unsent")]), 20.0);
    assert_eq!(get("bytes_total", &[("direction", "out"), ("side", "client")]), 22.0);
    assert_eq!(get("heartbeats_total", &[]), 124.0);
    assert_eq!(get("backlog_bytes", &[]), 26.0);
    assert_eq!(get("stalled_streams", &[]), 28.0);
    assert_eq!(get("usage_drains_live", &[]), 40.0);
    assert_eq!(get("usage_drains_total", &[("result", "no_room")]), 42.0);
    assert_eq!(get("log_bytes", &[]), 30.0);
    assert_eq!(get("rejections_total", &[("limit", "no_route")]), 32.0);
    assert_eq!(get("resumes_total", &[("result", "gone")]), 34.0);
    let whose = [("tenant", "a"), ("model", "m")];
    assert_eq!(get("tokens_total", &[whose[0], whose[1], ("kind", "output")]), 36.0);
    assert_eq!(get("usage_unknown_total", &[whose[0], whose[1], ("reason", "failed")]), 38.0);
    let duration = [("route", "/v1/{*rest}"), main];
    assert_eq!(get("stream_duration_seconds_count", &duration), 2.0);
    assert_eq!(get("stream_duration_seconds_sum", &duration), 8000.0);
    let top = [duration[0], main, ("le", "3600")];
    assert_eq!(get("stream_duration_seconds_bucket", &top), 0.0);
    assert_eq!(get("chunk_interval_seconds_bucket", &[main, ("le", "0.01")]), 0.0);
    assert_eq!(get("chunk_interval_seconds_bucket", &[main, ("le", "0.025")]), 2.0);
    assert_eq!(get("chunk_relay_seconds_bucket", &[("le", "0.00001")]), 0.0);
    assert_eq!(get("chunk_relay_seconds_bucket", &[("le", "0.000025")]), 2.0);
    assert_eq!(get("gateway_overhead_seconds_count", &[]), 2.0);
}

#[test]
fn histograms_are_cumulative_and_end_at_their_count() {
    let (workers, metrics) = two_workers();
    workers.iter().for_each(|cells| fill(cells));
    for (name, family) in parse(&metrics.render()) {
        if family.kind.as_deref() != Some("histogram") {
            continue;
        }
        let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        let mut counts: BTreeMap<Labels, f64> = BTreeMap::new();
        for (sample, mut labels, value) in family.samples {
            if sample.ends_with("_bucket") {
                let le = labels.remove("le").unwrap().parse().unwrap();
                series.entry(labels).or_default().push((le, value));
            } else if sample.ends_with("_count") {
                counts.insert(labels, value);
            }
        }
        assert_eq!(series.len(), counts.len(), "{name}");
        for (labels, buckets) in series {
            let ascends = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
            assert!(buckets.windows(2).all(ascends), "{name} {labels:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, counts[&labels])), "{name}");
            assert_eq!(counts[&labels], 2.0, "{name}: filled by both workers");
        }
    }
}

#[test]
fn equal_label_sets_are_one_series() {
    let mut shape = shape();
    shape.routes[1].0 = shape.routes[0].0.clone();
    shape.listeners = vec!["127.0.0.1:0".into(); 2];
    let cells = Arc::new(Cells::new(&shape));
    fill(&cells);
    let families = parse(&Metrics::new(shape, vec![cells]).render());
    let labels = [("route", "/v1/{*rest}"), ("status_class", "2xx")];
    assert_eq!(value(&families, "tidegate_requests_total", &labels), 8.0);
    let labels = [("listener", "127.0.0.1:0"), ("proto", "h1")];
    assert_eq!(value(&families, "tidegate_connections_live", &labels), 2.0);
}

#[test]
fn a_reload_adds_series_and_takes_none_away() {
    let (workers, metrics) = two_workers();
    workers[1].upstream(0).events.add(5);
    workers[0].route(0).streams_live.add(1);
    let slots =
        metrics.join(&["new", "spare \"x\"\\"], &[("/v1/{*rest}", &[0]), ("/v2/{*rest}", &[1])]);
    let slots = slots.unwrap();
    assert_eq!((&slots.upstreams[..], &slots.routes[..]), (&[2, 1][..], &[vec![2], vec![1]][..]));
    workers[0].upstream(2).events.add(7);
    workers[1].route(2).streams_live.add(3);
    let families = parse(&metrics.render());
    let events = |upstream| value(&families, "tidegate_events_total", &[("upstream", upstream)]);
    assert_eq!((events("main"), events("new")), (5.0, 7.0), "what is gone is still counted");
    let live = |upstream| {
        let labels = [("route", "/v1/{*rest}"), ("upstream", upstream)];
        value(&families, "tidegate_streams_live", &labels)
    };
    assert_eq!((live("main"), live("new")), (1.0, 3.0));
    let labels = [("upstream", "new"), ("state", "closed")];
    assert_eq!(value(&families, "tidegate_breaker_state", &labels), 1.0);

    let one = |model| std::iter::once(("a", BTreeSet::from([model])));
    let slots = metrics.join_usage(one("new"));
    workers[1].usage(slots[0].of(Some("new"))).tokens(TokenKind::Input).add(9);
    assert_eq!(metrics.join_usage(one("m"))[0].of(Some("m")), 3, "it was there before");
    let families = parse(&metrics.render());
    let labels = [("tenant", "a"), ("model", "new"), ("kind", "input")];
    assert_eq!(value(&families, "tidegate_tokens_total", &labels), 9.0);

    let series = |metrics: &Metrics| metrics.render().lines().count();
    let before = series(&metrics);
    for _ in 0..100 {
        metrics.join(&["main"], &[("/v1/{*rest}", &[0])]).unwrap();
        metrics.join(&["new", "main"], &[("/v1/{*rest}", &[0])]).unwrap();
    }
    assert_eq!(series(&metrics), before, "names that were there before add nothing");
}

#[test]
fn what_belongs_to_the_process_is_not_multiplied() {
    let (_, metrics) = two_workers();
    metrics.process().reloaded(ReloadResult::Refused);
    metrics.process().breaker(1, BreakerState::HalfOpen);
    metrics.process().breaker(9, BreakerState::Open);
    let families = parse(&metrics.render());
    let get = |name: &str, labels: &[(&str, &str)]| value(&families, name, labels);
    assert_eq!(get("tidegate_config_reloads_total", &[("result", "refused")]), 1.0);
    assert_eq!(get("tidegate_config_reloads_total", &[("result", "ok")]), 0.0);
    for (upstream, now) in [("main", "closed"), ("spare \"x\"\\", "half_open")] {
        for state in BreakerState::LABELS {
            let labels = [("upstream", upstream), ("state", state)];
            let expected = f64::from(u8::from(*state == now));
            assert_eq!(get("tidegate_breaker_state", &labels), expected, "{labels:?}");
        }
    }
    assert!(get("process_resident_memory_bytes", &[]) > 0.0);
    assert!(get("process_open_fds", &[]) > 0.0);
}

#[test]
fn without_workers_the_series_are_there() {
    let families = parse(&Metrics::new(shape(), Vec::new()).render());
    assert_eq!(value(&families, "tidegate_heartbeats_total", &[]), 0.0);
    // Nothing configured: what has no configured label remains, and nothing fails.
    let bare = parse(&Metrics::new(Shape::default(), Vec::new()).render());
    assert!(bare.contains_key("tidegate_rejections_total"));
    assert!(!bare.contains_key("tidegate_events_total"));
}

/// A log writer that keeps everything in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `log` writes at this level and in this form.
pub(super) fn logged(level: &str, format: Format, log: impl FnOnce()) -> String {
    let memory = Memory::default();
    let writer = memory.clone();
    let level = level.parse().unwrap();
    let subscriber = super::log::subscriber(level, format, false, move || writer.clone());
    tracing::subscriber::with_default(subscriber, log);
    let bytes = memory.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn end() -> StreamEnd<'static> {
    StreamEnd {
        id: "01hf3x9v2k",
        upstream_request_id: Some("req_abc"),
        trace_id: Some(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        route: "/v1/{*rest}",
        upstream: "main",
        status: 200,
        reason: Reason::ClientStalled,
        ttfb: Some(Duration::from_micros(123_456)),
        duration: Duration::from_millis(61_000),
        events: 512,
        bytes: 131_072,
        max_gap: Some(Duration::from_nanos(1_500_499)),
        attempt: 2,
    }
}

#[test]
fn a_stream_end_is_one_flat_json_line() {
    let text = logged("info", Format::Auto, || stream_end(&end()));
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (field, expected) in [
        ("level", serde_json::json!("INFO")),
        ("message", "stream ended".into()),
        ("id", "01hf3x9v2k".into()),
        ("upstream_request_id", "req_abc".into()),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".into()),
        ("route", "/v1/{*rest}".into()),
        ("upstream", "main".into()),
        ("status", 200.into()),
        ("reason", "client_stalled".into()),
        ("ttfb_ms", 123.456.into()),
        ("duration_ms", 61_000.0.into()),
        ("events", 512.into()),
        ("bytes", 131_072.into()),
        ("max_gap_ms", 1.5.into()),
        ("attempt", 2.into()),
    ] {
        assert_eq!(line[field], expected, "{field}");
    }
    assert!(line["timestamp"].is_string());
}

#[test]
fn unknown_fields_of_a_stream_end_are_left_out() {
    let end =
        StreamEnd { upstream_request_id: None, trace_id: None, ttfb: None, max_gap: None, ..end() };
    let text = logged("info", Format::Json, || stream_end(&end));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    for field in ["upstream_request_id", "trace_id", "ttfb_ms", "max_gap_ms"] {
        assert_eq!(line.get(field), None);
    }
}

#[test]
fn ids_cannot_forge_lines_or_fill_the_log() {
    let long = "é\"\n{".repeat(100);
    let end = StreamEnd { id: &long, upstream_request_id: Some(&long), ..end() };
    for format in [Format::Json, Format::Text] {
        let text = logged("info", format, || stream_end(&end));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.len() < 1200, "{} bytes", text.len());
    }
    let text = logged("info", Format::Json, || stream_end(&end));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(long.starts_with(line["id"].as_str().unwrap()));
}

#[test]
fn the_text_form_is_readable() {
    let text = logged("info", Format::Text, || stream_end(&end()));
    for part in ["INFO", "stream ended", "reason=\"client_stalled\"", "duration_ms=61000.0"] {
        assert!(text.contains(part), "{part} missing: {text}");
    }
}

#[test]
fn dependencies_stay_quiet_at_every_level() {
    let log = || {
        tracing::debug!(target: "h2::frame", "authorization: secret");
        tracing::info!(target: "hyper", "secret");
        tracing::warn!(target: "hyper", "trouble below");
        tracing::trace!("ours");
    };
    let text = logged("trace", Format::Json, log);
    assert!(!text.contains("secret"), "{text}");
    assert!(text.contains("trouble below") && text.contains("ours"), "{text}");
    let text = logged("error", Format::Json, log);
    assert_eq!(text, "");
}

/// More than wait, at about 400 bytes each: in the queue, with the writer, and in a pipe.
const TOO_MANY_LINES: usize = crate::limits::LOG_QUEUE / 100;

/// Not a test: the process that the next test starts and does not read from.
#[test]
#[ignore = "run by a_reader_that_is_too_slow_costs_counted_lines"]
fn child_that_logs_too_much() {
    let _guard = super::log::init("loud", Format::Auto);
    let _second = super::log::init("off", Format::Text);
    for _ in 0..TOO_MANY_LINES {
        stream_end(&end());
    }
    eprintln!("dropped {}", super::log::dropped_lines());
}

#[test]
fn a_reader_that_is_too_slow_costs_counted_lines() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "telemetry::tests::child_that_logs_too_much", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads its standard output, yet the child gets to the end of its lines.
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let report = stderr.find_map(|line| line.unwrap().strip_prefix("dropped ").map(str::to_owned));
    let dropped: usize = report.expect("the child's report").parse().unwrap();
    assert!(dropped > 0);

    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert!(child.wait().unwrap().success());
    // A pipe is no terminal, so these are JSON; the test harness may write around the first and
    // last.
    let (lines, broken): (Vec<_>, Vec<_>) = stdout
        .lines()
        .filter_map(|line| line.find('{').map(|at| &line[at..]))
        .map(serde_json::from_str::<serde_json::Value>)
        .partition(Result::is_ok);
    assert!(broken.len() <= 1, "only the line that the end of the process cut: {broken:?}");
    let lines: Vec<_> = lines.into_iter().flatten().collect();
    assert_eq!(lines[0]["message"], "unknown log level, using info");
    assert_eq!(lines[1]["message"], "stream ended");
    assert!(lines.len() + dropped <= TOO_MANY_LINES + 1);
}

/// Not a test: the process of the next one, which logs at the level and in the form that it is told.
#[test]
#[ignore = "run by the_level_and_the_form_decide_about_the_line_of_an_ended_stream"]
fn child_that_logs_one_end() {
    // Asked for by hand it has not been told.
    let Ok(told) = std::env::var("TIDEGATE_TEST_LOG_AS") else { return };
    let (level, form) = told.split_once(' ').unwrap();
    let form = if form == "json" { Format::Json } else { Format::Text };
    // `warn>info` begins at the first and goes over to the second.
    let (first, level) = level.split_once('>').unwrap_or((level, level));
    let _guard = super::log::init(first, form);
    super::log::set_level(level);
    super::log::set_level("loud");
    stream_end(&end());
    tracing::error!("the last line");
    tracing::debug!(target: "h2::frame", "a header");
    std::thread::spawn(|| stream_end(&end())).join().unwrap();
}

#[test]
fn the_level_and_the_form_decide_about_the_line_of_an_ended_stream() {
    let name = "telemetry::tests::child_that_logs_one_end";
    let logged_as = |told: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--ignored", "--nocapture"]).env("TIDEGATE_TEST_LOG_AS", told);
        let output = child.output().unwrap();
        assert!(output.status.success(), "{told}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (level, ends, errors) in [
        ("off", 0, 0),
        ("error", 0, 1),
        ("warn", 0, 1),
        ("info", 2, 1),
        ("debug", 2, 1),
        ("off>trace", 2, 1),
        ("warn>info", 2, 1),
        ("trace>error", 0, 1),
        ("info>off", 0, 0),
    ] {
        for form in ["json", "text"] {
            let text = logged_as(&format!("{level} {form}"));
            let lines = |what: &str| text.lines().filter(|line| line.contains(what)).count();
            let what = format!("{level} {form}: {text}");
            assert_eq!((lines("stream ended"), lines("the last line")), (ends, errors), "{what}");
            let json = lines("\"message\":\"stream ended\"");
            assert_eq!(json, if form == "json" { ends } else { 0 }, "{what}");
            assert_eq!(lines("a header"), 0, "{what}");
        }
    }
}

/// What one update costs: `cargo test --release --lib cells_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement; meaningful in a release build only"]
fn cells_cost() {
    const ROUNDS: u64 = 20_000_000;
    let cells = Cells::new(&shape());
    let report = |what: &str, update: &dyn Fn(u64)| {
        let start = Instant::now();
        (0..ROUNDS).for_each(update);
        let ns = start.elapsed().as_nanos() as f64 / ROUNDS as f64;
        eprintln!("{what}: {ns:.2} ns");
    };
    report("nothing", &|i| {
        black_box(i);
    });
    report("Counter::inc", &|_| black_box(&cells.heartbeats).inc());
    let histogram = Histogram::new(&names::INTERVAL);
    report("Histogram::observe, one bucket", &|_| {
        black_box(&histogram).observe(black_box(Duration::from_millis(20)));
    });
    // A multiplier spreads the durations over all buckets, so that branches cannot be foreseen.
    report("Histogram::observe, spread", &|i| {
        let ns = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (28 + i % 20);
        black_box(&histogram).observe(Duration::from_nanos(black_box(ns)));
    });
    assert_eq!(cells.heartbeats.get(), ROUNDS);
}
