//! Slow, stalled and leaving readers, bodies, sources, churn and processes do what they say.

mod stage;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stage::{Conn, PATIENCE, pace, serve};

/// Sends as fast as the client takes, in events of some 4 kB, until it leaves.
fn flood(conn: &mut Conn) {
    conn.head();
    let filler = "x".repeat(4000);
    for number in 1u64.. {
        let stamp = format!("{{\"stream\":{},\"seq\":{number},\"sent_ns\":1}}", conn.id);
        let event = format!("data: {{\"f\":\"{filler}\",\"sim\":{stamp}}}\n\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        if std::io::Write::write_all(&mut conn.tcp, chunk.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn slow_readers_read_at_their_rate_and_are_not_measured() {
    let run = serve(flood).load("-n 3 --slow-readers 3 --read-rate 20KiB --hold 2s");
    assert_eq!(run.code, 0, "{}", run.said);
    // Each reads 2 KiB at most, then rests for a tenth of a second; the head may bring a KiB more.
    let most = 3 * (1024 + 2048 * (run.took_us() / 100_000 + 1));
    // Half of what is due within the hold: each rest may end late.
    let least = 3 * 20 * 1024;
    let bytes = run.at("/events/body_bytes");
    assert!((least..=most).contains(&bytes), "{bytes} of {least} to {most}");
    assert_eq!(run.at("/latency_us/relay/count"), 0);
    run.only("ends", &[("aborted", 3)]);
}

#[test]
fn slow_readers_do_not_slow_the_others() {
    // Some 3.5 kB: more than the slow ones take in the time.
    let script = |conn: &mut Conn| {
        conn.head();
        for number in 1..=20 {
            conn.raw_chunk(&stage::event(conn.id, number));
        }
        conn.raw_chunk("data: [DONE]\n\n").raw("0\r\n\r\n");
    };
    let run = serve(script).load("-n 4 --slow-readers 2 --read-rate 100 --count 20 --hold 1s");
    assert_eq!((run.at("/ends/done"), run.at("/ends/aborted")), (2, 2));
}

#[test]
fn stalled_readers_read_nothing_and_notice_a_cut() {
    let run = serve(flood).load("-n 3 --stalled 3 --hold 1s");
    assert!(run.at("/events/body_bytes") < 3 * 1024, "{:#}", run.json);
    run.only("ends", &[("aborted", 3)]);
    assert_eq!(run.at("/streams/stalled_cut"), 0);

    let cut = |conn: &mut Conn| {
        conn.head();
        for number in 1..=3 {
            conn.raw_chunk(&stage::event(conn.id, number));
        }
    };
    let run = serve(cut).load("-n 3 --stalled 3 --hold 5s");
    run.only("ends", &[("cut", 3)]);
    assert_eq!((run.at("/streams/stalled_cut"), run.at("/events/chunks")), (3, 0));
    assert_eq!(run.json["marked"], serde_json::json!(["ended_early"]));
}

#[test]
fn aborts_come_at_random_times_within_bounds() {
    let gone = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&gone);
    let server = serve(move |conn: &mut Conn| {
        conn.head();
        let began = Instant::now();
        conn.until_gone();
        record.lock().unwrap().push(began.elapsed());
    });
    let run = server.load("-n 20 --abort-share 1 --abort-within 1s");
    run.only("ends", &[("aborted", 20)]);
    assert_eq!(run.code, 0);
    let deadline = Instant::now() + PATIENCE;
    while gone.lock().unwrap().len() < 20 && Instant::now() < deadline {
        pace(10);
    }
    let mut gone = gone.lock().unwrap().clone();
    gone.sort_unstable();
    assert_eq!(gone.len(), 20);
    // None later than told but for the machine's lateness: the default would be five seconds. And
    // of twenty random times within a second the first and the last lie well apart.
    assert!(gone[19] < Duration::from_secs(2), "{gone:?}");
    assert!(gone[19] - gone[0] > Duration::from_millis(300), "{gone:?}");
}

#[test]
fn a_share_of_the_streams_is_aborted() {
    // Whoever is to leave does so long before the end.
    let script = |conn: &mut Conn| {
        conn.head().events(1..=29);
        pace(2000);
        conn.events([30]).done();
    };
    let run = serve(script).load("-n 60 --abort-share 0.5 --abort-within 100ms --count 30");
    let aborted = run.at("/ends/aborted");
    assert!((18..=42).contains(&aborted), "{aborted}");
    assert_eq!(run.at("/ends/done"), 60 - aborted);
    run.only("sequence", &[]);
}

#[test]
fn requests_carry_body_and_headers_from_many_sources() {
    let server = serve(|conn: &mut Conn| {
        conn.head().events([1]).done();
    });
    let line = "-n 9 --count 1 --body-bytes 100KiB -H x-team:tide --size 3 --sources 3";
    assert_eq!(server.load(line).code, 0);
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.len(), 9);
    for request in seen.iter() {
        assert_eq!(request.body, 100 * 1024);
        for line in ["\r\nx-team: tide\r\n", "\r\nsim-size: 3\r\n", "\r\nsim-count: 1\r\n"] {
            assert!(request.head.contains(line), "{}", request.head);
        }
    }
    let sources: BTreeSet<String> = seen.iter().map(|request| request.from.to_string()).collect();
    assert_eq!(sources.into_iter().collect::<Vec<_>>(), ["127.0.1.1", "127.0.1.2", "127.0.1.3"]);
}

