//! A server that does each wrong that a relay could do; each is caught, by its own counter, in
//! every stream, and fails the run.

mod stage;

use stage::{Conn, event, serve};

/// Streams per run.
const N: u64 = 6;

/// Runs streams of five events against `script`; checks faults, status and the only end.
#[track_caller]
fn caught(script: fn(&mut Conn), faults: &[(&str, u64)], end: &str) {
    let line = format!("-n {N} --count 5 --idle-timeout 5s");
    let run = serve(script).load(&line);
    let all: Vec<_> = faults.iter().map(|(name, each)| (*name, each * N)).collect();
    run.only("sequence", &all);
    run.only("ends", &[(end, N)]);
    run.only("failed", &[]);
    assert_eq!(run.code, if faults.is_empty() { 0 } else { 2 }, "{}", run.said);
    assert_eq!(run.said.contains("SEQUENCE CHECK FAILED"), !faults.is_empty(), "{}", run.said);
    assert_eq!(run.at("/events/faulty_streams"), if faults.is_empty() { 0 } else { N });
}

#[test]
fn a_good_server_is_not_accused() {
    caught(
        |conn| {
            conn.head().events(1..=5).done();
        },
        &[],
        "done",
    );
}

#[test]
fn loss_is_caught_in_the_middle_and_at_the_end() {
    caught(
        |conn| {
            conn.head().events([1, 2, 5]).done();
        },
        &[("lost", 2)],
        "done",
    );
    caught(
        |conn| {
            conn.head().events(1..=4).done();
        },
        &[("lost", 1)],
        "done",
    );
    caught(
        |conn| {
            conn.head().events(2..=5).done();
        },
        &[("lost", 1)],
        "done",
    );
}

#[test]
fn duplicates_are_caught() {
    caught(
        |conn| {
            conn.head().events([1, 2, 2, 3, 4, 5]).done();
        },
        &[("duplicated", 1)],
        "done",
    );
    let again = |conn: &mut Conn| {
        conn.head().events(1..=5).events(1..=5).done();
    };
    caught(again, &[("duplicated", 5)], "done");
}

#[test]
fn reordering_is_caught() {
    caught(
        |conn| {
            conn.head().events([1, 3, 2, 5, 4]).done();
        },
        &[("reordered", 2)],
        "done",
    );
}

#[test]
fn cross_talk_is_caught() {
    let script = |conn: &mut Conn| {
        conn.head().events(1..=3);
        let other = event(conn.id + 1, 4);
        conn.chunk(&other).events(4..=5).done();
    };
    caught(script, &[("foreign", 1)], "done");
    let swapped = |conn: &mut Conn| {
        conn.head().events(1..=3);
        let other = event(conn.id + 1, 4);
        conn.chunk(&other).events([5]).done();
    };
    caught(swapped, &[("foreign", 1), ("lost", 1)], "done");
}

#[test]
fn malformed_events_are_caught() {
    let json = |conn: &mut Conn| {
        {
            conn.head().events(1..=5).chunk("data: {\"id\":\n\n").done();
        };
    };
    caught(json, &[("malformed", 1)], "done");
    let field = |conn: &mut Conn| {
        conn.head().events(1..=5).chunk("dat: {}\n\n").done();
    };
    caught(field, &[("malformed", 1)], "done");
    let after = |conn: &mut Conn| {
        {
            conn.head().events(1..=5).chunk("data: [DONE]\n\n").events([6]).raw("0\r\n\r\n");
        };
    };
    caught(after, &[("malformed", 1)], "done");
    let open = |conn: &mut Conn| {
        {
            conn.head().events(1..=4).chunk("data: {\"id\":\"c\"}\n").raw("0\r\n\r\n");
        };
    };
    caught(open, &[("malformed", 1)], "no_done");
    let utf8 = |conn: &mut Conn| {
        conn.head().events(1..=5);
        let _ = std::io::Write::write_all(&mut conn.tcp, b"d\r\ndata: {\"\xff\"}\n\n\r\n");
        conn.done();
    };
    caught(utf8, &[("malformed", 1)], "done");
}

#[test]
fn heartbeats_are_counted_apart_and_caught_inside_events() {
    let script = |conn: &mut Conn| {
        conn.head().chunk(": ping\n").events(1..=2).chunk(": ping\n\n").events([3]);
        conn.chunk("event: ping\ndata: {\"type\":\"ping\"}\n\n").chunk(": a\n").chunk(": b\n");
        conn.events(4..=5).done();
    };
    let run = serve(script).load(&format!("-n {N} --count 5"));
    run.only("heartbeats", &[("bare_comments", 3 * N), ("comment_frames", N), ("pings", N)]);
    assert_eq!((run.code, run.at("/events/chunks")), (0, 5 * N));

    let between_lines = |conn: &mut Conn| {
        conn.head().events(1..=4);
        let last = event(conn.id, 5).replace("\n\n", "\n: ping\n\n");
        conn.chunk(&last).done();
    };
    caught(between_lines, &[("heartbeats_inside", 1)], "done");
    let within_a_line = |conn: &mut Conn| {
        conn.head().events(1..=4);
        let last = event(conn.id, 5);
        let (a, b) = last.split_at(40);
        conn.chunk(&format!("{a}: ping\n{b}")).done();
    };
    // The event is broken, what follows is no field, and number 5 never came.
    caught(within_a_line, &[("malformed", 2), ("lost", 1)], "done");
}

