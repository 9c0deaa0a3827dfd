//! Figures agree with what a server of known pace did; the report keeps its form.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

mod stage;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use stage::truth::{self, Range, Reading, each};
use stage::{Conn, PATIENCE, Run, pace, serve};

/// A head after 60 ms, a pause of 40 ms, and an event every 50 ms, each stamped as if it had been
/// 20 ms under way.
fn paced(conn: &mut Conn) {
    pace(60);
    conn.head();
    pace(40);
    conn.aged_events(1..=20, 50, 20).done();
}

#[track_caller]
fn within(value: u64, from: u64, to: u64) {
    assert!((from..=to).contains(&value), "{value} is not from {from} to {to}");
}

#[test]
fn a_known_pace_is_measured_as_it_is() {
    let server = serve(paced);
    let run = server.load("-n 10 --count 20 --interval 50ms --ramp 50");
    let reads = server.reads();
    assert_eq!(run.code, 0, "{}", run.said);
    rate_is(&run, &reads, 50.0);
    run.median_is("/latency_us/relay", &truth::delays(&reads, 20_000.0));
    run.median_is("/latency_us/interval", &truth::intervals(&reads));
    run.median_is("/latency_us/max_gap", &each(&reads, truth::longest));
    run.median_is("/latency_us/jitter", &each(&reads, truth::deviation));
    // What the server saw is the pace it was told, and the tool reads what has come.
    within(run.at("/latency_us/interval/p50"), 49_000, 100_000);
    within(run.at("/latency_us/relay/p50"), 20_000, 70_000);
    assert_eq!(run.at("/latency_us/relay/count"), 200);
    assert_eq!(run.at("/latency_us/interval/count"), 190);
}

#[test]
fn heads_and_first_events_are_told_apart() {
    let server = serve(|conn: &mut Conn| {
        pace(500);
        conn.head();
        pace(1000);
        conn.events([1]).done();
    });
    let run = server.load("-n 10 --count 1");
    within(run.at("/latency_us/head/p50"), 500_000, 900_000);
    within(run.at("/latency_us/first_event/p50"), 1_500_000, 2_300_000);
    assert_eq!(
        (run.at("/latency_us/head/count"), run.at("/latency_us/first_event/count")),
        (10, 10)
    );
    // Both count from the same moment, so that their difference is the server's.
    let reads = server.reads();
    let mean = |figure: &str| run.json["latency_us"][figure]["mean"].as_f64().unwrap();
    let range = reads.iter().filter(|read| read.number == 0).map(|head| {
        let event = reads.iter().find(|read| (read.stream, read.number) == (head.stream, 1));
        truth::between(head, event.unwrap())
    });
    let (low, high) =
        range.fold((0.0, 0.0), |sum, one| (sum.0 + one.0 / 10.0, sum.1 + one.1 / 10.0));
    let difference = mean("first_event") - mean("head");
    // Histograms have three digits, and an interrupted tool may look at the clock late.
    assert!((low - 20_000.0..=high + 20_000.0).contains(&difference), "{low} {difference} {high}");
}

#[test]
fn one_late_event_shows_as_gap_and_jitter() {
    let server = serve(|conn: &mut Conn| {
        conn.head().paced_events(1..=5, 20);
        pace(300);
        conn.paced_events(6..=10, 20).done();
    });
    let run = server.load("-n 4 --count 10");
    let reads = server.reads();
    let gaps = each(&reads, truth::longest);
    let jitter = each(&reads, truth::deviation);
    assert!(gaps.iter().all(|gap| gap.1 >= 320_000.0), "{gaps:?}");
    run.median_is("/latency_us/max_gap", &gaps);
    run.median_is("/latency_us/jitter", &jitter);
    run.median_is("/latency_us/interval", &truth::intervals(&reads));
}

#[test]
fn a_stream_that_stands_still_does_not_look_smooth() {
    let silent = |conn: &mut Conn| conn.head().events([1]).until_gone();
    let run = serve(silent).load("-n 4 --hold 1s --interval 20ms");
    // The gap is the window: not shorter than the hold, and not longer than everything.
    within(run.at("/latency_us/max_gap/p50"), 1_000_000, run.took_us());
    assert_eq!(run.json["rate"]["achieved"].as_f64(), Some(0.0));
    assert_eq!(run.json["marked"], json!(["rate"]));
    // Too short a time to judge a rate of one event per hour by.
    let run = serve(silent).load("-n 4 --hold 1s --interval 1h");
    assert!(run.json["rate"]["achieved"].is_null() && run.json["marked"] == json!([]));
}