#[test]
fn churn_replaces_what_ends() {
    let arrived = AtomicUsize::new(0);
    let lived = Arc::new(Mutex::new(Duration::ZERO));
    let record = Arc::clone(&lived);
    let server = serve(move |conn: &mut Conn| {
        let began = Instant::now();
        let first_five = arrived.fetch_add(1, Ordering::Relaxed) < 5;
        conn.head().events([1]);
        if first_five {
            // Until all five are there, and for long enough that the tool looks at least once.
            while arrived.load(Ordering::Relaxed) < 5 {
                pace(5);
            }
            pace(500);
        }
        conn.paced_events(2..=5, 25).done();
        *record.lock().unwrap() += began.elapsed();
    });
    let run = server.load("-n 5 --churn --duration 2s --count 5");
    assert_eq!(run.code, 0, "{}", run.said);
    let begun = run.at("/streams/begun");
    // Each place one stream after the other, none shorter than four rests of 25 ms.
    let most = 5 * (run.took_us() / 100_000 + 1);
    assert!((15..=most).contains(&begun), "{begun}");
    // The places were occupied most of the time.
    let lived = lived.lock().unwrap().as_secs_f64();
    assert!(lived > 5.0 * 2.0 / 2.0, "{lived} s of {begun} streams");
    assert!(run.at("/ends/done") >= begun - 5);
    assert_eq!(run.at("/streams/live_max"), 5);
    // No id comes twice; the last ones begun may not have come to their request.
    let seen = server.seen.lock().unwrap();
    let ids: BTreeSet<u64> = seen.iter().map(|seen| seen.id).collect();
    assert_eq!(ids.len(), seen.len());
    assert!((run.at("/streams/opened")..=begun).contains(&(ids.len() as u64)), "{ids:?}");
    assert_eq!(begun - run.at("/streams/opened"), run.at("/streams/unfinished"));
}

#[test]
fn processes_merged_equal_the_sum() {
    for line in ["", "--processes 3", "--threads 2", "--processes 2 --threads 2"] {
        let server = serve(|conn: &mut Conn| {
            let numbers: &[u64] =
                if conn.id.is_multiple_of(4) { &[1, 2, 4] } else { &[1, 2, 3, 4] };
            conn.head().events(numbers.iter().copied()).done();
        });
        let run = server.load(&format!("-n 24 --count 4 {line}"));
        assert_eq!(run.code, 2, "{line}: {}", run.said);
        run.only("ends", &[("done", 24)]);
        run.only("sequence", &[("lost", 6)]);
        assert_eq!((run.at("/events/chunks"), run.at("/events/faulty_streams")), (90, 6));
        assert_eq!((run.at("/streams/begun"), run.at("/streams/opened")), (24, 24));
        let counts = [("relay", 90), ("interval", 66), ("head", 24), ("jitter", 24)];
        for (name, count) in counts {
            assert_eq!(run.at(&format!("/latency_us/{name}/count")), count, "{line}");
        }
        let seen = server.seen.lock().unwrap();
        let ids: BTreeSet<u64> = seen.iter().map(|request| request.id).collect();
        assert_eq!(ids.len(), 24, "{line}");
    }
}

#[test]
fn a_hold_over_several_processes_stops_them_all() {
    let server = serve(|conn: &mut Conn| {
        conn.head().events([1]).until_gone();
    });
    let run = server.load("-n 10 --processes 2 --hold 1s --ramp 100");
    run.only("ends", &[("aborted", 10)]);
    assert_eq!((run.code, run.at("/streams/live")), (0, 10));
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate-load"))
        .args(["--url", "gopher://x/"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("http://"));
}

#[test]
fn a_json_file_leaves_the_table_on_screen() {
    let server = serve(|conn: &mut Conn| {
        conn.head().events([1]).done();
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate-load"))
        .args(["--url", &format!("http://{}/", server.address), "-n", "2", "--count", "1"])
        .args(["--json", path.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("p99.9") && table.contains("sequence    ok"), "{table}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(report["streams"]["completed"], 2);
}
