//! Figures agree with what a server of known pace did; the report keeps its form.

mod stage;

use std::collections::BTreeSet;

use serde_json::Value;
use stage::{Conn, in_quiet, now_ns, pace, serve, stamped};

/// Events, the stamp of each 20 ms older than the event, every 50 ms, after a head at 60 ms and a
/// pause of 40 ms.
fn paced(conn: &mut Conn) {
    pace(60);
    conn.head();
    pace(40);
    for number in 1..=20 {
        let event = stamped(conn.id, number, now_ns() - 20_000_000);
        conn.raw(&format!("{:x}\r\n{event}\r\n", event.len()));
        pace(50);
    }
    conn.done();
}

#[track_caller]
fn within(value: u64, from: u64, to: u64) {
    assert!((from..=to).contains(&value), "{value} is not from {from} to {to}");
}

#[test]
fn a_known_pace_is_measured_as_it_is() {
    in_quiet(|| {
        let run = serve(paced).load("-n 10 --count 20 --interval 50ms --ramp 50");
        assert_eq!(run.code, 0);
        within(run.at("/latency_us/relay/p50"), 20_000, 24_000);
        within(run.at("/latency_us/interval/p50"), 48_000, 54_000);
        within(run.at("/latency_us/head/p50"), 60_000, 70_000);
        within(run.at("/latency_us/first_event/p50"), 100_000, 112_000);
        within(run.at("/latency_us/max_gap/p50"), 49_000, 70_000);
        within(run.at("/latency_us/jitter/p50"), 0, 8_000);
        assert_eq!(run.at("/latency_us/relay/count"), 200);
        assert_eq!(run.at("/latency_us/interval/count"), 190);
        assert_eq!(run.at("/latency_us/jitter/count"), 10);
        assert_eq!(run.at("/latency_us/first_event/count"), 10);
    });
}

#[test]
fn one_late_event_shows_as_gap_and_jitter() {
    in_quiet(|| {
        let late = |conn: &mut Conn| {
            conn.head().events(1..=5);
            pace(300);
            conn.events(6..=10).done();
        };
        let run = serve(late).load("-n 4 --count 10");
        within(run.at("/latency_us/max_gap/p50"), 318_000, 360_000);
        within(run.at("/latency_us/interval/p50"), 19_000, 26_000);
        // Eight intervals of 20 ms and one of 320: a deviation of 94 ms.
        within(run.at("/latency_us/jitter/p50"), 85_000, 105_000);
    });
}

#[test]
fn a_stream_that_stands_still_does_not_look_smooth() {
    in_quiet(|| {
        let silent = |conn: &mut Conn| conn.head().events([1]).until_gone();
        let run = serve(silent).load("-n 4 --hold 1s --interval 20ms");
        within(run.at("/latency_us/max_gap/p50"), 950_000, 1_200_000);
        assert_eq!(run.json["rate"]["achieved"].as_f64(), Some(0.0));
        assert_eq!(run.json["marked"], serde_json::json!(["rate"]));
        // Too short a time to judge a rate of one event per hour by.
        let run = serve(silent).load("-n 4 --hold 1s --interval 1h");
        assert!(
            run.json["rate"]["achieved"].is_null() && run.json["marked"] == serde_json::json!([])
        );
    });
}

#[test]
fn a_slow_server_shows_as_missing_rate() {
    in_quiet(|| {
        let run = serve(paced).load("-n 4 --count 20 --interval 25ms");
        assert_eq!(run.json["marked"], serde_json::json!(["rate"]));
        let achieved = run.json["rate"]["achieved"].as_f64().unwrap();
        assert!((0.45..0.53).contains(&achieved), "{achieved}");
    });
}

#[test]
fn times_count_from_the_intended_start() {
    in_quiet(|| {
        // One at a time: a stream that waits for its neighbours must not look fast.
        let gate = std::sync::Mutex::new(());
        let one_by_one = move |conn: &mut Conn| {
            let _turn = gate.lock().unwrap();
            pace(100);
            conn.head().events([1]).done();
        };
        let run = serve(one_by_one).load("-n 5 --count 1 --ramp 1000");
        within(run.at("/latency_us/head/max"), 500_000, 900_000);
    });
}

#[test]
fn a_hold_measures_its_window_only_and_the_server() {
    in_quiet(|| {
        let endless = |conn: &mut Conn| {
            conn.head();
            for number in 1.. {
                if conn.tcp.take_error().unwrap().is_some() || number > 400 {
                    return;
                }
                conn.events([number]);
            }
        };
        // Stands for the server: a process that nobody else starts children of.
        let mut idle = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let line = format!("-n 5 --hold 2s --interval 20ms --settle 0 --pid {}", idle.id());
        let run = serve(endless).load(&line);
        idle.kill().unwrap();
        idle.wait().unwrap();
        assert_eq!(run.code, 0, "{}", run.said);
        run.only("ends", &[("aborted", 5)]);
        within(run.at("/rate/window_chunks"), 400, 520);
        let window = run.json["rate"]["window_s"].as_f64().unwrap();
        assert!((1.95..2.3).contains(&window), "{window}");
        assert!(run.at("/events/chunks") >= run.at("/rate/window_chunks"));
        assert_eq!((run.at("/streams/live"), run.at("/streams/live_max")), (5, 5));
        for time in ["before", "at", "after"] {
            assert!(run.at(&format!("/server/memory_{time}/rss_kb")) > 500);
            assert_eq!(run.at(&format!("/server/memory_{time}/processes")), 1);
        }
        assert!(run.json["server"]["cpu_us_per_chunk"]["total"].is_number());
    });
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