#[test]
fn ends_are_told_apart() {
    caught(
        |conn| {
            conn.head().events(1..=3).raw("0\r\n\r\n");
        },
        &[],
        "no_done",
    );
    caught(
        |conn| {
            conn.head().events(1..=3);
        },
        &[],
        "cut",
    );
    caught(
        |conn| {
            conn.head().events(1..=3).raw("80\r\ndata: {\"id");
        },
        &[],
        "cut",
    );
    caught(
        |conn| {
            conn.head().events(1..=5).chunk("data: [DONE]\n\n");
        },
        &[],
        "cut_after_done",
    );
    caught(
        |conn| {
            conn.head().events(1..=3).raw("xyz\r\ndata: {}\n\n\r\n");
        },
        &[],
        "bad_framing",
    );
    caught(
        |conn| {
            conn.head().events(1..=3).chunk(ERROR);
        },
        &[],
        "error_event",
    );
    caught(
        |conn| {
            conn.head().events(1..=3).chunk(ERROR).raw("0\r\n\r\n");
        },
        &[],
        "error_event",
    );
    // Closing with the client's bytes unread resets the connection; so does this.
    let reset = |conn: &mut Conn| {
        conn.head().events(1..=3);
        rustix::net::sockopt::set_socket_linger(&conn.tcp, Some(std::time::Duration::ZERO))
            .unwrap();
    };
    caught(reset, &[], "reset");
}

const ERROR: &str = "data: {\"error\":{\"message\":\"gone\",\"type\":\"server_error\"}}\n\n";

#[test]
fn silence_ends_by_timeout() {
    let script = |conn: &mut Conn| conn.head().events(1..=3).until_gone();
    let run = serve(script).load("-n 3 --idle-timeout 300ms");
    run.only("ends", &[("timeout", 3)]);
}

#[test]
fn coalesced_events_are_counted_and_mark_the_run() {
    let script = |conn: &mut Conn| {
        conn.head().events([1]);
        let three: String = (2..=4).map(|number| event(conn.id, number)).collect();
        conn.chunk(&three).events([5]).done();
    };
    let run = serve(script).load(&format!("-n {N} --count 5"));
    run.only("sequence", &[]);
    assert_eq!((run.at("/coalesced/chunks"), run.code), (3 * N, 0));
    assert_eq!(run.json["marked"], serde_json::json!(["coalesced"]));
    assert!(run.said.contains("MARKED coalesced"));

    // Two chunks, but written before the client looks again; and one by one.
    let two = |conn: &mut Conn| {
        let (a, b) = (event(conn.id, 2), event(conn.id, 3));
        let (a, b) = (format!("{:x}\r\n{a}\r\n", a.len()), format!("{:x}\r\n{b}\r\n", b.len()));
        conn.head().events([1]).raw(&(a + &b)).until_read();
        conn.events(4..=5).done();
    };
    let run = serve(two).load(&format!("-n {N} --count 5"));
    assert_eq!(run.at("/coalesced/chunks"), 2 * N);
    let single = |conn: &mut Conn| conn.head().events(1..=5).done();
    let run = serve(single).load(&format!("-n {N} --count 5"));
    assert_eq!((run.at("/coalesced/chunks"), &run.json["marked"]), (0, &serde_json::json!([])));
}

#[test]
fn failures_are_told_apart() {
    let failed = |script: fn(&mut Conn), name: &str| {
        let wait = if name == "head_timeout" { "400ms" } else { "20s" };
        let run = serve(script).load(&format!("-n 3 --head-timeout {wait}"));
        run.only("failed", &[(name, 3)]);
        run.only("ends", &[]);
        assert_eq!((run.at("/streams/failed"), run.code), (3, 1));
        assert_eq!(run.json["marked"], serde_json::json!(["failures"]));
        run
    };
    let run = failed(
        |conn| {
            conn.raw(BUSY);
        },
        "status",
    );
    assert_eq!(run.json["statuses"], serde_json::json!({"503": 3}));
    failed(
        |conn| {
            conn.raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        },
        "not_a_stream",
    );
    failed(
        |conn| {
            conn.raw("SSH-2.0-x\r\n\r\n");
        },
        "bad_head",
    );
    failed(|_| {}, "closed");
    failed(Conn::until_gone, "head_timeout");
    let refused = stage::run("http://127.0.0.1:1/", "-n 2");
    refused.only("failed", &[("connect", 2)]);
    assert_eq!(refused.code, 1);
}

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}";
