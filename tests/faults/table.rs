//! Each fault of the simulated upstream, over HTTP/1.1 and HTTP/2, as HTTP/1.1 and HTTP/2 clients
//! see it, while a hundred other streams run through the same gateway to the same upstream.

use std::time::Duration;

use tidegate::sim::{Behaviour, Framing, Kind, LineEnd, Options, expected_body};

use super::crowd::{CROWD, Crowd, again, warm_up};
use super::stage::events::error_code;
use super::stage::sees::Sees::{self, Broken, OwnError, Passed, Status, Whole};
use super::stage::{End, Http, PATIENCE, Setup, Stage};

/// One fault: what the upstream does, and what comes of it.
struct Row {
    /// The value of `sim-fault`.
    fault: &'static str,
    /// Further `sim-*` fields.
    fields: &'static [(&'static str, &'static str)],
    /// What a client sees when the upstream speaks HTTP/1.1, and the stream's end reason.
    h1: (Sees, &'static str),
    /// The same for HTTP/2.
    h2: (Sees, &'static str),
}

const fn row(fault: &'static str, h1: (Sees, &'static str), h2: (Sees, &'static str)) -> Row {
    Row { fault, fields: &[], h1, h2 }
}

const fn both(fault: &'static str, sees: Sees, reason: &'static str) -> Row {
    row(fault, (sees, reason), (sees, reason))
}

const fn with(row: Row, fields: &'static [(&'static str, &'static str)]) -> Row {
    Row { fields, ..row }
}

const COMPLETED: (Sees, &str) = (Whole, "completed");
const TRUNCATED: (Sees, &str) = (Broken("upstream_truncated"), "upstream_truncated");
const GONE: (Sees, &str) = (Status(502, "upstream_gone"), "upstream_error");

/// The table. `conn`, which takes other streams of an HTTP/2 connection along, has its own test.
const TABLE: [Row; 32] = [
    // Broken off after three events: EOF is not completion.
    row("fin", TRUNCATED, TRUNCATED),
    row("rst", TRUNCATED, TRUNCATED),
    row("no-done", TRUNCATED, TRUNCATED),
    row("bad-chunk", (Broken("upstream_protocol"), "upstream_error"), TRUNCATED),
    both("stall", Broken("upstream_idle_timeout"), "upstream_timeout"),
    both("error-middle", OwnError, "upstream_error"),
    // The same where the upstream's bytes come apart in every way.
    with(row("fin", TRUNCATED, TRUNCATED), &[("sim-split", "byte")]),
    with(row("fin", TRUNCATED, TRUNCATED), &[("sim-split", "byte"), ("sim-line-end", "crlf")]),
    with(row("rst", TRUNCATED, TRUNCATED), &[("sim-split", "random"), ("sim-bom", "on")]),
    with(both("error-middle", OwnError, "upstream_error"), &[("sim-split", "byte")]),
    // Nothing has been promised to the client yet: a real status.
    both("stall-head", Status(504, "upstream_first_byte_timeout"), "upstream_timeout"),
    both("error-first", Status(502, "sim"), "upstream_error"),
    with(both("error-first", Status(502, "sim"), "upstream_error"), &[("sim-split", "byte")]),
    both("empty", Status(502, "upstream_empty"), "upstream_truncated"),
    row("reset-head", GONE, GONE),
    row("refuse", GONE, (Status(502, "upstream_refused"), "upstream_error")),
    // Answers that are no event stream pass as they are, whatever they say.
    both("html", Passed(200, "Please sign in"), "completed"),
    both("early", Passed(413, r#""code":"sim""#), "completed"),
    with(both("none", Passed(429, "rate_limit_error"), "completed"), &[("sim-status", "429")]),
    with(both("none", Passed(500, "server_error"), "completed"), &[("sim-status", "500")]),
    // Odd, but every byte of the stream and its terminal mark are there.
    row("huge", COMPLETED, COMPLETED),
    row("wrong-length", COMPLETED, COMPLETED),
    row("103", COMPLETED, COMPLETED),
    row("trailers", COMPLETED, COMPLETED),
    row("eof-delimited", COMPLETED, COMPLETED),
    row("content-length-exact", COMPLETED, COMPLETED),
    row("goaway", COMPLETED, COMPLETED),
    row("bare-lf-head", COMPLETED, COMPLETED),
    row("http10", COMPLETED, COMPLETED),
    with(row("none", COMPLETED, COMPLETED), &[("sim-split", "byte"), ("sim-line-end", "cr")]),
    with(row("none", COMPLETED, COMPLETED), &[("sim-split", "byte"), ("sim-line-end", "crlf")]),
    with(row("none", COMPLETED, COMPLETED), &[("sim-split", "byte"), ("sim-bom", "on")]),
];

const EVENTS: &str = "5";

/// What the upstream sends in answer to `row`, without a byte order mark.
fn sent(row: &Row, id: u64) -> Vec<u8> {
    let mut behaviour = Behaviour::default();
    let fields = [("sim-count", EVENTS), ("sim-fault", row.fault)];
    for (name, value) in fields.iter().chain(row.fields) {
        behaviour.apply(name, value).expect("a field of the simulator");
    }
    behaviour.framing.bom = false;
    expected_body(&behaviour, Kind::Chat, id, "tide-1", false)
}

async fn strike(row: &Row, upstream_h2: bool) {
    let what = format!("{} {:?} upstream h2 {upstream_h2}", row.fault, row.fields);
    let quick = ["stall", "stall-head"].contains(&row.fault);
    let limits = if quick { "first_byte = \"1500ms\"\nidle = \"1500ms\"" } else { "" };
    // One worker, so that all streams to an HTTP/2 upstream share one connection.
    let (stream, server) = (limits.to_owned(), "workers = 1".to_owned());
    // What is done about faults is another test's.
    let upstream = "retry = { attempts = 1 }".to_owned();
    let stage = Stage::start(Setup { upstream_h2, stream, server, upstream, ..Setup::default() });
    let stage = stage.await;
    warm_up(&stage).await;
    let crowd = Crowd::start(&stage).await;
    let (mut h1, mut h2) = (stage.client(Http::H1).await, again(&crowd.shared));
    let mut fields = vec![("sim-clock", "off"), ("sim-count", EVENTS), ("sim-interval", "20ms")];
    fields.push(("sim-fault", row.fault));
    fields.extend(row.fields);
    let (mut to_h1, mut to_h2) = (fields.clone(), fields);
    to_h1.push(("sim-stream", "1"));
    to_h2.push(("sim-stream", "2"));
    let (h1, h2) = tokio::join!(h1.stream(&to_h1), h2.stream(&to_h2));
    let (sees, reason) = if upstream_h2 { row.h2 } else { row.h1 };
    sees.check(&format!("{what}, h1 client"), &sent(row, 1), &h1);
    sees.check(&format!("{what}, h2 client"), &sent(row, 2), &h2);
    crowd.arrives(&what).await;

    let all = CROWD as f64 + 3.0;
    let over =
        |m: &super::stage::Metrics| m.sum("tidegate_streams_ended_total") == all && m.live() == 0.0;
    let metrics = stage.until("all ended", over).await;
    let (completed, failed) = if reason == "completed" { (all, all) } else { (all - 2.0, 2.0) };
    assert_eq!(metrics.ended(reason), failed, "{what}: {metrics:?}");
    assert_eq!(metrics.ended("completed"), completed, "{what}: {metrics:?}");
    stage.sim.wait_for(|c| c.live == 0, PATIENCE).await.expect("nothing left at the upstream");
    let counts = stage.sim.counts();
    assert_eq!(counts.requests, CROWD as u64 + 3, "{what}: no request twice, {counts:?}");
    if upstream_h2 {
        let connections = if row.fault == "goaway" { 1..=3 } else { 1..=1 };
        assert!(connections.contains(&counts.connections), "{what}: not shared, {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_an_http1_upstream_is_seen_for_what_it_is() {
    for row in &TABLE {
        strike(row, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_an_http2_upstream_is_seen_for_what_it_is() {
    for row in &TABLE {
        strike(row, true).await;
    }
}

/// Streams that an HTTP/2 upstream allows on one connection in the test below.
const EACH: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_ends_the_streams_on_it_with_an_error_and_no_others() {
    for upstream_h2 in [false, true] {
        let what = format!("conn upstream h2 {upstream_h2}");
        let sim = Options { h2_max_streams: Some(EACH as u32), ..Options::default() };
        let server = "workers = 1".to_owned();
        let stage = Stage::start(Setup { upstream_h2, sim, server, ..Setup::default() }).await;
        let crowd = Crowd::start(&stage).await;
        let conn = both("conn", Broken("upstream_truncated"), "upstream_truncated");
        let mut client = stage.client(Http::H1).await;
        let fields = [
            ("sim-clock", "off"),
            ("sim-count", EVENTS),
            ("sim-interval", "20ms"),
            ("sim-fault", "conn"),
            ("sim-stream", "1"),
        ];
        let answer = client.stream(&fields).await;
        conn.h1.0.check(&what, &sent(&conn, 1), &answer);
        let told = crowd.arrives_or_is_told(&what).await;
        // Only the siblings on the lost connection, of which there are some over HTTP/2.
        let siblings = if upstream_h2 { 1..EACH } else { 0..1 };
        assert!(siblings.contains(&told), "{what}: {told} siblings were told");
        let all = CROWD as f64 + 1.0;
        let over = |m: &super::stage::Metrics| m.sum("tidegate_streams_ended_total") == all;
        let metrics = stage.until("all ended", over).await;
        assert_eq!(metrics.ended("upstream_truncated"), told as f64 + 1.0, "{what}");
        assert_eq!(metrics.ended("completed"), (CROWD - told) as f64, "{what}");
        assert_eq!(stage.sim.counts().requests, CROWD as u64 + 1, "{what}: no request twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_slow_to_accept_only_takes_longer() {
    let plain = row("none", COMPLETED, COMPLETED);
    for (upstream_h2, upstream_tls) in [(false, false), (false, true), (true, false), (true, true)]
    {
        let sim = Options { slow_accept: Duration::from_millis(300), ..Options::default() };
        let stage =
            Stage::start(Setup { upstream_h2, upstream_tls, sim, ..Setup::default() }).await;
        let crowd = Crowd::start(&stage).await;
        let fields = [("sim-clock", "off"), ("sim-count", EVENTS), ("sim-stream", "1")];
        let answer = again(&crowd.shared).stream(&fields).await;
        Whole.check("slow accept", &sent(&plain, 1), &answer);
        crowd.arrives("slow accept").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_beyond_the_limit_is_closed_and_told() {
    for upstream_h2 in [false, true] {
        let stream = "max_event = \"64KiB\"".to_owned();
        let stage = Stage::start(Setup { upstream_h2, stream, ..Setup::default() }).await;
        let crowd = Crowd::start(&stage).await;
        for http in [Http::H1, Http::H2] {
            for line_end in ["lf", "crlf", "cr"] {
                let fields = [
                    ("sim-clock", "off"),
                    ("sim-stream", "1"),
                    ("sim-fault", "huge"),
                    ("sim-line-end", line_end),
                ];
                let answer = stage.client(http).await.stream(&fields).await;
                let what = format!("huge {http:?} {line_end} upstream h2 {upstream_h2}");
                assert_eq!((answer.status, answer.end), (200, End::Cut), "{what}");
                // Two whole events and the beginning of the huge one; then, as that cannot be
                // taken back, its end and the error event.
                let at = memchr::memmem::rfind(&answer.body, b"\n\ndata: {\"error\"");
                let at = at.unwrap_or_else(|| panic!("no error event: {what}"));
                let (begun, told) = answer.body.split_at(at + 2);
                assert_eq!(error_code(told).as_deref(), Some("event_too_long"), "{what}");
                let line_end = match line_end {
                    "crlf" => LineEnd::Crlf,
                    "cr" => LineEnd::Cr,
                    _ => LineEnd::Lf,
                };
                let framing = Framing { line_end, ..Framing::default() };
                let fault = tidegate::sim::Fault::Huge;
                let behaviour = Behaviour { fault, framing, ..Behaviour::default() };
                let whole = expected_body(&behaviour, Kind::Chat, 1, "tide-1", false);
                assert!(whole.starts_with(&begun[..begun.len() - 2]), "{what}");
                assert!(begun.len() > 64 << 10 && begun.len() < 256 << 10, "{what}");
            }
        }
        crowd.arrives("huge").await;
        stage.until("told", |m| m.ended("limit") == 6.0).await;
    }
}