/// The share of the rate that arrived is what it was for the server, and marks the run if too low.
#[track_caller]
fn rate_is(run: &Run, reads: &[Reading], interval_ms: f64) {
    let lengths = each(reads, truth::length);
    let sum = |pick: fn(&Range) -> f64| lengths.iter().map(pick).sum::<f64>();
    let due = (reads.iter().filter(|read| read.number > 1).count()) as f64 * interval_ms * 1e3;
    let allowed = due / sum(|range| range.1) * 0.99..=due / sum(|range| range.0) * 1.01;
    let achieved = run.json["rate"]["achieved"].as_f64().unwrap();
    assert!(allowed.contains(&achieved), "{achieved} is not within {allowed:?}");
    let marked = run.json["marked"] == json!(["rate"]);
    assert!(marked || run.json["marked"] == json!([]), "{}", run.said);
    // The report is rounded, the decision is not.
    assert!(marked == (achieved < 0.97) || (achieved - 0.97).abs() < 0.001, "{achieved}");
}

#[test]
fn a_slow_server_shows_as_missing_rate() {
    let server = serve(paced);
    let run = server.load("-n 4 --count 20 --interval 25ms");
    assert_eq!(run.json["marked"], json!(["rate"]));
    rate_is(&run, &server.reads(), 25.0);
    assert!(run.json["rate"]["achieved"].as_f64().unwrap() <= 0.51);
}

#[test]
fn times_count_from_the_intended_start() {
    // One at a time: a stream that waits for its neighbours must not look fast.
    let gate = std::sync::Mutex::new(());
    let one_by_one = move |conn: &mut Conn| {
        let _turn = gate.lock().unwrap();
        pace(100);
        conn.head().events([1]).done();
    };
    let run = serve(one_by_one).load("-n 5 --count 1 --ramp 1000");
    // The last one's turn comes after 500 ms, and it was due 4 ms after the first.
    within(run.at("/latency_us/head/max"), 496_000, run.took_us());
}

/// Stands for the server: a process that nobody else starts children of, and that has its memory
/// (a new one has next to none until it runs).
fn idle_process() -> Child {
    let mut idle =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    idle.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    idle.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    idle
}

#[test]
fn a_hold_measures_its_window_only_and_the_server() {
    let ends = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let record = std::sync::Arc::clone(&ends);
    let server = serve(move |conn: &mut Conn| {
        conn.head();
        let mut number = 0;
        while conn.gone.is_none() {
            number += 1;
            conn.paced_events([number], 20);
        }
        record.lock().unwrap().extend(conn.gone);
    });
    let mut idle = idle_process();
    let line = format!("-n 5 --hold 2s --interval 20ms --settle 0 --pid {}", idle.id());
    let run = server.load(&line);
    idle.kill().unwrap();
    idle.wait().unwrap();
    assert_eq!(run.code, 0, "{}", run.said);
    run.only("ends", &[("aborted", 5)]);
    let deadline = std::time::Instant::now() + PATIENCE;
    while ends.lock().unwrap().len() < 5 {
        assert!(std::time::Instant::now() < deadline, "not all clients have gone");
        pace(5);
    }
    let window = run.json["rate"]["window_s"].as_f64().unwrap();
    assert!(window >= 2.0 && window < run.took.as_secs_f64(), "{window}");
    let end = *ends.lock().unwrap().iter().min().unwrap();
    let longest = (window * 1e9) as u64 + 1_000_000;
    let (fewest, most) = truth::in_a_window(&server.reads(), 2_000_000_000, longest, end);
    // One more or less of each stream: the edges are no points in time.
    within(run.at("/rate/window_chunks"), fewest.saturating_sub(5), most + 5);
    // The window may close between the counting of an event and that of its time.
    let timed = run.at("/latency_us/relay/count");
    assert!(timed.abs_diff(run.at("/rate/window_chunks")) <= 1, "{timed}");
    assert!(run.at("/events/chunks") > run.at("/rate/window_chunks"));
    assert_eq!((run.at("/streams/live"), run.at("/streams/live_max")), (5, 5));
    for time in ["before", "at", "after"] {
        assert!(run.at(&format!("/server/memory_{time}/rss_kb")) > 500);
        assert_eq!(run.at(&format!("/server/memory_{time}/processes")), 1);
    }
    assert!(run.json["server"]["cpu_us_per_chunk"]["total"].is_number());
}

#[test]
fn the_report_keeps_its_form() {
    let line = format!("-n 2 --count 20 --settle 0 --pid {}", std::process::id());
    let run = serve(paced).load(&line);
    // The tool is a child of the server here, and does not count as the server.
    assert!(run.at("/server/memory_at/processes") >= 1);
    let mut paths = BTreeSet::new();
    collect(&run.json, "", &mut paths);
    let expected: BTreeSet<String> =
        include_str!("schema.txt").lines().map(str::to_owned).collect();
    let missing: Vec<_> = expected.difference(&paths).collect();
    let unknown: Vec<_> = paths.difference(&expected).collect();
    assert!(missing.is_empty(), "missing {missing:?}");
    assert!(unknown.is_empty(), "add to schema.txt: {unknown:#?}");
}

/// The path of every value that is no object.
fn collect(value: &Value, path: &str, paths: &mut BTreeSet<String>) {
    match value.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                collect(value, &format!("{path}/{name}"), paths);
            }
        }
        _ => drop(paths.insert(path.to_owned())),
    }
}
